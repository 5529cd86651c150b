"""The classes of devices that the service has: the one table."""

from __future__ import annotations

from pedos_protocol import device_classes as described

from pedos_dom0.device_classes.base import DeviceClass
from pedos_dom0.device_classes.block import Block

#: Those that have something of their own.
_OWN = {"block": Block}
#: By name. A class needs no more than a description to be listed.
CLASSES = {each.name: _OWN.get(each.name, DeviceClass)(each) for each in described.CLASSES}


def described_classes() -> tuple[described.DeviceClass, ...]:
    """What a person and a program need to know of each."""
    return tuple(each.description for each in CLASSES.values())


def class_of(name: str) -> DeviceClass:
    """The class of that name. One that only another version has, of which an old row of the store
    may be, has nothing of its own."""
    return CLASSES.get(name) or DeviceClass(
        described.DeviceClass(
            name, one=f"{name} device", many=f"{name} devices", source="", example=""
        )
    )
