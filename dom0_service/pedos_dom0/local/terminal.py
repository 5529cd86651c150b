"""The terminal of `pedos-local`: stderr, which may take nothing for hours, or go away for good.

Nobody reads it behind a stopped `less`, after Ctrl-S, or over a stuck connection, and a write then
blocks. So a thread writes, and everybody else only queues; what does not fit is counted, and the
log files have it all. The descriptor is not made non-blocking, for the shell shares it with us.
"""

from __future__ import annotations

import os
import select
import sys
import threading
from collections import deque
from collections.abc import Callable

PROGRAM = "pedos-local"

# Bytes that wait for the terminal. It is there for a burst; a person who comes back to a stopped
# terminal reads the end of a log, not hours of it.
QUEUE_MAX = 256 * 1024
# How long (seconds) the end of the program waits for a terminal that does not take its last lines.
CLOSE_TIMEOUT = 1.0


def _stderr() -> int | None:
    # Started without one (2>&-), number 2 may be any file of ours by now.
    return 2 if sys.__stderr__ is not None else None


class Terminal:
    """Where a person reads what happens. No call waits for it or fails, whatever state it is in.

    `close` it as the last thing.
    """

    def __init__(self, fd: int | None = None) -> None:
        """`fd` is borrowed; None is stderr."""
        self._fd = _stderr() if fd is None else fd
        self._changed = threading.Condition()
        self._queue: deque[bytes] = deque()
        self._size = 0  # bytes in the queue
        self._dropped = 0  # lines that belong behind the queue
        self._closing = False
        self._lost: OSError | None = None
        self._gone: Callable[[OSError], object] | None = None
        self._thread: threading.Thread | None = None

    def when_gone(self, gone: Callable[[OSError], object]) -> None:
        """`gone` is called once, in another thread, when the terminal is found to be gone."""
        with self._changed:
            self._gone = gone
            lost = self._lost
        if lost is not None:
            gone(lost)

    def say(self, message: str) -> None:
        """A message of ours. stdout belongs to COMMAND."""
        self.write(f"{PROGRAM}: {message}\n")

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
                    # A daemon, because nothing can end a write that blocks but our own end.
                    self._thread = threading.Thread(target=self._work, name="terminal", daemon=True)
                    self._thread.start()
                self._changed.notify()
        return len(text)

    def flush(self) -> None:
        """Nothing to do; `logging` calls it."""

    def close(self, timeout: float = CLOSE_TIMEOUT) -> None:
        """Lets the terminal take what is queued, for at most `timeout` seconds."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(timeout)

    def _work(self) -> None:
        while (data := self._next()) is not None:
            try:
                self._write_all(data)
            except OSError as error:
                with self._changed:
                    self._lost = error
                    self._queue.clear()
                    gone = self._gone
                if gone is not None:
                    gone(error)
                return

    def _next(self) -> bytes | None:
        """What to write now; None at the end."""
        with self._changed:
            while not self._queue:
                if self._dropped:
                    count, self._dropped = self._dropped, 0
                    return f"{PROGRAM}: {count} lines are not shown; DIR/log has them\n".encode()
                if self._closing:
                    return None
                self._changed.wait()
            data = self._queue.popleft()
            self._size -= len(data)
            return data

    def _write_all(self, data: bytes) -> None:
        assert self._fd is not None
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[os.write(self._fd, rest) :]
            except BlockingIOError:  # somebody who shares it made it non-blocking
                poll = select.poll()
                poll.register(self._fd, select.POLLOUT)
                poll.poll()
