"""The device classes of the service: the described ones, some with rules of their own."""

from __future__ import annotations

from functools import cache

from pedos_protocol import device_classes as described

from pedos_dom0.device_classes.base import DeviceClass
from pedos_dom0.device_classes.block import Block

#: Those with rules of their own. To be listed, a class needs only a description.
OWN: dict[str, type[DeviceClass]] = {"block": Block}


def class_of(name: str) -> DeviceClass:
    """The class of that name. A class that only another version has, which an old row of the store
    may name, has no rules of its own; several VMs may have the devices that it gave them."""
    description = described.class_named(name)
    return _unknown(name) if description is None else _class(description)


@cache
def _class(description: described.DeviceClass) -> DeviceClass:
    return OWN.get(description.name, DeviceClass)(description)


def _unknown(name: str) -> DeviceClass:
    return DeviceClass(
        described.DeviceClass(
            name,
            one=f"{name} device",
            many=f"{name} devices",
            source="",
            example="",
            shared=True,
        )
    )
