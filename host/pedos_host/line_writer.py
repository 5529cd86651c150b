"""Lines for a descriptor that may block for hours, or break for good.

No program reads a terminal behind a stopped `less`, after Ctrl-S, or over a stuck connection; a
journal may hang, and a log file may be on a slow disk. A write then blocks. So one thread writes,
and all others only queue lines; lines that do not fit are counted. The descriptor is not made
non-blocking, because the shell and child processes share it.
"""

from __future__ import annotations

import errno
import os
import select
import sys
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path

# Bytes that wait for the descriptor: enough for a burst. A person who returns to a stopped terminal
# reads the end of a log, not hours of it.
QUEUE_MAX = 256 * 1024
# Seconds that the end of the program waits for the last lines to be written.
CLOSE_TIMEOUT = 1.0
# A disk that is full now may not be so in a moment (seconds).
FULL_PAUSE = 1.0
_PASSES = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO})


def stderr() -> int | None:
    """The descriptor of stderr, if this program was given one."""
    # In a program that was started without one (2>&-), number 2 may be any of its files by now.
    return 2 if sys.__stderr__ is not None else None


def append_to(path: Path) -> int:
    """A descriptor for appending to that file, which is made if necessary; OSError."""
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)


class LineWriter:
    """Lines for a reader that may be slow or gone: no call waits for it or fails.

    `close` it as the last thing.
    """

    def __init__(self, fd: int | None, missed: Callable[[int], str]) -> None:
        """`fd` is borrowed; without one, all lines are dropped. `missed` makes the line that
        replaces so many dropped lines."""
        self._fd = fd
        self._missed = missed
        self._changed = threading.Condition()
        self._queue: deque[bytes] = deque()
        self._size = 0  # bytes in the queue
        self._dropped = 0  # lines that arrived while the queue was full
        self._closing = False
        self._lost: OSError | None = None
        self._gone: Callable[[OSError], object] | None = None
        self._thread: threading.Thread | None = None

    def when_gone(self, gone: Callable[[OSError], object]) -> None:
        """`gone` is called once, in another thread, when the descriptor turns out to be useless."""
        with self._changed:
            self._gone = gone
            lost = self._lost
        if lost is not None:
            gone(lost)

    def write(self, text: str) -> int:
        """Queues one or more whole lines."""
        data = text.encode("utf-8", "backslashreplace")
        with self._changed:
            if self._fd is None or self._lost is not None or self._closing:
                pass
            elif self._dropped or self._size + len(data) > QUEUE_MAX:
                self._dropped += data.count(b"\n")
            else:
                self._queue.append(data)
                self._size += len(data)
                if self._thread is None:
                    # A daemon thread, because only the end of the process can end a blocked write.
                    self._thread = threading.Thread(target=self._work, name="lines", daemon=True)
                    self._thread.start()
                self._changed.notify()
        return len(text)

    def flush(self) -> None:
        """Nothing to do; `logging` calls it."""

    def close(self, timeout: float = CLOSE_TIMEOUT) -> None:
        """Waits until the queue is written, for at most `timeout` seconds."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(timeout)

    def _work(self) -> None:
        while (found := self._next()) is not None:
            data, lines = found
            try:
                self._write_all(data)
            except OSError as error:
                if error.errno in _PASSES:
                    self._wait_for_room(lines)
                    continue
                with self._changed:
                    self._lost = error
                    self._queue.clear()
                    gone = self._gone
                if gone is not None:
                    gone(error)
                return

    def _next(self) -> tuple[bytes, int] | None:
        """The next bytes to write, and how many lines they contain; None at the end."""
        with self._changed:
            while not self._queue:
                if self._dropped:
                    count, self._dropped = self._dropped, 0
                    return f"{self._missed(count)}\n".encode(), count
                if self._closing:
                    return None
                self._changed.wait()
            data = self._queue.popleft()
            self._size -= len(data)
            return data, data.count(b"\n")

    def _wait_for_room(self, lines: int) -> None:
        """These lines could not be written; others would fail too for the moment. At the end there
        is no wait: each remaining line is tried once."""
        with self._changed:
            if not self._closing:
                self._dropped += lines
                self._changed.wait_for(lambda: self._closing, FULL_PAUSE)

    def _write_all(self, data: bytes) -> None:
        assert self._fd is not None
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[os.write(self._fd, rest) :]
            except BlockingIOError:  # a program that shares it made it non-blocking
                poll = select.poll()
                poll.register(self._fd, select.POLLOUT)
                poll.poll()
