"""The device classes of the service: the one table."""

from __future__ import annotations

from pedos_protocol import device_classes as described

from pedos_dom0.device_classes.base import DeviceClass
from pedos_dom0.device_classes.block import Block

#: Those with rules of their own.
_OWN = {"block": Block}
#: By name. To be listed, a class needs only a description.
CLASSES = {each.name: _OWN.get(each.name, DeviceClass)(each) for each in described.CLASSES}


def described_classes() -> tuple[described.DeviceClass, ...]:
    """The description of each, for people and programs."""
    return tuple(each.description for each in CLASSES.values())


def class_of(name: str) -> DeviceClass:
    """The class of that name. A class that only another version has, which an old row of the store
    may name, has no rules of its own."""
    return CLASSES.get(name) or DeviceClass(
        described.DeviceClass(
            name, one=f"{name} device", many=f"{name} devices", source="", example=""
        )
    )
