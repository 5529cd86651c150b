"""Keeps what is lent in local mode from other VMs' agents, and from programs that ask.

All VMs of local mode are on one machine. The folders of two of them may contain the same file, by a
hard link or a symbolic one, and a loop device in one may be made of a file in the other. So a
source locks what it lends, with locks that belong to an open file (fcntl_locking(2), F_OFD_SETLK):
they work between processes, cover bytes of the inode and not names, and last as long as any process
has that open file. QEMU honours them, too.

Readers share the lock; a writer has it alone. A block device is also opened exclusively.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import struct
from collections.abc import AsyncIterator
from typing import Final

from pedos_host.exclusive import IN_USE, open_exclusively
from pedos_host.in_time import going_to, in_time
from pedos_host.threads import to_thread
from pedos_protocol.errors import CallError
from pedos_protocol.names import harmless_text

from pedos_agent.device_classes.block.areas import Area, file_area
from pedos_agent.device_classes.block.block_use import SWAP
from pedos_agent.device_classes.block.disk import Disk
from pedos_agent.device_classes.block.folder_data import why_used
from pedos_agent.device_classes.block.overlays import DEPTH_MAX, UntoldError, layer_file
from pedos_agent.system.closing import close_and_wait
from pedos_agent.system.reading import is_gone
from pedos_agent.system.roots import ROOTS, Roots

# struct flock: type, whence, start, length (0: up to the end), pid, and its padding
_FLOCK: Final = struct.Struct("hhqqi4x")
# A driver may take seconds to open its device. dom0 waits 10 s for all of it, of which the look at
# the path takes some (a test adds them up).
RESERVE_SECONDS: Final = 6.0
_TAKEN: Final = frozenset((errno.EAGAIN, errno.EACCES))


def reserve(
    found: Disk,
    source: str,
    read_only: bool,
    held: contextlib.ExitStack,
    roots: Roots = ROOTS,
) -> list[int]:
    """Lock the disk that `source` leads to, until `held` is closed. Returns the descriptors of the
    lock: a process that has one keeps it.

    CallError(busy) if another VM or program has it, or this machine has begun to use it; OSError if
    it cannot be opened or locked. May block as long as a device's driver does.
    """
    name = found.device.device
    mode = os.O_RDONLY if read_only else os.O_RDWR
    if stat.S_ISBLK(os.stat(source).st_mode):
        exclusive = open_exclusively(source)
        if exclusive is None:
            raise CallError("busy", f"{name} is {IN_USE}, or lent by another VM")
        held.callback(os.close, exclusive)
    locked = [_locked(source, mode, name, Area(""), held)]
    itself = _base(locked[0])
    for area in found.areas:
        # The kernel protects the disks that it is made of: an exclusive open covers them.
        if area.base.startswith("file:") and area.base != itself:
            locked.append(_behind(area, mode, name, held))
        elif area.base.startswith("path:"):
            raise _unreachable(name, area)
    for descriptor in list(locked):
        locked += _below(descriptor, mode, name, held)
    # Not before it is locked; losetup(8) asks for no lock.
    why = why_used(found, roots)
    if why is not None:
        raise CallError("busy", harmless_text(f"{name} is in use here: {why}"))
    return locked


@contextlib.asynccontextmanager
async def reserved(found: Disk, source: str, read_only: bool) -> AsyncIterator[list[int]]:
    """`reserve` for a while, without stopping the event loop at its begin or end: closing a disk or
    a removed file may take as long as opening one. OSError if it does not answer at all."""

    def work() -> tuple[list[int], contextlib.ExitStack]:
        with contextlib.ExitStack() as held:
            return reserve(found, source, read_only, held), held.pop_all()

    def ask() -> tuple[list[int], contextlib.ExitStack]:
        what = f"the file of {found.device.device}"
        return in_time(
            what,
            work,
            path=os.readlink(source),
            kind="attach",
            seconds=RESERVE_SECONDS,
            late=lambda kept: kept[1].close(),
        )

    locked, held = await to_thread(ask)
    try:
        yield locked
    finally:
        await close_and_wait(held.close)


def _behind(area: Area, mode: int, name: str, held: contextlib.ExitStack) -> int:
    """Lock the part of a file behind a loop device."""
    try:
        going_to(area.path)
        descriptor = _locked(area.path, mode, name, area, held)
    except OSError as error:
        if is_gone(error):
            raise _unreachable(name, area) from error
        raise
    if _base(descriptor) != area.base:
        raise _unreachable(name, area)
    return descriptor


def _is_swap(descriptor: int) -> bool:
    """Whether the kernel swaps to this file, also from another root than ours: then it lets no
    program write, not even an empty write, which this function tries."""
    try:
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.write(descriptor, b"")
    except OSError as error:
        if error.errno == errno.ETXTBSY:
            return True
        raise
    return False


def _below(descriptor: int, mode: int, name: str, held: contextlib.ExitStack) -> list[int]:
    """Lock the files of layers that have the data of one on an overlay. A file that is only read is
    lent even if its layer is unknown: others may write it, but not through us, because writing
    requires to know it."""
    locked: list[int] = []
    for _ in range(DEPTH_MAX):
        try:
            path = layer_file(descriptor, written=mode == os.O_RDWR)
        except UntoldError as error:
            if mode == os.O_RDONLY:
                break
            why = f"{name} could be lent twice: {error}"
            raise CallError("failed", harmless_text(why)) from error
        if path is None:
            break
        descriptor = _locked(path, mode, name, Area(""), held)
        locked.append(descriptor)
    return locked


def _base(descriptor: int) -> str:
    status = os.fstat(descriptor)
    return file_area(status.st_dev, status.st_ino).base


def _unreachable(name: str, area: Area) -> CallError:
    path = harmless_text(area.path or area.base.removeprefix("path:"))
    return CallError(
        "failed",
        f"{name} is made of {path}, which is not there under that name: it cannot be locked, "
        "so another VM could be lent the same",
    )


def _locked(path: str, mode: int, name: str, area: Area, held: contextlib.ExitStack) -> int:
    descriptor = os.open(path, mode | os.O_NONBLOCK | os.O_CLOEXEC)
    held.callback(os.close, descriptor)
    kind = fcntl.F_RDLCK if mode == os.O_RDONLY else fcntl.F_WRLCK
    if mode == os.O_RDWR and _is_swap(descriptor):
        raise CallError("busy", f"{name} is in use here: {SWAP}")
    length = 0 if area.end == float("inf") else int(area.end - area.start)
    flock = _FLOCK.pack(kind, os.SEEK_SET, int(area.start), length, 0)
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, flock)
    except OSError as error:
        if error.errno in _TAKEN:
            raise CallError(
                "busy",
                f"{name} is lent by another VM, or used by another program: it is locked",
            ) from error
        error.filename = error.filename or path
        raise
    return descriptor
