"""A trio stream over a vchan channel, in the manner of trio's own pipe streams."""

from __future__ import annotations

import trio

from ._native import ffi, lib
from .channel import Channel
from .conversation import Conversation, broken, scratch

# As large as a control channel's ring: one call always takes everything that is ready there.
DEFAULT_RECEIVE_SIZE = 65536

# Turns of send_all between two checkpoints. A peer that reads as fast as we write leaves room each
# time, and other tasks would never get a turn; so many times the largest ring are copied in 1 ms.
TURNS_MAX = 4


class _Guard:
    """Lets one task in at a time; a second one is a bug that must show."""

    __slots__ = ("_held", "_message")

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

    __slots__ = ("_channel", "_receive_guard", "_send_guard", "conversation")

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._send_guard = _Guard("another task is using this stream for send")
        self._receive_guard = _Guard("another task is using this stream for receive")
        #: For conversations instead of streams: it bypasses the stream.
        self.conversation = Conversation(channel)

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
                        await self.conversation.wait_for_room()
                    else:
                        raise broken(count)

    async def wait_send_all_might_not_block(self) -> None:
        """Returns once the ring has room, or once a send would fail."""
        with self._send_guard:
            self._channel.native()
            await trio.lowlevel.checkpoint()
            while (count := lib.pv_channel_room(self._channel.native())) == lib.PV_WOULD_BLOCK:
                await self.conversation.wait_for_room()
            if count < 0:
                raise broken(count)

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
                count = lib.pv_channel_peek(native, max_bytes, scratch.span)
                if count > 0:
                    # The one copy out of shared memory; only the copy is ever parsed.
                    data = bytes(ffi.buffer(scratch.span[0], count))
                    lib.pv_channel_consume(native, count)
                    return data
                if count == lib.PV_CLOSED:
                    return b""
                if count != lib.PV_WOULD_BLOCK:
                    raise broken(count)
                await self.conversation.wait()

    def close(self) -> None:
        """Closes without waiting; tasks inside the stream get ``trio.ClosedResourceError``."""
        self.conversation.close()

    async def aclose(self) -> None:
        """Closes this end. The peer still receives what was sent."""
        self.close()
        await trio.lowlevel.checkpoint()
