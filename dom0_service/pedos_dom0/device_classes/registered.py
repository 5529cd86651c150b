"""The device classes of the service: the described ones, some with rules of their own."""

from __future__ import annotations

from functools import cache

from pedos_protocol import device_classes as described

from pedos_dom0.device_classes.base import DeviceClass
from pedos_dom0.device_classes.block import Block
from pedos_dom0.device_classes.pci import Pci
from pedos_dom0.device_classes.usb import Usb

#: Those with rules of their own. To be listed, a class needs only a description.
OWN: dict[str, type[DeviceClass]] = {"block": Block, "usb": Usb, "pci": Pci}


class UnknownClass(DeviceClass):
    """A class that only another version has, which an old row of the store or a report may name.

    It has no rules of its own: several VMs may have the devices that the other version gave them,
    under any name.
    """

    is_known = False

    def __init__(self, name: str, *, source: str = "", example: str = "") -> None:
        super().__init__(
            described.DeviceClass(
                name,
                one=f"{name} device",
                many=f"{name} devices",
                source=source,
                example=example,
                shared=True,
            )
        )

    def wrong_name(self, name: str | None) -> str | None:
        return None


def class_of(name: str) -> DeviceClass:
    """The class of that name, an `UnknownClass` if this dom0 has none."""
    description = described.class_named(name)
    return UnknownClass(name) if description is None else _class(description)


@cache
def _class(description: described.DeviceClass) -> DeviceClass:
    return OWN.get(description.name, DeviceClass)(description)
