"""A trio stream over a vchan channel, in the manner of trio's own pipe streams."""

from __future__ import annotations

import threading

import trio
from trio.lowlevel import ParkingLot

from ._native import ffi, lib
from .channel import Channel

# As large as a control channel's ring: nothing that is ready is ever left for a second call there.
DEFAULT_RECEIVE_SIZE = 65536

# Turns of send_all between two checkpoints. A peer that reads as fast as we write leaves room each
# time, and other tasks would never get a turn; so many times the largest ring are copied in 1 ms.
TURNS_MAX = 4

# Bytes that one turn copies out. A batch of short frames fits, and it is small beside the rings.
TURN_SIZE = 4096


class _Scratch(threading.local):
    """Where a turn's bytes go first: one for all channels of a thread, as each is idle mostly."""

    def __init__(self) -> None:
        self.sent = ffi.new("int64_t *")
        self.taken = ffi.new(f"char[{TURN_SIZE}]")


_scratch = _Scratch()


class _Guard:
    """Lets one task in at a time; a second one is a mistake that must not go unseen."""

    def __init__(self, message: str) -> None:
        self._message = message
        self._held = False

    def __enter__(self) -> None:
        if self._held:
            raise trio.BusyResourceError(self._message)
        self._held = True

    def __exit__(self, *_: object) -> None:
        self._held = False


