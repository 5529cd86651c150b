"""Local mode's devices: a file in DEVICES/CLASS is a device plugged into this VM.

In `block`, a regular file or block device (or a symlink to one) is a disk. In `usb`, `pci` and
`mic` a regular file describes a device that can be listed: its first line is the description, a
second line `identity=...` the identity. Whatever else lies there (folders, FIFOs, sockets, names
that start with a dot) is no device.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import stat
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Final

import attrs
import trio
from pedos_protocol.agent_messages import Device
from pedos_protocol.names import DEVICE_CLASSES, harmless_text, is_identity, natural_key
from pedos_vchan.folder_watch import FolderWatch

from .found import HELD, Found, Inode, device_id_of, is_held

log = logging.getLogger(__name__)

DESCRIPTION_BYTES: Final = 4096  # of a description file that are read
# Between two scans: a file that is being copied in changes thousands of times a second.
SETTLE_SECONDS: Final = 0.02
# Between two looks at folders that cannot be watched: a person who plugs in a disk waits so long.
UNWATCHED_SECONDS: Final = 2.0
# More names than this in one folder are not even looked at, so that a scan stays short.
NAMES_MAX: Final = 4096
BLKROGET: Final = 0x125E  # linux/fs.h: is the block device read-only?
SYS_BLOCK: Final = "/sys/dev/block"


def scan(devices: Path, sys_block: str = SYS_BLOCK) -> list[Found]:
    """Look at all four folders once; never raises for what lies in them."""
    found: list[Found] = []
    for device_class in DEVICE_CLASSES:
        look = _block_device if device_class == "block" else _described_device
        found += _scan_folder(devices / device_class, device_class, look)
    return _mark_duplicates(_with_parents(found, sys_block))


async def watch(
    devices: Path,
    deliver: Callable[[list[Found]], None],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Deliver what is there, now and after every change; started() after the first time.

    Where the system has no more watches to give, it looks again every UNWATCHED_SECONDS instead.
    """
    folders = [str(devices / device_class) for device_class in DEVICE_CLASSES]
    said = False
    while True:
        try:
            with FolderWatch(folders) as changes:
                while True:
                    # In a thread: to learn a device node's size may take its driver seconds.
                    deliver(await trio.to_thread.run_sync(scan, devices))
                    task_status.started()
                    task_status = trio.TASK_STATUS_IGNORED
                    await changes.changed()
                    await trio.sleep(SETTLE_SECONDS)
        except OSError as error:
            if not said:
                log.warning(
                    "%s cannot be watched (%s): looking every %g s",
                    *(devices, error, UNWATCHED_SECONDS),
                )
            said = True
        deliver(await trio.to_thread.run_sync(scan, devices))
        task_status.started()
        task_status = trio.TASK_STATUS_IGNORED
        await trio.sleep(UNWATCHED_SECONDS)


def _scan_folder(
    folder: Path, device_class: str, look: Callable[[str, str, str], Found | None]
) -> list[Found]:
    try:
        names = [name for name in os.listdir(folder) if not name.startswith(".")]
    except FileNotFoundError:
        return []
    except OSError as error:
        log.warning("cannot list %s: %s", folder, error.strerror)
        return []
    if len(names) > NAMES_MAX:
        log.warning("%s holds %d names; %d are looked at", folder, len(names), NAMES_MAX)
    found: dict[str, Found] = {}
    # Names that are ids as they stand come first: a cleaned name must not take their place.
    in_order = sorted(names, key=lambda name: (device_id_of(name) != name, natural_key(name)))
    for name in in_order[:NAMES_MAX]:
        device_id = device_id_of(name)
        try:
            device = look(os.path.join(folder, name), device_class, device_id)
        except OSError as error:
            if error.errno != errno.ENOENT:  # gone since the listing: simply not there
                log.info("not a device: %s: %s", harmless_text(name), error.strerror)
            continue
        if device is not None:
            found.setdefault(device_id, device)
    return list(found.values())


def _block_device(path: str, device_class: str, device_id: str) -> Found | None:
    status = os.stat(path)
    writable = bool(status.st_mode & 0o222) and os.access(path, os.W_OK)
    busy = None
    if stat.S_ISREG(status.st_mode):
        size = status.st_size
    elif stat.S_ISBLK(status.st_mode):
        size, read_only = _measure(path)
        writable = writable and not read_only
        if is_held(path):
            busy = HELD
    else:
        return None
    device = Device(
        device_class=device_class,
        device=device_id,
        identity="",
        description=harmless_text(_shown_name(path)),
        size=size,
        parent=None,
        read_only=not writable,
        busy=busy,
    )
    return Found(device, path, Inode.of(status))


def _measure(path: str) -> tuple[int, bool]:
    """Size in bytes of a block device, and whether its driver refuses writes."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        size = os.lseek(fd, 0, os.SEEK_END)
        (read_only,) = struct.unpack("i", fcntl.ioctl(fd, BLKROGET, struct.pack("i", 0)))
        return size, bool(read_only)
    finally:
        os.close(fd)


def _described_device(path: str, device_class: str, device_id: str) -> Found | None:
    if not stat.S_ISREG(os.stat(path).st_mode):
        return None
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return None
        text = os.read(fd, DESCRIPTION_BYTES).decode("utf-8", "replace")
    finally:
        os.close(fd)
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
    return Found(device)


def _shown_name(path: str) -> str:
    """Give the file name as text: bytes that are no UTF-8 become U+FFFD, so harmless ones."""
    return os.fsencode(os.path.basename(path)).decode("utf-8", "replace")


def _with_parents(found: list[Found], sys_block: str) -> list[Found]:
    """Name the disk that a partition belongs to: dom0 never lends both at once."""
    by_number = {item.inode.special: item for item in found if item.inode and item.inode.special}
    return [_with_parent(item, by_number, sys_block) for item in found]


def _with_parent(item: Found, by_number: dict[int, Found], sys_block: str) -> Found:
    if item.inode is None or not item.inode.special:
        return item
    number = item.inode.special
    node = os.path.realpath(f"{sys_block}/{os.major(number)}:{os.minor(number)}")
    try:
        os.stat(f"{node}/partition")
        with open(f"{os.path.dirname(node)}/dev", encoding="ascii") as file:
            major, _, minor = file.read(32).strip().partition(":")
        parent = by_number.get(os.makedev(int(major), int(minor)))
    except (OSError, ValueError):
        return item  # not a partition
    if parent is None:
        return item
    return attrs.evolve(item, device=attrs.evolve(item.device, parent=parent.device.device))


def _mark_duplicates(found: list[Found]) -> list[Found]:
    """Two names of one file are one disk: only the first can be lent, or two VMs would write it."""
    first: dict[object, str] = {}
    result = []
    for item in found:
        same = item.inode and (item.inode.special or item.inode)
        if same is None:
            result.append(item)
            continue
        holder = first.setdefault(same, item.device.device)
        if holder != item.device.device:
            busy = harmless_text(f"the same disk as {holder}")
            item = attrs.evolve(item, device=attrs.evolve(item.device, busy=busy))  # noqa: PLW2901
        result.append(item)
    return result
