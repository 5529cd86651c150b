"""Exclusive ownership of a folder by one process.

The lock is on the folder and not on a file in it: a file can be deleted, and then the next process
would make a new one, lock that, and work on what the first process holds.

The folder is private (0700, and this user's): locking takes only the right to read, so another user
could lock a folder with other permissions and keep this process from its work.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_LOCKS = "/proc/locks"


_OTHERS = stat.S_IRWXG | stat.S_IRWXO


class FolderHeld(OSError):  # noqa: N818 - says what happened
    """Another process has the folder; `pid` is None if it cannot be determined."""

    def __init__(self, path: Path, pid: int | None) -> None:
        super().__init__(errno.EBUSY, "another process has it", str(path))
        self.path = path
        self.pid = pid

    def __str__(self) -> str:
        who = f"process {self.pid}" if self.pid else "another process"
        return f"{self.path}: {who} has this folder; end that one first"


def make_private(path: Path) -> None:
    """Makes the folder, or closes it to other users; OSError."""
    path.mkdir(mode=stat.S_IRWXU, parents=True, exist_ok=True)
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & _OTHERS:
        path.chmod(mode & ~_OTHERS)


@contextmanager
def hold_folder(path: Path) -> Iterator[None]:
    """Locks a private folder; raises FolderHeld or another OSError at once if that is impossible.

    The kernel releases the lock when this process ends, however it ends. No child inherits it,
    because Python's descriptors close on exec.
    """
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        status = os.fstat(fd)
        if status.st_uid != os.geteuid() or status.st_mode & _OTHERS:
            why = "others could lock this folder; it has to be this user's, with mode 0700"
            raise PermissionError(errno.EPERM, why, str(path))
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FolderHeld(path, holder(fd)) from None
        yield
    finally:
        os.close(fd)


def holder(fd: int) -> int | None:
    """Returns the process that has a flock on the open file or folder, from /proc/locks
    (proc(5))."""
    inode = f":{os.fstat(fd).st_ino}"
    with suppress(OSError, ValueError):
        for line in Path(_LOCKS).read_text(encoding="ascii").splitlines():
            # 1: FLOCK  ADVISORY  WRITE 708 08:01:13548 0 EOF
            words = line.split()
            if words[1] == "FLOCK" and words[5].endswith(inode) and int(words[4]) > 0:
                return int(words[4])
    return None
