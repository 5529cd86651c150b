"""Which bytes of what a disk holds, to recognise two names of the same data.

Two loop devices of one file, two mappings of one piece of a disk, an image and a loop device that
is made of it: each has its own name and number, and writing through one of them while another VM
has the other destroys the data. So a device is followed down to what holds its data: a file, or a
disk that is made of nothing else, from which byte to which. Inodes and numbers are compared, not
paths: a file has many names, and its path may be visible elsewhere or be removed.
"""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

import attrs
from pedos_host.in_time import in_time

from pedos_agent.device_classes.block.block_use import is_number
from pedos_agent.device_classes.block.device_mapper import Target, Volume, lvm_volume, table
from pedos_agent.device_classes.block.loop_status import LoopStatus, status_of
from pedos_agent.system.reading import is_gone, is_starved, link_target, names_in, read_field, words
from pedos_agent.system.roots import Roots

SECTOR: Final = 512  # of `size` and `start` in sysfs, for devices with other sectors too
# A volume in more pieces than this counts as being all over its disks.
PIECES_MAX: Final = 1024
# Devices made of devices: real stacks have five or so, and sysfs cannot have a circle.
DEPTH_MAX: Final = 16


@attrs.frozen
class Area:
    """Bytes from `start` up to `end` of what `base` stands for. `path` leads there, "" if no
    certain path is known. `volumes`: somewhere between the two, as the first of these volumes of
    LVM, which is made of the others. `unknown` is why its base cannot be determined."""

    base: str
    start: float = 0
    end: float = math.inf
    path: str = attrs.field(default="", eq=False)
    volumes: tuple[Volume, ...] = ()
    unknown: str = attrs.field(default="", eq=False)

    def overlaps(self, other: Area) -> bool:
        """Do both have a byte in common, as far as is known?"""
        if self.base != other.base or self.start >= other.end or other.start >= self.end:
            return False
        return not self._is_apart(other)

    def _is_apart(self, other: Area) -> bool:
        """LVM gives no byte to two volumes of a group, unless one is made of the other."""
        if not self.volumes or not other.volumes:
            return False
        one, another = self.volumes[0], other.volumes[0]
        is_one_group = one.group == another.group
        return is_one_group and one not in other.volumes and another not in self.volumes


Areas = tuple[Area, ...]


def overlap(some: Areas, others: Areas) -> bool:
    """Do two devices share data?"""
    return any(one.overlaps(other) for one in some for other in others)


def file_area(device: int, inode: int) -> Area:
    """A whole file, however long it is or grows."""
    return Area(f"file:{device}:{inode}")


def path_base(path: str) -> str:
    """A file of which only the path is known."""
    return f"path:{path}"


def why_unknown(areas: Areas) -> str | None:
    """Why the parts of a device cannot be determined; None if they can."""
    return next((area.unknown for area in areas if area.unknown), None)


def _by_path(areas: Areas) -> Areas:
    """The same bytes as of a file of which only the path is known."""
    return tuple(attrs.evolve(area, base=path_base(area.path)) for area in areas if area.path)


def sharing(devices: Mapping[str, Areas]) -> dict[str, set[str]]:
    """Which devices share data with which others, by their names."""
    if any(map(why_unknown, devices.values())):
        devices = {name: (*areas, *_by_path(areas)) for name, areas in devices.items()}
    by_base: dict[str, list[tuple[Area, str]]] = defaultdict(list)
    for name, areas in devices.items():
        for area in areas:
            by_base[area.base].append((area, name))
    found: dict[str, set[str]] = defaultdict(set)
    for some in by_base.values():
        some.sort(key=lambda each: each[0].start)
        for at, (area, name) in enumerate(some):
            for another, other in some[at + 1 :]:
                if another.start >= area.end:
                    break
                if other != name and area.overlaps(another):
                    found[name].add(other)
                    found[other].add(name)
    return found


@attrs.frozen
class _Extent:
    """The parts of a device. `is_exact`: in this order, each piece right after the other."""

    areas: Areas
    is_exact: bool = True

    def part(self, start: float, length: float) -> _Extent:
        """The parts of so many bytes of it from `start` on."""
        if not self.is_exact:
            return self  # some of it, and it is not known which
        found, at, end = [], 0.0, start + length
        for area in self.areas:
            size = area.end - area.start
            low, high = max(start, at), min(end, at + size)
            if low < high:
                area_start = area.start + low - at
                found.append(attrs.evolve(area, start=area_start, end=area_start + high - low))
            at += size
        return _Extent(tuple(found))


