"""FUSE mounts over placeholder files: an imported device is one mounted over the other.

The placeholder's mode marks it as this project's: no user keeps an empty file that is writable and
not readable, and after an unmount it can never be mistaken for a disk. The agent makes them, and
local mode's machine clears up after an agent that was killed.

No function here touches what is mounted: a dead file system answers with an error, a stuck one
never.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

#: The mode bits of a placeholder.
PLACEHOLDER_MODE = 0o200

#: proc(5): the mounts that this process sees.
MOUNTINFO = "/proc/self/mountinfo"

# umount2(2)
_MNT_DETACH = 2  # removed from the tree at once, from the kernel when it is no longer used
_UMOUNT_NOFOLLOW = 8

# The kernel writes space, tab, newline and backslash in a path as three octal digits.
_OCTAL = re.compile(rb"\\([0-7]{3})")


def fuse_mounts(folder: str | os.PathLike[str], mountinfo: str = MOUNTINFO) -> list[str]:
    """FUSE mount points below `folder`, dead ones too, each as often as it is mounted; the last
    mounted one comes first. OSError if `mountinfo` cannot be read."""
    prefix = os.fsencode(os.path.realpath(folder)) + b"/"
    points = [
        os.fsdecode(mount.point)
        for mount in mounted(mountinfo)
        if mount.kind.startswith(b"fuse") and mount.point.startswith(prefix)
    ]
    return points[::-1]


def remote_at(path: str, mountinfo: str | None = None) -> str | None:
    """Which file system a path without links is on, if that may depend on something other than a
    disk, as file systems without a disk's number do (FUSE, NFS); never the one that this machine
    runs from."""
    numbers = {mount.point: mount.number for mount in mounted(mountinfo or MOUNTINFO)}
    root = at = b"/"
    point = os.fsencode(path)
    while at == root and point not in (b"", root):
        at = point if point in numbers else root
        point = os.path.dirname(point)
    number = numbers.get(at, b"")
    return number.decode() if number.startswith(b"0:") and number != numbers.get(root) else None


class Mount(NamedTuple):
    """One line of the table of a mount namespace."""

    id: bytes
    number: bytes  # MAJOR:MINOR, the same for all mounts of one file system
    root: bytes  # the folder of the file system that is mounted
    point: bytes
    kind: bytes
    peers: frozenset[bytes]  # the groups in which it is mounted and unmounted
    options: bytes  # of the file system, in the table's notation


def mounted(mountinfo: str | os.PathLike[str]) -> Iterator[Mount]:
    """The mounts of the namespace that the table describes. OSError if it cannot be read."""
    with open(mountinfo, "rb") as file:
        for line in file:
            # "ID PARENT MAJ:MIN ROOT POINT OPTIONS [TAGS...] - TYPE SOURCE SUPER"
            fields = line.rstrip(b"\n").split(b" ")
            try:
                end = fields.index(b"-")
                kind, _, options, *_ = fields[end + 1 :]
                number, root, point = fields[2:5]
            except ValueError:
                continue
            tags = (tag.partition(b":") for tag in fields[6:end])
            peers = frozenset(group for _, _, group in tags if group)
            yield Mount(fields[0], number, plain(root), plain(point), kind, peers, options)


def plain(text: bytes) -> bytes:
    """A name in the table with its octal escapes resolved."""
    return _OCTAL.sub(lambda match: bytes([int(match[1], 8) & 0xFF]), text)


def fusermount(point: str | os.PathLike[str], *, lazy: bool) -> list[str]:
    """The command that unmounts `point`; `lazy` removes it from the tree although it is in use.

    Only fusermount3, which is set-uid, may unmount for users; it refuses another user's mount.
    """
    return ["fusermount3", "-u", *(["-z"] if lazy else []), "--", os.fspath(point)]


def unmount_now(point: str) -> None:
    """Unmounts lazily, and blocks: for a dead file system, at the start and end of a program.
    OSError says why it is still mounted."""
    if os.geteuid() == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.umount2(os.fsencode(point), _MNT_DETACH | _UMOUNT_NOFOLLOW) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), point)
        return
    try:
        ended = subprocess.run(
            fusermount(point, lazy=True), check=False, capture_output=True, text=True
        )
    except FileNotFoundError as error:
        raise OSError(errno.ENOENT, "fusermount3 is not installed", point) from error
    if ended.returncode != 0:
        raise OSError(errno.EPERM, ended.stderr.strip() or "fusermount3 failed", point)


def make_placeholder(path: str | os.PathLike[str]) -> None:
    """Makes the empty file that a device is mounted over; FileExistsError if the name is taken."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, PLACEHOLDER_MODE)
    try:
        os.fchmod(fd, PLACEHOLDER_MODE)  # the umask may have removed some bits
    finally:
        os.close(fd)


def remove_placeholder(path: str | os.PathLike[str]) -> None:
    """Removes it if it exists and is a placeholder of this user; anything else stays.

    root may remove those of all users.
    """
    with contextlib.suppress(FileNotFoundError):
        status = os.lstat(path)
        if (
            stat.S_ISREG(status.st_mode)
            and stat.S_IMODE(status.st_mode) == PLACEHOLDER_MODE
            and status.st_size == 0
            and os.geteuid() in (0, status.st_uid)
        ):
            Path(path).unlink(missing_ok=True)
