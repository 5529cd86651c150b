"""One end of a channel between waits: turns, which do not wait, and the wait for the next one.

For conversations in which a message depends on the previous one. `VchanStream` makes a stream of
bytes of it.
"""

from __future__ import annotations

import threading

import trio

from ._native import ffi, lib
from .channel import Channel
from .parking import Parking

# Bytes that one turn copies out. A batch of short frames fits, and it is small compared with the
# rings.
TURN_SIZE = 4096


class _Scratch(threading.local):
    """Where C puts what it returns: once for all channels of a thread, as each is idle mostly. It
    is read before anything else may run."""

    def __init__(self) -> None:
        self.sent = ffi.new("int64_t *")
        self.taken = ffi.new(f"char[{TURN_SIZE}]")
        self.span = ffi.new("uint8_t **")


scratch = _Scratch()


class Conversation:
    """The conversation on `channel`, which is taken over.

    One descriptor reports both directions, and trio lets one task wait on a descriptor. So events
    belong to one task at a time: to the leader of those in `wait`, or, while there is one, to the
    substitute in `wait_instead`. Nothing is handed from task to task then: the task that expects an
    answer is woken by it, and the task that normally reads sleeps on.
    """

    __slots__ = ("_channel", "_followers", "_led", "_sender_waits", "_substitute")

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._led = False  # the first task in `wait` waits for all of them
        self._followers = Parking()  # the others
        self._sender_waits = False
        # The owner of the events, if it is not the leader; a woken one that has not run yet may
        # find that they are another substitute's by now.
        self._substitute: object | None = None

    def turn(self, out: bytes) -> tuple[int, bytes | None]:
        """Writes what fits of `out` and takes what has arrived, without waiting.

        Returns how many bytes were written, and at most TURN_SIZE that arrived; None if there were
        none, ``b""`` after the peer's clean close. `wait` misses nothing after None; after bytes it
        does so if `is_armed`. Bytes for a peer that is gone are dropped: reading finds its end.
        ``trio.BrokenResourceError`` as from `VchanStream.receive_some`.
        """
        size = len(out)
        sent, taken = scratch.sent, scratch.taken
        native = self._channel.handle or self._channel.native()
        count = lib.pv_channel_turn(native, out, size, sent, taken, TURN_SIZE)
        written = sent[0]
        if written < 0:
            written = 0 if written == lib.PV_WOULD_BLOCK else size
        if count > 0:
            return written, ffi.unpack(taken, count)
        if count == lib.PV_WOULD_BLOCK:
            return written, None
        if count == lib.PV_CLOSED:
            return written, b""
        raise broken(count)

    def is_armed(self) -> bool:
        """Whether `wait` misses nothing; otherwise there is more for another `turn`, or the end."""
        return lib.pv_channel_is_armed(self._channel.native()) != 0

    def has_news(self) -> bool:
        """Whether something has arrived that no turn has taken: bytes, or the end."""
        return lib.pv_channel_has_news(self._channel.native()) != 0

    def send_some(self, out: bytes) -> int:
        """Writes what fits of `out` without waiting; returns how many bytes. Those for a peer that
        is gone are dropped: reading finds its end."""
        native = self._channel.handle or self._channel.native()
        count: int = lib.pv_channel_send(native, out, len(out))
        if count < 0:
            return 0 if count == lib.PV_WOULD_BLOCK else len(out)
        return count

    async def wait(self) -> None:
        """Returns when there may be news of either direction, or after `wake`: look again.

        A read or a write that found nothing has armed; so later news is not missed.
        """
        if self._led:
            await self._followers.park()
            return
        self._led = True
        channel = self._channel
        try:
            await trio.lowlevel.wait_readable(channel.fileno())
        except trio.ClosedResourceError:
            if channel.closed:
                raise
        finally:
            self._led = False
            # First clear, then look; and even a cancelled leader hands the lead on.
            if channel.handle is not None:
                lib.pv_channel_collect(channel.handle)
            if self._followers.lot is not None:
                self._followers.unpark_all()

    async def wait_for_room(self) -> None:
        """`wait`, for a sender: a substitute tells it when there may be room."""
        self._sender_waits = True
        try:
            await self.wait()
        finally:
            self._sender_waits = False

    def wake(self) -> None:
        """Ends a `wait` now."""
        if self._led and not self._channel.closed:
            trio.lowlevel.notify_closing(self._channel.fileno())

    async def wait_instead(self) -> None:
        """Returns when there may be news for another `turn`, which must follow, or after
        `wake_substitute`. A task that is in `wait` meanwhile learns of the peer's death alone; only
        one that sends is told when there may be room. trio.BusyResourceError if another one is in
        here and was not woken.

        The next substitute may come before a woken one has run, and owns the events then: so only
        the owner gives them back to the leader.
        """
        native = self._channel.native()
        me = object()
        before, self._substitute = self._substitute, me
        lib.pv_channel_mute(native, 1)
        try:
            await trio.lowlevel.wait_readable(lib.pv_channel_event_fd(native))
            native = self._channel.native()  # not the one of before: it may be closed by now
            lib.pv_channel_woken(native)
            if self._sender_waits:
                self.wake()  # the leader, who may be the sender or stand before it
        except trio.BusyResourceError:
            self._substitute = before
            raise
        except trio.ClosedResourceError:
            if self._channel.closed:
                raise
        finally:
            if self._substitute is me:
                self._substitute = None
                if not self._channel.closed:
                    # Uncleared news shows there again.
                    lib.pv_channel_mute(self._channel.native(), 0)

    def wake_substitute(self) -> None:
        """Ends a `wait_instead` now; it may end another one's as well, which then looks again."""
        if self._substitute is not None and not self._channel.closed:
            trio.lowlevel.notify_closing(lib.pv_channel_event_fd(self._channel.native()))

    def close(self) -> None:
        """Closes without waiting; tasks that wait get ``trio.ClosedResourceError``."""
        if not self._channel.closed:
            trio.lowlevel.notify_closing(self._channel.fileno())
            self.wake_substitute()
            self._channel.close()
            self._followers.unpark_all()


def broken(code: int) -> trio.BrokenResourceError:
    """The error for a code of C that is neither bytes, nor the clean end, nor "nothing there"."""
    if code == lib.PV_BROKEN:
        return trio.BrokenResourceError("the peer published impossible ring indices")
    if code == lib.PV_FLOODED:
        return trio.BrokenResourceError("event flood: the peer woke us too often without news")
    if code == lib.PV_DIED:
        return trio.BrokenResourceError("the peer is gone without closing the channel")
    return trio.BrokenResourceError("the peer has closed the channel")
