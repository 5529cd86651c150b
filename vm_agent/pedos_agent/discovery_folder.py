"""Local mode's devices: a file in DEVICES/CLASS is a device plugged into this VM.

In `block`, a regular file or block device (or a symlink to one) that is not empty is a disk. In
`usb`, `pci` and `mic` a regular file describes a device that can be listed: its first line is the
description, a second line `identity=...` the identity. All else that lies there (folders, FIFOs,
sockets, names that start with a dot) is no device.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import math
import os
import stat
import struct
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import attrs
import trio
from pedos_protocol.agent_messages import Device
from pedos_protocol.fields import DEVICES_MAX
from pedos_protocol.names import (
    DEVICE_CLASSES,
    frontend_names,
    harmless_text,
    is_identity,
    natural_key,
)
from pedos_vchan.folder_watch import FolderWatch
from pedos_vchan.in_time import in_time
from pedos_vchan.links import walk
from pedos_vchan.mounts import fuse_mounts
from pedos_vchan.waiting import first_of

from . import disk_events
from .block_use import ROOTS, Roots
from .discovery_block import Carried
from .drives import has_disc
from .folder_data import with_data
from .found import Found, Inode, Pin, device_id_of, disk_marks, unseen_class
from .looking import Looking, Untold, seen
from .mounts import is_mounted
from .priority import Priority
from .reading import is_there, link_target, may_write, names_in, read_field
from .report import Key
from .revision import Revision
from .uevents import KERNEL

log = logging.getLogger(__name__)

T = TypeVar("T")

DESCRIPTION_BYTES: Final = 4096  # of a description file that are read
# Between two scans: a file that is being copied in changes thousands of times a second.
SETTLE_SECONDS: Final = 0.02
# Between two looks at folders that cannot be watched: a person who plugs in a disk waits so long.
UNWATCHED_SECONDS: Final = 2.0
# More names than a VM may report devices are not looked at, so that a look stays short.
NAMES_MAX: Final = DEVICES_MAX
BLKROGET: Final = 0x125E  # linux/fs.h: is the block device read-only?
_FRONTENDS: Final = frozenset(frontend_names())
SYS_BLOCK: Final = "/sys/dev/block"


def scan(
    devices: Path,
    sys_block: str = SYS_BLOCK,
    carried: Carried = Carried(),  # noqa: B008 - it is immutable
    roots: Roots = ROOTS,
    *,
    names: Mapping[str, Sequence[str]] | None = None,
) -> list[Found]:
    """Look at all four folders once, or at these `names` in them by class.

    A file, or a folder, that cannot be looked at is `unseen`; OSError when this process lacks
    something for all of them.
    """
    found: list[Found] = []
    if names is None:
        names, _, found = chosen(devices, {}, NAMES_MAX)
    for device_class in DEVICE_CLASSES:
        look = _block_device if device_class == "block" else _described_device
        in_class = names.get(device_class, ())
        found += _scan_folder(devices / device_class, in_class, device_class, look)
    lent = {device for device, _ in carried.lent}
    return with_data(_with_parents(found, sys_block), lent, roots)


def chosen(
    devices: Path, ranks: Mapping[Key, int], at_most: int
) -> tuple[dict[str, list[str]], dict[str, int], list[Found]]:
    """The names to look at by class, how many are left out of each class because of `at_most`, and
    the classes whose folder cannot be read, `unseen`.

    Those whose device has a rank come first, the lowest before the others.
    """
    found, untold = [], Untold()
    for device_class in DEVICE_CLASSES:
        with untold.at(device_class):
            found += [
                (device_class, name, device_id_of(name))
                for name in names_in(devices / device_class)
                if not name.startswith(".")
            ]

    def order(item: tuple[str, str, str]) -> tuple[bool, object]:
        _, name, device = item
        # Names that are ids as they stand come first: a cleaned name must not take their place.
        return device != name, natural_key(name)

    found.sort(key=order)
    by_rank = sorted(found, key=lambda item: ranks.get((item[0], item[2]), math.inf))
    taken = set(by_rank[:at_most])
    names: dict[str, list[str]] = {}
    for item in found:
        if item in taken:
            names.setdefault(item[0], []).append(item[1])
    left_out = Counter(device_class for device_class, _, _ in by_rank[at_most:])
    return names, left_out, [unseen_class(*each) for each in untold.items()]


async def watch(
    devices: Path,
    deliver: Callable[[list[Found], Mapping[str, int]], None],
    priority: Priority,
    carried: Callable[[], Carried] = Carried,
    at_most: int = NAMES_MAX,
    *,
    failed: Callable[[str], None] = lambda _why: None,
    let_go: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Deliver what is there, now and after every change; started() after the first time.

    A change is one in the folders, and of what else uses disks: loop devices, mounts, swap space.
    No more than `at_most` names are looked at, by their `priority`; it is delivered how many are
    left out, by class. A look that failed is made again in a while; `failed` is told why, and
    `let_go` is to let go of what was removed meanwhile. Where the system has no more watches to
    give, it looks again every UNWATCHED_SECONDS instead.
    """
    folders = [str(devices / device_class) for device_class in DEVICE_CLASSES]
    left_out: Mapping[str, int] = {}
    uses = _Uses()
    wishes = 0
    said = False

    def scan_chosen(ranks: Mapping[Key, int], carried: Carried) -> list[Found]:
        nonlocal left_out
        names, left_out, unseen_classes = chosen(devices, ranks, at_most)
        return [*unseen_classes, *scan(devices, carried=carried, names=names)]

    def take(found: list[Found]) -> None:
        uses.matter_to(found)
        deliver(found, left_out)

    looking = Looking(take, failed)

    async def look() -> float:
        nonlocal wishes
        wishes = priority.wishes.number
        uses.begin()
        again = await looking.look(partial(scan_chosen, priority.ranks(), carried()))
        priority.heed(wishes)  # a look that failed, too: who wishes must not wait for a good one
        if again < math.inf:
            with contextlib.suppress(OSError):  # the next look that fails tries it again
                await let_go()
        return again

    async with trio.open_nursery() as nursery:
        await nursery.start(uses.follow)
        while True:
            try:
                with FolderWatch(folders) as changes:
                    await changes.follow_links()
                    while True:
                        again = await look()
                        task_status.started()
                        task_status = trio.TASK_STATUS_IGNORED
                        with trio.move_on_after(again):
                            wish = partial(priority.wishes.after, wishes)
                            await first_of(changes.changed, wish, *uses.waits())
                            await trio.sleep(SETTLE_SECONDS)
            except OSError as error:
                if not said:
                    log.warning(
                        "%s cannot be watched (%s): looking every %g s",
                        *(devices, error, UNWATCHED_SECONDS),
                    )
                said = True
            again = await look()
            task_status.started()
            task_status = trio.TASK_STATUS_IGNORED
            await trio.sleep(min(again, UNWATCHED_SECONDS))


