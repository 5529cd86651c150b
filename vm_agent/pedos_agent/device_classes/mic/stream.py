"""One microphone that the user's session lends or offers, and what the session says of it."""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable
from typing import Final

import trio
from pedos_protocol.errors import CallError, RemoteProtocolError
from pedos_protocol.names import harmless_text
from pedos_protocol.sound_link import Close, Message, Mute
from pedos_vchan.pump import Why

from pedos_agent.device_classes.lifetime import Lifetime

# A sound server opens a device in less than one; dom0 waits 15 s for an attach.
READY_SECONDS: Final = 10.0
# For what takes the session a moment. What is not done by then is done without its help: the other
# end of the stream is closed.
CLOSE_SECONDS: Final = 2.0
MUTE_SECONDS: Final = 2.0
# dom0 asks this side to stop as soon as it has heard from the other one.
TOLD_SECONDS: Final = 1.0
# Log2 of the bytes from the target to the source, which only says START and STOP, and back: 170 ms
# of sound. More would be older sound, and not less loss.
RING_ORDERS: Final = (10, 14)
# Bytes that wait in the socket for the session, or for the pump: some 85 ms.
SOCKET_BYTES: Final = 8 * 1024

#: What the session has ended without a reason.
NO_REASON: Final = "pedos-sound has ended it"


def ends() -> tuple[socket.socket, socket.socket]:
    """The two ends of a stream of frames, for the pump and for the session. OSError."""
    pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    for each in pair:
        each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BYTES)
    return pair


async def end_after_pump(lifetime: Lifetime, why: Why, stream: Stream | None) -> None:
    """End an attachment because its pump ended. Where the other agent has ended its part, it tells
    dom0 the reason, and dom0 asks this side to stop: no second reason is then given."""
    if why is Why.PEER_CLOSED:
        if stream is not None:
            await stream.close()
        with trio.move_on_after(TOLD_SECONDS):
            await lifetime.ending()
    await lifetime.end_after_pump(why)


class Stream:
    """A stream that the session knows by `id`, until one of both sides ends it.

    `ended` gets the reason when the session does, `heard` whether somebody records.
    """

    def __init__(
        self,
        id_: int,
        send: Callable[[Message], None],
        forget: Callable[[int], object],
        *,
        ended: Callable[[str], None],
        heard: Callable[[bool], None],
    ) -> None:
        """As if its beginning had just been sent. `send` does nothing if the session is over;
        after `forget` nothing that the session says of this id matters."""
        self.id = id_
        self._send = send
        self._forget = forget
        self._ended = ended
        self._heard = heard
        # The answers that the session owes, in order: to its beginning, then one to each `Mute`.
        self._began = trio.Event()
        self._owed = deque([self._began])
        self._over = trio.Event()
        self._why = ""
        self._closed = False

    # What the session says

    def answered(self) -> None:
        """RemoteProtocolError if nothing was asked."""
        if not self._owed:
            raise RemoteProtocolError("an answer that nobody waits for")
        self._owed.popleft().set()

    def listened(self, listening: bool) -> None:
        """Somebody records now, or nobody does any more."""
        if not self._closed:
            self._heard(listening)

    def end(self, why: str) -> None:
        """It is over. After `close` it was asked for, and the reason does not matter."""
        self._why = harmless_text(why) or NO_REASON
        self._over.set()
        for each in self._owed:
            each.set()
        self._owed.clear()
        if not self._closed:
            self._heard(False)
            self._ended(self._why)

    # What the agent asks

    async def ready(self) -> None:
        """Returns when it works. CallError if it does not."""
        with trio.move_on_after(READY_SECONDS):
            await self._began.wait()
        if self._over.is_set():
            raise CallError("failed", self._why)
        if not self._began.is_set():
            raise CallError("failed", f"pedos-sound did not answer within {READY_SECONDS:g} s")

    async def mute(self, muted: bool) -> None:
        """Returns when its listener hears nothing more, or it is over. Whoever unmutes does not
        wait."""
        done = trio.Event()
        if self._over.is_set():
            return
        self._owed.append(done)
        self._send(Mute(self.id, muted))
        if not muted:
            return
        with trio.move_on_after(MUTE_SECONDS):
            await done.wait()
        if not done.is_set():
            self._heard(False)
            self._ended("pedos-sound did not mute it")

    async def close(self) -> None:
        """Returns when nothing of it is left in the session, or after CLOSE_SECONDS."""
        if self._closed or self._over.is_set():
            return
        self._heard(False)
        self._closed = True
        self._send(Close(self.id))
        with trio.move_on_after(CLOSE_SECONDS) as waiting:
            waiting.shield = True
            await self._over.wait()
        self._forget(self.id)