class Disks:
    """The block devices of this machine as of one look. OSError if it fails."""

    def __init__(
        self,
        roots: Roots,
        table: Callable[[str, Roots], list[Target] | None] = table,
        loop_status: Callable[[str], LoopStatus | None] = status_of,
    ) -> None:
        self._roots = roots
        self._table = table
        self._loop_status = loop_status
        self._known: dict[str, _Extent] = {}

    def areas(self, name: str) -> Areas:
        """Of the device with this name in sysfs."""
        return self._extent(name, 0).areas

    def areas_of(self, number: str) -> Areas:
        """Of the device with this number."""
        return self._of_number(number, 0).areas

    def loops(self) -> dict[str, Areas | None]:
        """The loop devices that are made of something; None for one that may be made of anything,
        because it cannot be looked at."""
        found: dict[str, Areas | None] = {}
        for name in filter(_is_loop, names_in(f"{self._roots.sys}/class/block")):
            try:
                if self._backing(name):
                    found[name] = self.areas(name)
            except OSError as error:
                if is_starved(error):
                    raise
                found[name] = None
        return found

    def _of_number(self, number: str, depth: int) -> _Extent:
        target = link_target(f"{self._roots.sys}/dev/block/{number}")
        if target is None:
            return _Extent((Area(f"disk:{number}"),))
        return self._extent(os.path.basename(target), depth)

    def _extent(self, name: str, depth: int) -> _Extent:
        known = self._known.get(name)
        if known is None:
            known = self._made_of(name, depth)
            if len(known.areas) > PIECES_MAX:
                bases = {
                    area.base: Area(area.base, path=area.path, unknown=area.unknown)
                    for area in known.areas
                }
                known = _Extent(tuple(bases.values()), is_exact=False)
            self._known[name] = known
        return known

    def _made_of(self, name: str, depth: int) -> _Extent:
        number = self._field(name, "dev")
        own = _Extent((Area(f"disk:{number}", path=f"{self._roots.dev}/{name}"),))
        if depth >= DEPTH_MAX or not is_number(number):
            return own
        start, size = self._field(name, "start"), self._field(name, "size")
        if start.isdecimal() and size.isdecimal() and self._field(name, "partition"):
            return self._partition(name, int(start), int(size), depth) or own
        if _is_loop(name):
            return self._loop(name, depth) or own
        if name.startswith("dm-"):
            return self._mapping(name, number, depth) or own
        return own

    def _partition(self, name: str, start: int, size: int, depth: int) -> _Extent | None:
        target = link_target(f"{self._roots.sys}/class/block/{name}")
        if target is None:
            return None  # unplugged
        whole = os.path.basename(os.path.dirname(target))
        return self._extent(whole, depth + 1).part(start * SECTOR, size * SECTOR)

    # Loop devices

    def _backing(self, name: str) -> str:
        return self._field(name, "loop/backing_file")

    def _loop(self, name: str, depth: int) -> _Extent | None:
        path = self._backing(name)
        if not path:
            return None
        offset = _number(self._field(name, "loop/offset"))
        limit = _number(self._field(name, "loop/sizelimit")) or math.inf
        return self._backed_by(name, path, depth).part(offset, limit)

    def _backed_by(self, name: str, path: str, depth: int) -> _Extent:
        """The part of a loop device as a whole: the kernel knows it by inode, and its path is only
        its former name and place."""
        node = self._node(path.removesuffix(" (deleted)"))
        try:
            loop = f"{self._roots.dev}/{name}"
            status = in_time(loop, partial(self._status, loop, path, node), path=path)
        except OSError as error:
            if is_starved(error):
                raise
            if node is None:
                # A file that is missing, or not visible to this process, is distinguished by its
                # path. In all other cases its file system is faulty.
                is_answer = is_gone(error) or isinstance(error, PermissionError)
                why = "" if is_answer else f"{path} cannot be looked at: {words(error)}"
                return _Extent((Area(path_base(path), unknown=why),))
            status = node
        if status.special:
            major, minor = os.major(status.special), os.minor(status.special)
            return self._of_number(f"{major}:{minor}", depth + 1)
        return _Extent((attrs.evolve(file_area(status.device, status.inode), path=path),))

    def _status(self, loop: str, path: str, node: LoopStatus | None) -> LoopStatus:
        """The kernel asks the file's file system, too."""
        return self._loop_status(loop) or node or _status_at(path)

    def _node(self, path: str) -> LoopStatus | None:
        """A device by the path of its node, as sysfs has both."""
        folder, _, name = path.rpartition("/")
        number = self._field(name, "dev") if folder == "/dev" and name else ""
        if not is_number(number):
            return None
        major, _, minor = number.partition(":")
        return LoopStatus(0, 0, os.makedev(int(major), int(minor)))

    # Mappings

    def _mapping(self, name: str, number: str, depth: int) -> _Extent | None:
        targets = self._table(number, self._roots)
        if targets is None:
            return self._all_of_slaves(name, depth)
        pieces: list[Area] = []
        is_exact = True
        for target in targets:
            if target.opaque:
                pieces.append(Area(target.opaque))
                is_exact = len(targets) == 1
            elif target.device:
                part = self._of_number(target.device, depth + 1)
                part = part.part(target.start * SECTOR, target.length * SECTOR)
                pieces += part.areas
                is_exact = is_exact and part.is_exact and target.in_order
            elif target.has_data:
                return self._all_of_slaves(name, depth)
            else:
                is_exact = False
        return _Extent(tuple(pieces), is_exact) if pieces else None

    def _all_of_slaves(self, name: str, depth: int) -> _Extent | None:
        """Its place on them is not known: so it may be anywhere, except that a volume of LVM is not
        where another one is."""
        slaves = names_in(f"{self._roots.sys}/class/block/{name}/slaves")
        areas = [area for slave in slaves for area in self._extent(slave, depth + 1).areas]
        if volume := lvm_volume(self._field(name, "dm/uuid")):
            areas = [attrs.evolve(area, volumes=(volume, *area.volumes)) for area in areas]
        # Each once: a volume of many parts has its disk below each.
        return _Extent(tuple(dict.fromkeys(areas)), is_exact=False) if areas else None

    def _field(self, name: str, field: str) -> str:
        return read_field(f"{self._roots.sys}/class/block/{name}/{field}")


def _status_at(path: str) -> LoopStatus:
    there = os.stat(path)
    return LoopStatus(there.st_dev, there.st_ino, there.st_rdev)


def _is_loop(name: str) -> bool:
    return name.startswith("loop") and name[4:].isdecimal()


def _number(text: str) -> int:
    return int(text) if text.isdecimal() else 0
