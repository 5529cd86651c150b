"""The kinds of interfaces of a USB device, from the descriptors that it gave the kernel.

Read from sysfs's `descriptors` and not from the folders of its interfaces: those cover the one
configuration in use, with one alternate each, and disappear when a driver takes the device to
export it. A device chooses the content, so this parser is total.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

# USB 2.0 specification, 9.6: what a descriptor is, and how long it is at least.
_DEVICE, _CONFIGURATION, _INTERFACE = 1, 2, 4
_DEVICE_BYTES, _CONFIGURATION_BYTES, _INTERFACE_BYTES = 18, 9, 9

# Eight configurations are the most that Linux accepts, and 64 KiB the most that each can have.
# Those of a webcam with many formats have some thousand bytes.
DESCRIPTORS_BYTES: Final = 1 << 16


def kinds_of(descriptors: bytes) -> Iterator[str | None]:
    """Yield `uCCSSPP` for each alternate of each interface of each configuration, in their order;
    None where something cannot be read, so that there may be more."""
    if len(descriptors) < _DEVICE_BYTES or descriptors[:2] != bytes((_DEVICE_BYTES, _DEVICE)):
        yield None
        return
    at, announced = _DEVICE_BYTES, descriptors[17]
    for _ in range(announced):
        head = descriptors[at : at + _CONFIGURATION_BYTES]
        size = int.from_bytes(head[2:4], "little")
        whole = descriptors[at : at + size]
        if len(head) < _CONFIGURATION_BYTES or head[1] != _CONFIGURATION or len(whole) < size:
            yield None
            return
        yield from _in_configuration(whole)
        at += size
    if at != len(descriptors) or not announced:
        yield None


def _in_configuration(text: bytes) -> Iterator[str | None]:
    at = 0
    while at < len(text):
        each = text[at : at + text[at]]
        if text[at] < 2 or len(each) < text[at]:
            yield None
            return
        if each[1] == _INTERFACE:
            yield "u" + each[5:8].hex() if len(each) >= _INTERFACE_BYTES else None
        at += len(each)
