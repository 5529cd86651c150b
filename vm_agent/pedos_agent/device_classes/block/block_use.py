"""This VM's own uses of its block devices: mounts, swap, holders, and disks lent by hand.

Read from /proc and sysfs, whose roots are parameters so that tests bring their own tree. Names of
mount points and volumes are users' text, and are made harmless before they are shown. OSError if
something cannot be read: otherwise an unseen use would count as none.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

from pedos_protocol.names import harmless_text

from pedos_agent.system.reading import (
    TableTooLong,
    is_starved,
    names_in,
    read_field,
    read_note,
    words,
)

SWAP: Final = "used as swap space"
REASON_MAX: Final = 80  # of a mount point; a reason is a clause of a sentence

_OCTAL: Final = re.compile(r"\\([0-7]{3})")
_NUMBER: Final = re.compile(r"[0-9]+:[0-9]+")


def mounted(mountinfo: Iterable[str], numbers: Mapping[str, str]) -> dict[str, str]:
    """Device number -> why it is in use, from the lines of /proc/self/mountinfo (proc(5)).

    `numbers` are the numbers of device nodes by their paths: file systems that span devices (btrfs)
    have a number of their own, and only the source tells. If the table is too long, each of them
    may be mounted.
    """
    found: dict[str, str] = {}
    try:
        for number, reason in _mounts(mountinfo, numbers):
            found.setdefault(number, reason)
    except TableTooLong:
        for number in numbers.values():
            found.setdefault(
                number, "perhaps mounted: this VM has too many mounts to read them all"
            )
    return found


def _mounts(mountinfo: Iterable[str], numbers: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    known = set(numbers.values())
    for line in mountinfo:
        # ID PARENT MAJ:MIN ROOT POINT OPTIONS [TAGS...] - TYPE SOURCE SUPER
        fields = line.split(" ")
        try:
            number, point = fields[2], fields[4]
            source = fields[fields.index("-", 5) + 2]
        except (ValueError, IndexError):
            continue
        for each in (number, numbers.get(_plain(source))):
            if each in known:
                yield each, f"mounted at {harmless_text(_plain(point), REASON_MAX)}"


def swapped(swaps: str, numbers: Mapping[str, str]) -> dict[str, str]:
    """Device number -> why it is in use, from /proc/swaps."""
    found = {}
    for path, _ in _swaps(swaps):
        number = numbers.get(path)
        if number is not None:
            found[number] = SWAP
    return found


def swap_files(swaps: str) -> list[str]:
    """The paths of files with swap space, from /proc/swaps; they may be another root's."""
    return [path for path, kind in _swaps(swaps) if kind == "file"]


def _swaps(swaps: str) -> Iterator[tuple[str, str]]:
    for line in swaps.split("\n")[1:]:
        path, kind, *_ = [*re.split("[ \t]+", line), ""]
        yield _plain(path), kind


def backing_file(sys_root: Path, name: str) -> str:
    """The path of the file behind a loop device, which is users' text; "" for no loop device."""
    where = f"{sys_root}/class/block/{name}/loop/backing_file"
    return read_field(where) if name.startswith("loop") else ""


def looped(sys_root: Path, names: Iterable[str], numbers: Mapping[str, str]) -> dict[str, str]:
    """Device number -> why it is in use, from the loop devices among `names`: these neither are
    holders of the disk that they are made of nor have it open exclusively. One that cannot be
    looked at may be made of any."""
    found: dict[str, str] = {}
    unknown: dict[str, str] = {}
    for name in names:
        try:
            # A node that was made again since is shown as deleted.
            path = backing_file(sys_root, name).removesuffix(" (deleted)")
        except OSError as error:
            if is_starved(error):
                raise
            reason = f"perhaps used by {name}, which cannot be looked at: {words(error)}"
            unknown = dict.fromkeys(numbers.values(), reason)
        else:
            number = numbers.get(path)
            if number is not None:
                found[number] = f"used by {name}"
    return unknown | found


def volume(sys_root: Path, name: str) -> str:
    """The name of a volume of the device mapper; "" for other devices."""
    return read_field(f"{sys_root}/class/block/{name}/dm/name") if name.startswith("dm-") else ""


def held(sys_root: Path, name: str) -> str | None:
    """Why a device is in use if a volume, a RAID or an encrypted disk is made of it."""
    holders = names_in(f"{sys_root}/class/block/{name}/holders")
    if not holders:
        return None
    shown = []
    for holder in holders:
        # Only to name it.
        mapped = read_note(f"{sys_root}/class/block/{holder}/dm/name")
        shown.append(f"{holder} ({mapped})" if mapped else holder)
    return harmless_text(f"part of {', '.join(shown)}", REASON_MAX)


def made_of(sys_root: Path, name: str) -> set[str]:
    """The volumes, RAIDs and encrypted disks that are made of a device, and of one another."""
    found: set[str] = set()
    below = [name]
    while below:
        holders = names_in(f"{sys_root}/class/block/{below.pop()}/holders")
        below += [holder for holder in holders if holder not in found]
        found.update(holders)
    return found


def untold(name: str, error: OSError) -> str:
    """Why a disk that is to be released counts as used."""
    return harmless_text(f"whether {name} is in use cannot be told: {words(error)}")


def is_number(text: str) -> bool:
    """Is `text` MAJOR:MINOR?"""
    return _NUMBER.fullmatch(text) is not None


def _plain(text: str) -> str:
    """The kernel writes space, tab, newline and backslash in a path as three octal digits."""
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), text)
