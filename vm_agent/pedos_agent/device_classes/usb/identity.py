"""The identity of a USB device: VENDOR:PRODUCT:SERIAL:KINDS, see pedos_protocol.kinds.

It is read from what the device told the kernel when it was plugged in, so it is the same while the
device is lent, deauthorised or without a driver.
"""

from __future__ import annotations

import errno

from pedos_protocol.kinds import with_kinds

from pedos_agent.device_classes.sysfs import hex_field
from pedos_agent.device_classes.usb.usb_kinds import DESCRIPTORS_BYTES, kinds_of
from pedos_agent.inventory.identities import part
from pedos_agent.system.reading import read_bytes


def numbers_of(folder: str) -> tuple[str, str] | None:
    """Vendor and product of the device there; None if it is gone. OSError."""
    vendor, product = hex_field(folder, "idVendor"), hex_field(folder, "idProduct")
    return (vendor, product) if vendor and product else None


def identity_of(folder: str) -> str | None:
    """The identity of the device there; None if it is gone. OSError."""
    numbers = numbers_of(folder)
    if numbers is None:
        return None
    head = ":".join((*numbers, part(_serial(folder))))
    return with_kinds(head, "usb", _kinds(folder))


def _serial(folder: str) -> str:
    """As it is, with blanks at its ends: two that differ in them are two."""
    serial = read_bytes(f"{folder}/serial") or b""
    return serial.removesuffix(b"\n").decode("utf-8", "surrogateescape")


def _kinds(folder: str) -> list[str | None]:
    """The kinds of its interfaces; None among them if there may be more."""
    try:
        descriptors = read_bytes(f"{folder}/descriptors", DESCRIPTORS_BYTES)
    except OSError as error:
        if error.errno != errno.EFBIG:
            raise
        return [None]
    return [None] if descriptors is None else list(kinds_of(descriptors))
