"""Other holders and users, on this machine, of the data of disks in a folder of local mode.

A file there may be behind a loop device, which may be in the folder too, be mounted, or belong to
another user; a block device may be in use under another name. The folder of another VM may contain
the same data; that only shows when both are lent (reserve.py).
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Collection
from functools import partial
from typing import Final

import attrs
from pedos_host.exclusive import IN_USE, is_held
from pedos_host.in_time import in_time
from pedos_protocol.fields import SHARES_MAX
from pedos_protocol.names import harmless_text, natural_key

from pedos_agent.device_classes.block.areas import (
    Area,
    Areas,
    Disks,
    file_area,
    overlap,
    path_base,
    sharing,
)
from pedos_agent.device_classes.block.block_use import REASON_MAX, SWAP, swap_files
from pedos_agent.device_classes.block.discovery_block import uses
from pedos_agent.device_classes.block.disk import Disk, with_held_sharers
from pedos_agent.inventory.local_device import LocalDevice
from pedos_agent.inventory.looking import seen
from pedos_agent.system.reading import is_gone, is_starved, read_table
from pedos_agent.system.roots import Roots

_SAME: Final = "the same disk as"


def with_data(
    found: list[LocalDevice],
    lent: Collection[str],
    roots: Roots,
    is_held: Callable[[str], bool] = is_held,
) -> list[LocalDevice]:
    """The disks among `found` with the place of their data, which of them share some, and why they
    are in use. `lent` are the ids of those that this agent lends.

    OSError if that is unknown for all; a device that cannot be looked at is `unseen`.
    """
    if not any(isinstance(item, Disk) for item in found):
        return found
    disks = Disks(roots)

    def placed_at(item: LocalDevice) -> LocalDevice:
        if not isinstance(item, Disk):
            return item
        return attrs.evolve(item, areas=_areas(item, disks))

    placed = _each_seen(found, placed_at)
    reasons = _Reasons(placed, disks, roots)
    ours = [item.areas for item in placed if isinstance(item, Disk) and item.device.device in lent]

    def looked_at(item: LocalDevice) -> LocalDevice:
        if item.pin is None or not isinstance(item, Disk):
            return item
        busy = reasons.of(item)
        is_ours = any(overlap(item.areas, areas) for areas in ours)
        # The agent itself holds what it lends, and with it its disk.
        if busy is None and _number(item) and not is_ours and is_held(item.pin.path):
            busy = IN_USE
        busy = None if busy is None else harmless_text(busy)
        return attrs.evolve(item, device=attrs.evolve(item.device, busy=busy))

    return with_held_sharers(_with_shares(_each_seen(placed, looked_at), lent))


def _each_seen(
    found: list[LocalDevice], look: Callable[[LocalDevice], LocalDevice]
) -> list[LocalDevice]:
    looks = (seen(*item.key, partial(look, item)) for item in found)
    return [item for item in looks if item is not None]


def why_used(item: Disk, roots: Roots) -> str | None:
    """Why a disk that discovery has found is in use at this moment, None if it is not: many uses
    have no event in its folder, so the last look may have missed them. OSError if unknown."""
    disks = Disks(roots)
    now = attrs.evolve(item, areas=_areas(item, disks))
    return _Reasons([now], disks, roots).of(now)


def _number(item: LocalDevice) -> str | None:
    """MAJOR:MINOR of a block device, as sysfs has it; None for a file."""
    if item.inode is None or not item.inode.special:
        return None
    return f"{os.major(item.inode.special)}:{os.minor(item.inode.special)}"


def _areas(item: Disk, disks: Disks) -> Areas:
    if item.inode is None:
        return ()
    number = _number(item)
    own = file_area(item.inode.device, item.inode.number)
    return (own,) if number is None else disks.areas_of(number)


class _Reasons:
    """Why disks are in use on this machine, as of one look."""

    def __init__(self, found: list[LocalDevice], disks: Disks, roots: Roots) -> None:
        has_nodes = any(_number(item) is not None for item in found)
        self._by_number = uses(roots) if has_nodes else {}
        self._swaps: set[str] = set()
        self._perhaps: str | None = None
        self._look_at_swap(roots)
        self._loops: dict[str, list[tuple[str, Areas]]] = defaultdict(list)
        for name, areas in disks.loops().items():
            if areas is None:
                self._perhaps = f"perhaps used by {name}, which cannot be looked at"
            for base in {area.base for area in areas or ()}:
                self._loops[base].append((name, areas or ()))

    def _look_at_swap(self, roots: Roots) -> None:
        """Files with swap space, as far as this process can see them; it cannot see those of a
        container's host. The kernel itself is asked when a file is lent for writing
        (reserve.py)."""
        for path in swap_files(read_table(f"{roots.proc}/swaps")):
            try:
                status = in_time(path, partial(os.stat, path), path=path)
            except OSError as error:
                if is_starved(error):
                    raise
                if not is_gone(error) and not isinstance(error, PermissionError):
                    shown = harmless_text(path, REASON_MAX)
                    self._perhaps = f"perhaps {SWAP}: {shown} cannot be looked at"
            else:
                self._swaps.add(file_area(status.st_dev, status.st_ino).base)

    def of(self, item: Disk) -> str | None:
        """None if it is not in use."""
        number = _number(item)
        if any(area.base in self._swaps for area in item.areas):
            return SWAP
        if number is not None:
            return self._by_number.get(number)
        # By the identity of the file if its file system tells it, and otherwise by its path.
        own = (*item.areas, *_by_path(item)) if self._loops else item.areas
        for area in own:
            for name, areas in self._loops.get(area.base, ()):
                if overlap(own, areas):
                    return f"used by {name}"
        return self._perhaps


def _by_path(item: LocalDevice) -> Areas:
    """A file by its path, as the kernel has it: that asks no file system."""
    return () if item.pin is None else (Area(path_base(os.readlink(item.pin.path))),)


def _with_shares(found: list[LocalDevice], lent: Collection[str]) -> list[LocalDevice]:
    """With the ids of those that share data. Of those with the very same data, all but one are
    busy, because two VMs would write it: the exception is the lent one, or the first."""
    first: dict[object, Disk] = {}
    for item in sorted(found, key=lambda item: item.device.device not in lent):
        if isinstance(item, Disk) and item.inode is not None:
            first.setdefault(item.inode.special or item.inode, item)
    shares = sharing({item.device.device: item.areas for item in first.values()})
    result = []
    for item in found:
        if item.inode is None:
            result.append(item)
            continue
        device = item.device
        holder = first[item.inode.special or item.inode].device.device
        others = shares.get(device.device, set()) - {device.parent}
        busy = device.busy
        if holder != device.device:
            others, busy = {holder}, f"{_SAME} {holder}"
        elif busy is None and len(others) > SHARES_MAX:
            busy = f"its data is that of {len(others)} other devices"
        listed = tuple(sorted(others, key=natural_key)[:SHARES_MAX])
        device = attrs.evolve(device, shares=listed, busy=busy and harmless_text(busy))
        result.append(attrs.evolve(item, device=device))
    return result
