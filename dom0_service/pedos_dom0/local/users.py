"""run/users: the commands that joined a machine which another `pedos-local run` had started.

Each holds a shared flock on the folder run/ while it uses the machine; the kernel releases it even
if the process is killed. The process that started the machine stops it only under the exclusive
lock: the last user is gone then. The file lists their pids, for messages alone; it may be deleted.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path
from types import TracebackType


class Users:
    """One holder of run/users. OSError when the file cannot be opened or written."""

    def __init__(self, path: Path) -> None:
        # Python's files close on exec, so COMMAND and its children do not hold the lock.
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            self._folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        except BaseException:
            os.close(self._fd)
            raise

    def __enter__(self) -> Users:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # The last user empties the list; a join that fails meanwhile is repeated.
        with contextlib.suppress(OSError):
            if self.alone():
                os.ftruncate(self._fd, 0)
        os.close(self._folder)
        os.close(self._fd)

    def join(self) -> bool:
        """Adds one user; False while another process is `alone`."""
        if not self._flock(fcntl.LOCK_SH):
            return False
        with contextlib.suppress(OSError):  # a full disk only makes the number in a message wrong
            os.write(self._fd, b"%d\n" % os.getpid())
        return True

    def alone(self) -> bool:
        """True if no other process uses the machine; none can join then until this is closed."""
        return self._flock(fcntl.LOCK_EX)

    def count(self) -> int:
        """The number of other users. Only an estimate, once it is known that there is one: at least
        1."""
        words = os.pread(self._fd, 64 * 1024, 0).split()
        pids = {int(word) for word in words if word.isdigit()} - {os.getpid()}
        return max(1, sum(map(_lives, pids)))

    def _flock(self, kind: int) -> bool:
        try:
            fcntl.flock(self._folder, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return True
