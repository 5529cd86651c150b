"""The processes of services: those that this program starts, and those that these leave behind.

This program is a child subreaper (prctl(2)): a process whose parent has ended becomes its child, so
that nothing of a service gets out of its reach, and nothing of it stays a zombie.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Final

from pedos_host.system_errors import what_is_wrong

from pedos_keeper import spawning
from pedos_keeper.control_groups import CallGroup

log = logging.getLogger(__name__)

_PR_SET_CHILD_SUBREAPER: Final = 36
#: Looks for processes of a session that are being killed: each finds what was started during the
#: one before. What still forks then is a bomb, which the unit's TasksMax= ends.
_KILL_ROUNDS: Final = 50
_KILL_LOOK: Final = 0.01  # seconds for those that are killed to hand on their children
# What is read of a process that has just ended.
_ENDED: Final = (FileNotFoundError, ProcessLookupError)
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
        # Held for steps that wait for nothing.
        self._lock = threading.Lock()
        self._births = 0  # of those that `_running` does not have yet
        # By their marks: what calls have started, while they or something in their groups runs;
        # None: it is about to be started, and is to be killed then if it is unwanted.
        self._of_calls: dict[bytes, Child | None] = {}
        self._unwanted: set[bytes] = set()
        self._running: dict[int, Child] = {}  # by pid, until they are reaped
        self._left: list[Child] = []  # whose calls have left something in their groups

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
        child = None
        with self._lock:
            self._births += 1
        try:
            # Without the lock: a disk that does not answer may hold up this one for ever.
            try:
                pid, file = spawning.spawn(path, arguments, environment, descriptors, where)
            except OSError as error:
                if error.errno != errno.ENOEXEC:
                    raise
                path, arguments = spawning.as_shell_would(path, arguments)
                pid, file = spawning.spawn(path, arguments, environment, descriptors, where)
            child = Child(self, pid, file, group, mark)
        finally:
            with self._lock:
                self._births -= 1
                if child is not None:
                    self._running[child.pid] = child
                    is_unwanted = mark in self._unwanted
                    if mark in self._of_calls:
                        self._of_calls[mark] = child
        if is_unwanted:
            with contextlib.suppress(OSError):  # who wants it killed asks again
                child.kill()
        return child

    @contextlib.contextmanager
    def expecting(self, mark: bytes) -> Iterator[None]:
        """Within, a process with this mark may be started, and is known to `kill_marked`."""
        with self._lock:
            self._of_calls[mark] = None
        try:
            yield
        finally:
            with self._lock:
                self._unwanted.discard(mark)
                if self._of_calls.get(mark) is None:
                    self._of_calls.pop(mark, None)

    def reap(self) -> bool:
        """Take in all that have ended, and remove the control groups that are empty now; whether
        any process is left."""
        with self._lock:
            is_any_left = self._reap(tuple(self._running))
            self._left = [
                each for each in self._left if not (each.close_group() and self._forget(each))
            ]
        return is_any_left

    def look_at(self, child: Child) -> None:
        """Take in this one, if it has ended, and what others have left behind."""
        with self._lock:
            self._reap((child.pid,) if child.status is None else ())

    def _reap(self, known: Sequence[int]) -> bool:
        """Take in all that have ended; only the `known` while one is being started, as its end
        would be taken for that of an orphan. Whether any is left."""
        if self._births:
            for each in known:
                self._take_in(*spawning.reap(each))
            return True
        with contextlib.suppress(ChildProcessError):
            while self._take_in(*spawning.reap(-1)):
                pass
            return True
        return False

    def _take_in(self, pid: int, status: int) -> bool:
        """One that has been reaped; whether there was one (not 0)."""
        child = self._running.pop(pid, None)
        if child is not None:
            child.status = os.waitstatus_to_exitcode(status)
        return pid != 0

    def leave(self, child: Child) -> None:
        """Its call is over. If it runs, or something in its group does, `reap` waits for that."""
        is_closed = child.close_group()  # the kernel may take its time
        with self._lock:
            if not (is_closed and self._forget(child)):
                self._left.append(child)

    def _forget(self, child: Child) -> bool:
        """One whose group is gone; False if it runs without one: its session is known by it."""
        if child.group is None and child.status is None:
            return False
        if self._of_calls.get(child.mark) is child:
            del self._of_calls[child.mark]
        return True

    def kill_marked(self, mark: bytes) -> bool:
        """End what the process that began with this mark has started, whether its call is over or
        not, as `Child.kill` does; whether nothing of it is left. OSError: that is not known."""
        with self._lock:
            child = self._of_calls.get(mark)
            if child is None and mark in self._of_calls:
                self._unwanted.add(mark)
                return False
        return kill_session(None, mark) if child is None else child.kill()

    def signal_group(self, child: Child, number: int) -> None:
        """Send a signal to its process group; nothing if none is left."""
        with self._lock, contextlib.suppress(ProcessLookupError, PermissionError):
            # Until it is reaped, its number is no other's.
            if child.status is None:
                os.killpg(child.pid, number)

    def ask_to_end(self, asked: set[int]) -> None:
        """Send SIGTERM to all but those that were `asked` before, to whom they are added: to the
        process groups of those that `start` began, and to orphans."""
        for pid in self._own():
            if pid in asked:
                continue
            asked.add(pid)
            with self._lock:
                child = self._running.get(pid)
            if child is not None:
                self.signal_group(child, signal.SIGTERM)
            else:
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGTERM)

    def _own(self) -> list[int]:
        """The living children of this process; none if they cannot be told now."""
        try:
            return _processes(_PARENT, os.getpid())
        except OSError as error:
            log.warning("what runs cannot be looked at: %s", what_is_wrong(error))
            return []

    def kill_all(self) -> None:
        """End every descendant of this process: those of a child that ends become its children."""
        for _ in range(_KILL_ROUNDS):
            if not self.reap():
                return
            for pid in self._own():
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(_KILL_LOOK)


class Child:
    """A process that `Children.start` began: the leader of a session. `file` is readable when it
    has ended, `group` its control group, if it has one, and `mark` a line of the environment of all
    that it starts. `status` is its exit status, or minus the signal's number; None: not reaped."""

    def __init__(
        self, children: Children, pid: int, file: int, group: CallGroup | None, mark: bytes
    ) -> None:
        self.pid = pid
        self.file = file
        self.group = group
        self.status: int | None = None
        self.mark = mark
        self._children = children

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def end(self) -> int | None:
        """Its exit status, or minus the signal's number; None while it runs."""
        self._children.look_at(self)
        return self.status

    def signal(self, number: int) -> None:
        """Send a signal: SIGKILL to all that it has started, others to its process group."""
        if number == signal.SIGKILL:
            self.kill()
        else:
            self._children.signal_group(self, number)

    def kill(self) -> bool:
        """End all that it has started: its control group, and unless all of it is in there, its
        session and what has left that with the environment that it was given. Whether nothing of it
        is left; some may only be ending. OSError: that is not known."""
        if self.group is not None and self.group.kill():
            return self.group.becomes_empty()
        # Once it is reaped, the session's number may be that of another one.
        return kill_session(self.pid if self.status is None else None, self.mark)

    def close(self) -> None:
        """Stop watching it; it goes on if it runs."""
        os.close(self.file)
        self._children.leave(self)

    def close_group(self) -> bool:
        """Remove its control group, if it has one; False if something runs in it."""
        return self.group is None or self.group.close()


def kill_session(session: int | None, mark: bytes = b"") -> bool:
    """End all processes of a session, in whatever process groups they are, and all descendants of
    this process that have the line in their environment. Whether none is left; OSError: that is not
    known."""
    for _ in range(_KILL_ROUNDS):
        of_session = () if session is None else _processes(_SESSION, session)
        found = {*of_session, *(_marked(mark) if mark else ())}
        # Its leader first: a shell whose children were killed would exit, with a status of its own.
        for pid in sorted(found, key=lambda pid: pid != session):
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        if not found:
            return True
        time.sleep(_KILL_LOOK)
    return False


def _marked(mark: bytes) -> list[int]:
    """The living descendants of this process with a line in the environment that their program
    began with. An orphan is one, too: it has become this process's child."""
    found = []
    for pid in _descendants():
        # One that has become another user keeps its own from us: it counts by its session alone.
        with (
            contextlib.suppress(PermissionError, *_ENDED),
            open(f"/proc/{pid}/environ", "rb") as file,
        ):
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
        with contextlib.suppress(*_ENDED), open(f"/proc/{name}/stat", "rb") as file:
            # proc(5): the name of the program, in parentheses, may have any characters.
            yield int(name), file.read().rpartition(b") ")[2].split(b" ")
