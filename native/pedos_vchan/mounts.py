"""FUSE mounts over placeholder files: an imported device is one mounted over the other.

The placeholder's mode marks it as ours: an empty file that is writable and not readable is nothing
that a user keeps, and if a mount is gone it can never be mistaken for a disk. Shared by the agent,
which makes them, and by local mode's machine, which clears up after an agent that was killed.

Nothing here touches what is mounted: a dead file system answers with an error, a stuck one never.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import stat
import subprocess
from pathlib import Path

#: The mode bits of a placeholder.
PLACEHOLDER_MODE = 0o200

#: proc(5): the mounts that this process sees.
MOUNTINFO = "/proc/self/mountinfo"

# umount2(2)
_MNT_DETACH = 2  # gone from the tree at once, from the kernel when it is no longer used
_UMOUNT_NOFOLLOW = 8

# The kernel writes space, tab, newline and backslash in a path as three octal digits.
_OCTAL = re.compile(rb"\\([0-7]{3})")


def fuse_mounts(folder: str | os.PathLike[str], mountinfo: str = MOUNTINFO) -> list[str]:
    """FUSE mount points below `folder`, dead ones too, each as often as it is mounted; the one
    that was mounted last comes first. OSError when `mountinfo` cannot be read."""
    prefix = os.fsencode(os.path.realpath(folder)) + b"/"
    points = []
    with open(mountinfo, "rb") as file:
        for line in file:
            # "ID PARENT MAJ:MIN ROOT POINT OPTIONS [TAGS...] - TYPE SOURCE SUPER"
            fields = line.split(b" ")
            try:
                point, kind = fields[4], fields[fields.index(b"-") + 1]
            except (ValueError, IndexError):
                continue
            point = _OCTAL.sub(lambda match: bytes([int(match[1], 8) & 0xFF]), point)
            if kind.startswith(b"fuse") and point.startswith(prefix):
                points.append(os.fsdecode(point))
    return points[::-1]


def fusermount(point: str | os.PathLike[str], *, lazy: bool) -> list[str]:
    """The command that unmounts `point`; `lazy` takes it out of the tree though it is in use.

    Only fusermount3, which is set-uid, may unmount for users; it refuses what is another one's.
    """
    return ["fusermount3", "-u", *(["-z"] if lazy else []), "--", os.fspath(point)]


def unmount_now(point: str) -> None:
    """Unmounts lazily and blocks meanwhile: for a dead file system, at the start and the end of a
    life. OSError says why it is still there."""
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
        os.fchmod(fd, PLACEHOLDER_MODE)  # whatever the umask was
    finally:
        os.close(fd)


def remove_placeholder(path: str | os.PathLike[str]) -> None:
    """Removes it if it is there and a placeholder of this user's; anything else is left alone.

    root may clear up after anybody.
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
