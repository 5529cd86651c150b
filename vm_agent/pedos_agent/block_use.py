"""What this VM itself does with its block devices: mounts, swap, holders, and disks lent by hand.

Read from /proc and sysfs, whose roots are parameters so that tests bring their own tree. Names of
mount points and volumes are users' text: harmless text before it is shown.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

import attrs
from pedos_protocol.names import harmless_text

# A mount table with thousands of entries is one of containers; they all fit.
TABLE_BYTES: Final = 4 << 20
FIELD_BYTES: Final = 4096
REASON_MAX: Final = 80  # of a mount point; a reason is a clause of a sentence

_OCTAL: Final = re.compile(r"\\([0-7]{3})")
_NUMBER: Final = re.compile(r"[0-9]+:[0-9]+")
# /sys/bus/xen-backend/devices/vbd-DOMID-NUMBER
_BACKEND: Final = re.compile(r"vbd-([0-9]+)-[0-9]+")


@attrs.frozen
class Roots:
    """Where the kernel's and udev's trees are."""

    sys: Path = Path("/sys")
    proc: Path = Path("/proc")
    udev: Path = Path("/run/udev/data")
    dev: Path = Path("/dev")


#: Those of this machine.
ROOTS: Final = Roots()


def read_field(path: str, limit: int = FIELD_BYTES) -> str:
    """The text of a small file; "" when it is not there or not for us.

    A look reads dozens of them, so not with a file object, which takes four calls more each.
    """
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        return os.read(file, limit).decode("utf-8", "replace").strip()
    except OSError:
        return ""
    finally:
        os.close(file)


def read_table(path: str) -> str:
    """The text of a table of the kernel, which gives it a page at a time; "" as above."""
    try:
        with open(path, "rb") as file:
            return file.read(TABLE_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""


def names_in(folder: str | os.PathLike[str]) -> list[str]:
    """The names in a folder; none when it is not there."""
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def mounted(mountinfo: str, numbers: Mapping[str, str]) -> dict[str, str]:
    """Device number -> why it is in use, from /proc/self/mountinfo (proc(5)).

    `numbers` are the numbers of device nodes by their paths: file systems that span devices (btrfs)
    have a number of their own, and only the source tells.
    """
    found: dict[str, str] = {}
    for line in mountinfo.split("\n"):  # a mount point may have any other end of a line in it
        # ID PARENT MAJ:MIN ROOT POINT OPTIONS [TAGS...] - TYPE SOURCE SUPER
        fields = line.split(" ")
        try:
            number, point = fields[2], fields[4]
            source = fields[fields.index("-", 5) + 2]
        except (ValueError, IndexError):
            continue
        reason = f"mounted at {harmless_text(_plain(point), REASON_MAX)}"
        for each in (number, numbers.get(_plain(source))):
            if each is not None and each != "0:0":
                found.setdefault(each, reason)
    return found


def swapped(swaps: str, numbers: Mapping[str, str]) -> dict[str, str]:
    """Device number -> why it is in use, from /proc/swaps."""
    found = {}
    for line in swaps.split("\n")[1:]:
        path = re.split("[ \t]", line, maxsplit=1)[0]
        number = numbers.get(_plain(path))
        if number is not None:
            found[number] = "used as swap space"
    return found


def backing_file(sys_root: Path, name: str) -> str:
    """The path of what a loop device is made of, which is users' text; "" for what is none."""
    where = f"{sys_root}/class/block/{name}/loop/backing_file"
    return read_field(where) if name.startswith("loop") else ""


def looped(sys_root: Path, names: Iterable[str], numbers: Mapping[str, str]) -> dict[str, str]:
    """Device number -> why it is in use, from the loop devices among `names`: they neither are
    holders of a disk that they are made of nor have it open exclusively."""
    found = {}
    for name in names:
        # A node that was made anew since is said to be deleted.
        path = backing_file(sys_root, name).removesuffix(" (deleted)")
        number = numbers.get(path)
        if number is not None:
            found[number] = f"used by {name}"
    return found


def volume(sys_root: Path, name: str) -> str:
    """The name of a volume of the device mapper; "" for what is none."""
    return read_field(f"{sys_root}/class/block/{name}/dm/name") if name.startswith("dm-") else ""


def held(sys_root: Path, name: str) -> str | None:
    """Why a device is in use if a volume, a RAID or an encrypted disk is made of it."""
    holders = names_in(f"{sys_root}/class/block/{name}/holders")
    if not holders:
        return None
    shown = []
    for holder in holders:
        mapped = volume(sys_root, holder)
        shown.append(f"{holder} ({mapped})" if mapped else holder)
    return harmless_text(f"part of {', '.join(shown)}", REASON_MAX)


def lent(sys_root: Path, dev_numbers: Mapping[str, str]) -> dict[str, set[int]]:
    """Device number -> the domains to which this VM's blkback serves it, whoever told it so."""
    found: dict[str, set[int]] = {}
    known = set(dev_numbers.values())
    for domid, device in _backends(sys_root):
        major, _, minor = device.partition(":")
        try:
            number = f"{int(major, 16)}:{int(minor, 16)}"
        except ValueError:
            continue  # not yet connected to a device
        if number in known:
            found.setdefault(number, set()).add(domid)
    return found


def connecting(sys_root: Path) -> bool:
    """Whether a backend of this VM's blkback does not know its device yet. The hotplug script tells
    it, which is no event of the kernel's."""
    return any(device in ("", "0:0") for _, device in _backends(sys_root))


def _backends(sys_root: Path) -> Iterator[tuple[int, str]]:
    """Of each backend of blkback the domain that it serves, and its device: MAJOR:MINOR in
    hexadecimal digits."""
    folder = f"{sys_root}/bus/xen-backend/devices"
    for name in names_in(folder):
        if match := _BACKEND.fullmatch(name):
            yield int(match[1]), read_field(f"{folder}/{name}/physical_device")


def is_number(text: str) -> bool:
    """Is `text` MAJOR:MINOR?"""
    return _NUMBER.fullmatch(text) is not None


def _plain(text: str) -> str:
    """The kernel writes space, tab, newline and backslash in a path as three octal digits."""
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), text)
