"""What waits to be written to one peer, and which task writes it.

A channel is written to at the end of a pass of the event loop, or in the turn that also reads; only
data that does not fit makes a task, for as long as it does not fit. Other streams are written to by
a task each time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from .parking import Parking

if TYPE_CHECKING:
    from .conversation import Conversation
    from .event_loop import Flusher


class Outbox:
    """Frames for `stream`, in the order in which they were put in; `conversation` is its own, if it
    is a channel's."""

    __slots__ = (
        "_closed",
        "_conversation",
        "_drained",
        "_flusher",
        "_is_due",
        "_nursery",
        "_sending",
        "_stream",
        "_waiting",
    )

    def __init__(
        self, stream: trio.abc.Stream, conversation: Conversation | None, flusher: Flusher
    ) -> None:
        self._stream = stream
        self._conversation = conversation
        self._flusher = flusher
        self._nursery: trio.Nursery | None = None
        self._closed = False
        self._waiting = bytearray()
        self._is_due = False  # the flusher has it already
        self._sending = 0  # bytes that a task has and that are not written yet
        self._drained = Parking()

    @property
    def size(self) -> int:
        """Bytes that are not written yet."""
        return len(self._waiting) + self._sending

    def open(self, nursery: trio.Nursery) -> None:
        """From now on it is written, by tasks in `nursery` where writing has to wait."""
        self._nursery = nursery

    def close(self) -> None:
        """Nothing is written any more, and all tasks that wait for it are woken."""
        self._closed = True
        self._drained.unpark_all()

    def put(self, frame: bytes) -> int:
        """Takes `frame`; returns `size`. `flush` or `turn` follows."""
        self._waiting += frame
        return len(self._waiting) + self._sending

    def send(self, frame: bytes) -> int:
        """`put` and `write_now`, in one step where nothing waits before it."""
        if self._waiting or self._sending or self._closed or self._nursery is None:
            size = self.put(frame)
            self.write_now()
            return size
        self._write_out(frame, self._nursery)
        return self._sending

    def clear(self) -> None:
        """Drops what no task has yet."""
        self._take()

    def flush(self) -> None:
        """Has it written, once all tasks that can run now have run."""
        if not self._is_due and self._waiting and not self._sending:
            self._is_due = True
            self._flusher.soon(self.write_now)

    def turn(self, conversation: Conversation) -> bytes | None:
        """Writes what fits and takes what has arrived, like `Conversation.turn`."""
        if not self._waiting or self._sending:
            return conversation.turn(b"")[1]
        out = self._take()
        written, data = conversation.turn(out)
        if written < len(out):
            self.put(out[written:])
            self.flush()
        elif self._drained.lot is not None:
            self._drained.unpark_all()
        return data

    async def drained(self, below: int) -> None:
        """Returns when fewer than `below` bytes wait to be written, or it is closed."""
        await trio.lowlevel.checkpoint()
        while not self._closed and self.size >= below:
            self.flush()
            await self._drained.park()

    def _take(self) -> bytes:
        out = bytes(self._waiting)
        self._waiting.clear()  # of its memory, too
        return out

    def write_now(self) -> None:
        """Writes what can be written without waiting, and leaves the rest to a task."""
        self._is_due = False
        if not self._waiting or self._sending or self._closed or self._nursery is None:
            return
        self._write_out(self._take(), self._nursery)

    def _write_out(self, out: bytes, nursery: trio.Nursery) -> None:
        if self._conversation is not None:
            try:
                out = out[self._conversation.send_some(out) :]
            except trio.ClosedResourceError:
                return  # the reader finds it, too
        if out:
            self._sending = len(out)
            nursery.start_soon(self._write, out)
        elif self._drained.lot is not None:
            self._drained.unpark_all()

    async def _write(self, out: bytes) -> None:
        """Writes `out`, and what gathers meanwhile."""
        try:
            while out:
                self._sending = len(out)
                await self._stream.send_all(out)
                out = self._take()
                self._drained.unpark_all()
            self._sending = 0
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the reader finds out whether the other side closed or broke