class _Uses:
    """What others do with disks, which is no event of the folders: only waited for by whom it
    concerns. A file is used by loop devices and as swap space, a disk is mounted, too."""

    def __init__(self) -> None:
        self._news = {what: Revision() for what in ("loops", "mounts", "swaps")}
        self._seen: dict[str, int] = {}
        self._matter: set[str] = set()

    async def follow(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Hear of news for ever."""
        loops, mounts, swaps = self._news.values()
        await disk_events.follow(ROOTS, KERNEL, loops, mounts, swaps, task_status=task_status)

    def begin(self) -> None:
        """A look begins: what is news after this it may not have seen."""
        self._seen = {what: news.number for what, news in self._news.items()}

    def matter_to(self, found: list[Found]) -> None:
        """This is what a look has found."""
        inodes = [item.inode for item in found if item.inode is not None]
        self._matter = {"loops", "swaps"} if inodes else set()
        if any(inode.special for inode in inodes):
            self._matter.add("mounts")

    def waits(self) -> list[Callable[[], Awaitable[object]]]:
        """Each is over when there is news of one kind that matters."""
        return [partial(self._news[what].after, self._seen[what]) for what in self._matter]


def _scan_folder(
    folder: Path,
    names: Collection[str],
    device_class: str,
    look: Callable[[str, str, str, Collection[str]], Found | None],
) -> list[Found]:
    found: dict[str, Found] = {}
    mounted = {os.path.basename(point) for point in fuse_mounts(folder)} if names else ()
    for name in names:
        device_id = device_id_of(name)
        path = os.path.join(folder, name)
        at = partial(look, path, device_class, device_id, mounted)
        device = seen(device_class, device_id, at)
        if device is not None:
            found.setdefault(device_id, device)
    return list(found.values())


def _pinned(
    path: str, mounted: Collection[str], ask: Callable[[Pin, os.stat_result], T]
) -> tuple[Pin, os.stat_result, T] | None:
    """What the name leads to, and what there is to `ask` of its file system; None if that is a disk
    which a VM has borrowed: to hold it would keep it from being given back, and to look at it may
    wait for its source for ever. OSError if it leads to a file system that does not answer;
    `mounted` are the names in its folder that are ones themselves."""

    def look() -> tuple[Pin, os.stat_result, T] | None:
        if may_hang:
            walk(path)
        pin = Pin(path)
        # The kernel's word on where it is, without asking the file system.
        where = Path(os.readlink(pin.path))
        if where.name in _FRONTENDS and is_mounted(where):
            return None
        status = pin.status()
        return pin, status, ask(pin, status)

    # All else is in the folder's own file system, which has just answered.
    may_hang = os.path.basename(path) in mounted or link_target(path) is not None
    return in_time(path, look) if may_hang else look()


def _block_device(
    path: str, device_class: str, device_id: str, mounted: Collection[str]
) -> Found | None:
    pinned = _pinned(path, mounted, _is_writable)
    if pinned is None:
        return None
    pin, status, writable = pinned
    if stat.S_ISREG(status.st_mode):
        size = status.st_size
    elif stat.S_ISBLK(status.st_mode):
        if not has_disc(pin.path):
            return None
        size, read_only = _measure(pin.path)
        writable = writable and not read_only
    else:
        return None
    if not size:
        return None  # a drive without a disk, or a file that is just being made
    device = Device(
        device_class=device_class,
        device=device_id,
        identity="",
        description=harmless_text(_shown_name(path)),
        size=size,
        parent=None,
        read_only=not writable,
        busy=None,
    )
    inode = Inode.of(status)
    return Found(device, path, inode, _disk_marks(inode.special), pin)


def _is_writable(pin: Pin, status: os.stat_result) -> bool:
    return bool(status.st_mode & 0o222) and may_write(pin.path)


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


def _described_device(
    path: str, device_class: str, device_id: str, mounted: Collection[str]
) -> Found | None:
    pinned = _pinned(path, mounted, _description)
    if pinned is None:
        return None
    pin, status, text = pinned
    if text is None:
        return None
    first, _, rest = text.partition("\n")
    identity = rest.partition("\n")[0].strip().removeprefix("identity=")
    device = Device(
        device_class=device_class,
        device=device_id,
        identity=identity if is_identity(identity) else "",
        description=harmless_text(first.strip() or _shown_name(path)),
        size=None,
        parent=None,
        read_only=False,
        busy=None,
    )
    return Found(device, marks=(f"{status.st_dev}:{status.st_ino}",), pin=pin)


def _description(pin: Pin, status: os.stat_result) -> str | None:
    """The first bytes of a regular file."""
    if not stat.S_ISREG(status.st_mode):
        return None
    fd = os.open(pin.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return os.read(fd, DESCRIPTION_BYTES).decode("utf-8", "replace")
    finally:
        os.close(fd)


def _shown_name(path: str) -> str:
    """Give the file name as text: bytes that are no UTF-8 become U+FFFD, so harmless ones."""
    return os.fsencode(os.path.basename(path)).decode("utf-8", "replace")


def _with_parents(found: list[Found], sys_block: str) -> list[Found]:
    """Name the disk that a partition belongs to: dom0 never lends both at once."""
    by_number = {item.inode.special: item for item in found if item.inode and item.inode.special}
    looks = (seen(*item.key, partial(_with_parent, item, by_number, sys_block)) for item in found)
    return [item for item in looks if item is not None]


def _with_parent(item: Found, by_number: dict[int, Found], sys_block: str) -> Found:
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
