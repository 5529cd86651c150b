"""Local mode's disks: a file in the folder that is not empty, or a block device, or a link to one.

A file has no identity of its own, as a stick has; its owner can give it one, so that it can be
assigned by it: an extended attribute, which stays with the file under another name.

`folder_data` determines other uses on this machine, and which disks have the same data.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Final

import attrs
import trio
from pedos_protocol.agent_messages import Device
from pedos_protocol.names import frontend_names, harmless_text, is_identity

from pedos_agent.device_classes.block import disk_events
from pedos_agent.device_classes.block.disk import Disk, disk_marks
from pedos_agent.device_classes.block.drives import has_disc
from pedos_agent.device_classes.block.mounts import is_mounted
from pedos_agent.device_classes.pinned import Pinner, shown_name
from pedos_agent.inventory.local_device import Inode, LocalDevice, Pin
from pedos_agent.inventory.looking import seen
from pedos_agent.system.reading import is_there, may_write, read_field
from pedos_agent.system.revision import Revision
from pedos_agent.system.roots import ROOTS
from pedos_agent.system.uevents import KERNEL

BLKROGET: Final = 0x125E  # linux/fs.h: is the block device read-only?
SYS_BLOCK: Final = "/sys/dev/block"
IDENTITY: Final = "user.pedos.identity"  # xattr(7)
_NO_ATTRIBUTE: Final = frozenset((errno.ENODATA, errno.EOPNOTSUPP))
_FRONTENDS: Final = frozenset(frontend_names())


def is_borrowed(path: Path) -> bool:
    """Whether that is a disk that a VM has borrowed."""
    return path.name in _FRONTENDS and is_mounted(path)


def disk_at(path: str, device_class: str, device_id: str, pin: Pinner) -> LocalDevice | None:
    """The disk to which a name leads; None if it is none. OSError."""
    pinned = pin(path, _told_by_file_system)
    if pinned is None:
        return None
    held, status, (writable, identity) = pinned
    if stat.S_ISREG(status.st_mode):
        size = status.st_size
    elif stat.S_ISBLK(status.st_mode):
        if not has_disc(held.path):
            return None
        size, read_only = _measure(held.path)
        writable = writable and not read_only
    else:
        return None
    if not size:
        return None  # a drive without a disk, or a file that is just being made
    device = Device(
        device_class=device_class,
        device=device_id,
        identity=identity,
        description=harmless_text(shown_name(path)),
        size=size,
        parent=None,
        read_only=not writable,
        busy=None,
    )
    inode = Inode.of(status)
    return Disk(device, path, inode, _disk_marks(inode.special), held)


def _told_by_file_system(pin: Pin, status: os.stat_result) -> tuple[bool, str]:
    """Whether it can be written to, and its identity."""
    writable = bool(status.st_mode & 0o222) and may_write(pin.path)
    return writable, _identity(pin.path) if stat.S_ISREG(status.st_mode) else ""


def _identity(path: str) -> str:
    """The identity that the owner gave to a file; "" if none, or one that is malformed."""
    try:
        text = os.getxattr(path, IDENTITY).decode("ascii", "replace")
    except OSError as error:
        if error.errno in _NO_ATTRIBUTE:
            return ""
        raise
    return text if is_identity(text) else ""


def _disk_marks(number: int) -> tuple[str, ...]:
    """Those of a block device; a file has none."""
    where = f"{SYS_BLOCK}/{os.major(number)}:{os.minor(number)}"
    return disk_marks(where) if number else ()


def _measure(path: str) -> tuple[int, bool]:
    """Size in bytes of a block device, and whether its driver refuses writes."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        size = os.lseek(fd, 0, os.SEEK_END)
        (read_only,) = struct.unpack("i", fcntl.ioctl(fd, BLKROGET, struct.pack("i", 0)))
        return size, bool(read_only)
    finally:
        os.close(fd)


def with_parents(found: list[LocalDevice], sys_block: str = SYS_BLOCK) -> list[LocalDevice]:
    """Name the disk of a partition: dom0 never lends both at once."""
    by_number = {item.inode.special: item for item in found if item.inode and item.inode.special}
    looks = (seen(*item.key, partial(_with_parent, item, by_number, sys_block)) for item in found)
    return [item for item in looks if item is not None]


def _with_parent(
    item: LocalDevice, by_number: dict[int, LocalDevice], sys_block: str
) -> LocalDevice:
    if item.inode is None or not item.inode.special:
        return item
    number = item.inode.special
    node = f"{sys_block}/{os.major(number)}:{os.minor(number)}"
    # The node is a link, and its parent is that of the folder to which it leads.
    whole = read_field(f"{node}/../dev") if is_there(f"{node}/partition") else ""
    major, _, minor = whole.partition(":")
    if not major.isdecimal() or not minor.isdecimal():
        return item  # not a partition
    parent = by_number.get(os.makedev(int(major), int(minor)))
    if parent is None:
        return item
    return attrs.evolve(item, device=attrs.evolve(item.device, parent=parent.device.device))


class DiskUses:
    """Uses of disks by others, for which the folders have no event; a wait only covers those that
    matter. A file is used by loop devices and as swap space; a disk can be mounted, too."""

    def __init__(self) -> None:
        self._changes = {what: Revision() for what in ("loops", "mounts", "swaps")}
        self._seen: dict[str, int] = {}
        self._matter: set[str] = set()

    async def follow(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Listen for changes for ever."""
        loops, mounts, swaps = self._changes.values()
        await disk_events.follow(ROOTS, KERNEL, loops, mounts, swaps, task_status=task_status)

    def begin(self) -> None:
        """A look begins: it may miss changes from after this."""
        self._seen = {what: count.number for what, count in self._changes.items()}

    def matter_to(self, found: list[LocalDevice]) -> None:
        """The result of a look."""
        inodes = [item.inode for item in found if item.inode is not None]
        self._matter = {"loops", "swaps"} if inodes else set()
        if any(inode.special for inode in inodes):
            self._matter.add("mounts")

    def waits(self) -> list[Callable[[], Awaitable[object]]]:
        """Each ends at a relevant change of one kind."""
        return [partial(self._changes[what].after, self._seen[what]) for what in self._matter]
