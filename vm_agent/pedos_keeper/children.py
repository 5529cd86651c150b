"""The processes of services: those that this program starts, and those that these leave behind.

This program is a child subreaper (prctl(2)): a process whose parent has ended becomes its child, so
that nothing of a service gets out of its reach, and nothing of it stays a zombie.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Final

from pedos_keeper import spawning
from pedos_keeper.control_groups import CallGroup

_PR_SET_CHILD_SUBREAPER: Final = 36
#: Looks for processes of a session that are being killed: each finds what was started during the
#: one before. What still forks then is a bomb, which the unit's TasksMax= ends.
_KILL_ROUNDS: Final = 50
_KILL_LOOK: Final = 0.01  # seconds for those that are killed to hand on their children
# Of /proc/PID/stat (proc(5)), from the state on.
_PARENT, _SESSION = 1, 3


def become_subreaper() -> None:
    """From now on orphans among this program's descendants are its children. OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


class Children:
    """All of them. Each function may be called in any thread."""

    def __init__(self) -> None:
        # Held from the birth of a process until it is known here, and while whatever has ended is
        # reaped: so that the end of one is never taken for that of an orphan.
        self._births = threading.Lock()
        # Held for steps that wait for nothing, and while one is reaped that is known.
        self._lock = threading.Lock()
        self._ends: dict[int, int | None] = {}  # by pid of those that `start` began

    def start(
        self,
        path: str,
        arguments: Sequence[str],
        environment: Sequence[str | bytes],
        descriptors: Sequence[int],
        group: CallGroup | None = None,
        mark: bytes = b"",
    ) -> Child:
        """See `spawning.spawn`. A script without a first line is one of the shell's. `mark` is a
        line of its environment that no other process of `start` has. OSError."""
        where = None if group is None else group.begin_in
        with self._births:
            try:
                pid, file = spawning.spawn(path, arguments, environment, descriptors, where)
            except OSError as error:
                if error.errno != errno.ENOEXEC:
                    raise
                path, arguments = spawning.as_shell_would(path, arguments)
                pid, file = spawning.spawn(path, arguments, environment, descriptors, where)
            self._ends[pid] = None
        return Child(self, pid, file, group, mark)

    def reap(self) -> bool:
        """Take in all that have ended; whether any process is left."""
        with self._births:
            return self._reap(-1)

    def end_of(self, pid: int) -> int | None:
        """How a process of `start` ended, as `os.waitstatus_to_exitcode` says it; None: it runs."""
        if self._births.acquire(blocking=False):
            try:
                self._reap(-1)
            finally:
                self._births.release()
        else:  # one is being started, which may take long, or another thread reaps
            self._reap(pid)
        status = self._ends[pid]
        return None if status is None else os.waitstatus_to_exitcode(status)

    def _reap(self, which: int) -> bool:
        """Take in those that have ended: all (-1), or a process of `start`. Whether any is left."""
        with self._lock:
            while which < 0 or self._ends[which] is None:
                try:
                    pid, status = spawning.reap(which)
                except ChildProcessError:
                    return False
                if pid == 0:
                    return True
                if pid in self._ends:
                    self._ends[pid] = status
        return True

    def forget(self, pid: int) -> None:
        """Nobody asks for the end of this process any more."""
        with self._lock:
            self._ends.pop(pid, None)

    def signal_group(self, pid: int, number: int) -> None:
        """Send a signal to the process group of a process of `start`; nothing if none is left."""
        with self._lock, contextlib.suppress(ProcessLookupError, PermissionError):
            # Until it is reaped, its number is no other's.
            if pid in self._ends and self._ends[pid] is None:
                os.killpg(pid, number)

    def ask_to_end(self, asked: set[int]) -> None:
        """Send SIGTERM to all but those that were `asked` before, to whom they are added: to the
        process groups of those that `start` began, and to orphans."""
        for pid in _processes(_PARENT, os.getpid()):
            if pid in asked:
                continue
            asked.add(pid)
            with self._lock:
                is_leader = pid in self._ends
            if is_leader:
                self.signal_group(pid, signal.SIGTERM)
            else:
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGTERM)

    def kill_all(self) -> None:
        """End every descendant of this process: those of a child that ends become its children."""
        for _ in range(_KILL_ROUNDS):
            if not self.reap():
                return
            for pid in _processes(_PARENT, os.getpid()):
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(_KILL_LOOK)


class Child:
    """A process that `Children.start` began: the leader of a session. `file` is readable when it
    has ended, `group` its control group, if it has one, and `mark` a line of the environment of all
    that it starts."""

    def __init__(
        self, children: Children, pid: int, file: int, group: CallGroup | None, mark: bytes
    ) -> None:
        self.pid = pid
        self.file = file
        self.group = group
        self._mark = mark
        self._children = children

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def end(self) -> int | None:
        """Its exit status, or minus the signal's number; None while it runs."""
        return self._children.end_of(self.pid)

    def signal(self, number: int) -> None:
        """Send a signal: SIGKILL to all that it has started, others to its process group."""
        if number == signal.SIGKILL:
            self.kill()
        else:
            self._children.signal_group(self.pid, number)

    def kill(self) -> None:
        """End all that it has started: its control group, or else its session and what has left
        that with the environment that it was given."""
        if self.group is None or not self.group.kill():
            kill_session(self.pid, self._mark)

    def close(self) -> None:
        """Stop watching it; it goes on if it runs."""
        os.close(self.file)
        self._children.forget(self.pid)
        if self.group is not None:
            self.group.close()


def kill_session(session: int, mark: bytes = b"") -> None:
    """End all processes of a session, in whatever process groups they are, and all descendants of
    this process that have the line in their environment."""
    for _ in range(_KILL_ROUNDS):
        found = {*_processes(_SESSION, session), *(_marked(mark) if mark else ())}
        # Its leader first: a shell whose children were killed would exit, with a status of its own.
        for pid in sorted(found, key=lambda pid: pid != session):
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        if not found:
            return


def _marked(mark: bytes) -> list[int]:
    """The living descendants of this process with a line in the environment that their program
    began with. An orphan is one, too: it has become this process's child."""
    found = []
    for pid in _descendants():
        with contextlib.suppress(OSError), open(f"/proc/{pid}/environ", "rb") as file:
            if mark in file.read().split(b"\0"):
                found.append(pid)
    return found


def _descendants() -> list[int]:
    children: dict[int, list[int]] = {}
    for pid, fields in _stats():
        children.setdefault(int(fields[_PARENT]), []).append(pid)
    found = [os.getpid()]
    for pid in found:  # which grows meanwhile
        found += children.get(pid, ())
    return found[1:]


def _processes(field: int, value: int) -> list[int]:
    """The living processes that have `value` in that field of /proc/PID/stat."""
    return [
        pid
        for pid, fields in _stats()
        if int(fields[field]) == value and fields[0] not in (b"Z", b"X")
    ]


def _stats() -> Iterator[tuple[int, list[bytes]]]:
    """Of each process the pid, and /proc/PID/stat from the state on."""
    for name in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
            # proc(5): the name of the program, in parentheses, may have any characters.
            yield int(name), file.read().rpartition(b") ")[2].split(b" ")
