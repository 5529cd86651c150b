"""Which part of which disk a mapping of the device mapper is (linux/dm-ioctl.h).

sysfs tells which disks a volume is on, and not where on them: all volumes of a group are on the
same disks and share nothing. The table tells the place. An agent without capabilities may not read
it; the caller must then take the whole of those disks, and sysfs tells at least which volume of LVM
it is.
"""

from __future__ import annotations

import fcntl
import os
import re
import struct
from collections.abc import Iterator
from typing import Final

from pedos_protocol.frozen import frozen

from pedos_agent.device_classes.block.block_use import is_number
from pedos_agent.system.reading import is_starved
from pedos_agent.system.roots import Roots

# _IOWR(0xfd, 12, struct dm_ioctl)
_DM_TABLE_STATUS: Final = 0xC138FD0C
_VERSION: Final = (4, 0, 0)
# version[3], data_size, data_start, target_count, open_count, flags, event_nr, padding, dev
_HEAD: Final = struct.Struct("3I3IiIIIQ")
_HEAD_BYTES: Final = 312  # with the name and the UUID, which are not used here
_TARGET: Final = struct.Struct("QQiI16s")  # sector_start, length, status, next, target_type
_AS_TABLE: Final = 1 << 4  # DM_STATUS_TABLE_FLAG
_CUT: Final = 1 << 8  # DM_BUFFER_FULL_FLAG
_NO_FLUSH: Final = 1 << 11  # to look must not write
_SECURE_DATA: Final = 1 << 15  # the table of an encrypted disk may have its key in it
# Bytes of one table: a volume in thousands of pieces. Mappings with larger tables count as being
# anywhere.
_TABLE_BYTES: Final = 256 * 1024

# Targets that are one piece of one device: which words of their parameters give the place.
_PLACED: Final = {"linear": (0, 1), "delay": (0, 1), "flakey": (0, 1), "crypt": (3, 4)}
# The data behind these two is an object of its own: these words identify it.
_OPAQUE: Final = {"thin": (0, 1), "snapshot": (1,)}
# They hold nothing.
_EMPTY: Final = frozenset(("zero", "error"))


@frozen
class Target:
    """A piece of a mapping: `length` sectors of `device` (MAJOR:MINOR) from `start` on.

    Those of a stripe are interleaved and not `in_order`. `opaque` identifies an object that is no
    piece of a device; with neither, it is some other kind of mapping, with or without data.
    """

    start: int = 0
    length: int = 0
    device: str = ""
    in_order: bool = True
    opaque: str = ""
    has_data: bool = True


@frozen
class Volume:
    """A volume of LVM; if it has parts for data, metadata or copies, each part is one."""

    group: str
    volume: str


# LVM-, the group's 32 characters, the volume's, and what it is of that volume: -real, -cow, -tpool
_LVM: Final = re.compile(r"LVM-([0-9A-Za-z]{32})([0-9A-Za-z]{32})(?:-[a-z0-9]+)*")


def lvm_volume(uuid: str) -> Volume | None:
    """The volume of LVM with this UUID in the device mapper; None for other mappings."""
    match = _LVM.fullmatch(uuid)
    return Volume(match[1], match[2]) if match else None


def table(number: str, roots: Roots) -> list[Target] | None:
    """The table of the mapping with this device number, None if it cannot be had. OSError if this
    process lacks something for it."""
    major, _, minor = number.partition(":")
    device = int(minor) & 0xFF | int(major) << 8 | (int(minor) & ~0xFF) << 12
    flags = _AS_TABLE | _NO_FLUSH | _SECURE_DATA
    request = bytearray(_TABLE_BYTES)
    _HEAD.pack_into(request, 0, *_VERSION, _TABLE_BYTES, _HEAD_BYTES, 0, 0, flags, 0, 0, device)
    try:
        control = os.open(roots.dev / "mapper/control", os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.ioctl(control, _DM_TABLE_STATUS, request)
        finally:
            os.close(control)
    except OSError as error:
        # None exists; no permission; no such mapping any more; another version; it fails.
        if is_starved(error):
            raise
        return None
    try:
        return parsed(request)
    finally:
        request[:] = bytes(len(request))  # as the kernel does with its own copy


def parsed(answer: bytes | bytearray) -> list[Target] | None:
    """The targets in the kernel's answer; None if it does not have all of them."""
    try:
        fields = _HEAD.unpack_from(answer)
    except struct.error:
        return None
    start, count, flags = fields[4], fields[5], fields[7]
    if flags & _CUT:
        return None
    try:
        return list(_targets(answer[start:], count))
    except (struct.error, ValueError, IndexError):
        return None


def _targets(data: bytes | bytearray, count: int) -> Iterator[Target]:
    at = 0
    for _ in range(count):
        _, length, _, following, kind = _TARGET.unpack_from(data, at)
        words = data[at + _TARGET.size :].split(b"\0", 1)[0].decode("ascii", "replace").split()
        yield from _of_kind(kind.split(b"\0", 1)[0].decode("ascii", "replace"), length, words)
        # Behind the last there is none, and to read one more is an error.
        at = following if following > at else len(data)


def _of_kind(kind: str, length: int, words: list[str]) -> Iterator[Target]:
    if kind in _EMPTY:
        yield Target(has_data=False)
    elif kind in _OPAQUE:
        yield Target(opaque=":".join((kind, *(words[at] for at in _OPAQUE[kind]))))
    elif kind == "striped":  # COUNT CHUNK, and for each DEVICE START
        stripes = list(zip(words[2::2], words[3::2], strict=True))
        if len(stripes) != int(words[0]):
            raise ValueError(words)
        for device, start in stripes:
            yield Target(int(start), length // len(stripes), _number(device), in_order=False)
    elif kind in _PLACED:
        device, start = (words[at] for at in _PLACED[kind])
        yield Target(int(start), length, _number(device))
    else:
        yield Target()


def _number(text: str) -> str:
    if not is_number(text):
        raise ValueError(text)
    return text