class VchanStream(trio.abc.Stream):
    """Both directions of one channel, as a stream of bytes. Takes the channel over.

    After the peer has closed, everything that it sent is still received, then ``b""``. When it died
    without closing, everything that it had sent is still received, then
    ``trio.BrokenResourceError``; that error comes at once when it published impossible indices.

    A vchan has no half-close: there is no ``send_eof``, and ``aclose`` ends both directions. What
    was sent before it still arrives.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._send_guard = _Guard("another task is using this stream for send")
        self._receive_guard = _Guard("another task is using this stream for receive")
        # One descriptor tells of both directions, and trio lets one task wait on a descriptor: the
        # first task that waits does so for both, the other one is parked here.
        self._followers = ParkingLot()
        self._led = False
        # By how many tasks: one is in `wait_instead`, others may have been woken and not have run.
        self._substituted = 0
        self._sender_waits = False
        self._span = ffi.new("uint8_t **")

    @property
    def peer_domain(self) -> int:
        """The number of the domain at the other end, as the rendezvous says."""
        return self._channel.peer_domain

    @property
    def closed(self) -> bool:
        """Whether this end was closed."""
        return self._channel.closed

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Writes all of data to the ring; waits for the peer to make room as often as needed."""
        with self._send_guard:
            native = self._channel.native()
            await trio.lowlevel.checkpoint()
            with ffi.from_buffer("uint8_t[]", data) as whole:
                length = len(whole)
                sent = turns = 0
                while sent < length:
                    native = self._channel.native()
                    count = lib.pv_channel_send(native, whole + sent, length - sent)
                    if count > 0:
                        sent += count
                        turns += 1
                        if turns % TURNS_MAX == 0 and sent < length:
                            await trio.lowlevel.checkpoint()
                    elif count == lib.PV_WOULD_BLOCK:
                        await self._wait_for_room()
                    else:
                        raise _broken(count)

    async def wait_send_all_might_not_block(self) -> None:
        """Returns once the ring has room, or once a send would fail."""
        with self._send_guard:
            self._channel.native()
            await trio.lowlevel.checkpoint()
            while (count := lib.pv_channel_room(self._channel.native())) == lib.PV_WOULD_BLOCK:
                await self._wait_for_room()
            if count < 0:
                raise _broken(count)

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """At least one byte and at most max_bytes, or ``b""`` after the peer's clean close."""
        if max_bytes is None:
            max_bytes = DEFAULT_RECEIVE_SIZE
        elif not isinstance(max_bytes, int):
            raise TypeError("max_bytes must be integer >= 1")
        elif max_bytes < 1:
            raise ValueError("max_bytes must be integer >= 1")
        with self._receive_guard:
            self._channel.native()
            await trio.lowlevel.checkpoint()
            while True:
                native = self._channel.native()
                count = lib.pv_channel_peek(native, max_bytes, self._span)
                if count > 0:
                    # The one copy out of shared memory; only the copy is ever parsed.
                    data = bytes(ffi.buffer(self._span[0], count))
                    lib.pv_channel_consume(native, count)
                    return data
                if count == lib.PV_CLOSED:
                    return b""
                if count != lib.PV_WOULD_BLOCK:
                    raise _broken(count)
                await self.wait()

    # For a conversation, whose next words depend on the last ones. One task reads and waits; a task
    # that expects an answer may take its place, so that nothing is handed from task to task.

    def turn(self, out: bytes) -> tuple[int, bytes | None]:
        """Writes what fits of `out` and takes what has come, without waiting.

        Returns how many bytes were written, and at most TURN_SIZE that came; None if there were
        none, ``b""`` after the peer's clean close. `wait` misses nothing after None; after bytes it
        does so if `is_armed`. Bytes for a peer that is gone are dropped: its end is found by
        reading.
        ``trio.BrokenResourceError`` as from `receive_some`.
        """
        size = len(out)
        sent, taken = _scratch.sent, _scratch.taken
        count = lib.pv_channel_turn(self._channel.native(), out, size, sent, taken, TURN_SIZE)
        written = sent[0]
        if written < 0:
            written = 0 if written == lib.PV_WOULD_BLOCK else size
        if count > 0:
            return written, ffi.unpack(taken, count)
        if count == lib.PV_WOULD_BLOCK:
            return written, None
        if count == lib.PV_CLOSED:
            return written, b""
        raise _broken(count)

    def is_armed(self) -> bool:
        """Whether `wait` misses nothing; otherwise there is more for another `turn`, or the end."""
        return lib.pv_channel_is_armed(self._channel.native()) != 0

    def send_some(self, out: bytes) -> int:
        """Writes what fits of `out` without waiting: so many bytes. Those for a peer that is gone
        are dropped: its end is found by reading."""
        count: int = lib.pv_channel_send(self._channel.native(), out, len(out))
        if count < 0:
            return 0 if count == lib.PV_WOULD_BLOCK else len(out)
        return count

    async def wait(self) -> None:
        """Returns when there may be news of either direction, or after `wake`: look again.

        What found nothing to read, or no room, has armed; so what came since is not missed.
        """
        if self._led:
            await self._followers.park()
            return
        self._led = True
        try:
            await trio.lowlevel.wait_readable(self._channel.fileno())
        except trio.ClosedResourceError:
            if self._channel.closed:
                raise
        finally:
            self._led = False
            # First clear, then look; and even a cancelled leader hands the lead on.
            if not self._channel.closed:
                lib.pv_channel_collect(self._channel.native())
            if self._followers:
                self._followers.unpark_all()

    async def _wait_for_room(self) -> None:
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
        one that sends is told when there may be room.

        The next substitute may come before one that was woken has run: so only the last one that
        leaves undoes what the first one that came has done."""
        native = self._channel.native()
        self._substituted += 1
        lib.pv_channel_mute(native, 1)
        try:
            await trio.lowlevel.wait_readable(lib.pv_channel_event_fd(native))
            native = self._channel.native()  # not the one of before: it may be closed by now
            lib.pv_channel_woken(native)
            if self._sender_waits:
                self.wake()  # the leader, who may be the sender or stand before it
        except trio.ClosedResourceError:
            if self._channel.closed:
                raise
        finally:
            self._substituted -= 1
            if not self._substituted and not self._channel.closed:
                # What came and was not cleared shows there again.
                lib.pv_channel_mute(self._channel.native(), 0)

    def wake_substitute(self) -> None:
        """Ends a `wait_instead` now; it may end another one's as well, who then looks again."""
        if self._substituted and not self._channel.closed:
            trio.lowlevel.notify_closing(lib.pv_channel_event_fd(self._channel.native()))

    def close(self) -> None:
        """Closes without waiting; tasks inside the stream get ``trio.ClosedResourceError``."""
        if not self._channel.closed:
            trio.lowlevel.notify_closing(self._channel.fileno())
            self.wake_substitute()
            self._channel.close()
            self._followers.unpark_all()

    async def aclose(self) -> None:
        """Closes this end. The peer still receives what was sent."""
        self.close()
        await trio.lowlevel.checkpoint()


def _broken(code: int) -> trio.BrokenResourceError:
    if code == lib.PV_BROKEN:
        return trio.BrokenResourceError("the peer published impossible ring indices")
    if code == lib.PV_FLOODED:
        return trio.BrokenResourceError("event flood: the peer woke us too often without news")
    if code == lib.PV_DIED:
        return trio.BrokenResourceError("the peer is gone without closing the channel")
    return trio.BrokenResourceError("the peer has closed the channel")
