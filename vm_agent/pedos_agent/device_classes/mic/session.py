"""One connection of the user's `pedos-sound`: what it says of the session, and its streams.

The session's programs are not trusted: they may send anything at any time, or nothing. They can end
what this session has, and cost the agent a bounded part of its time and memory.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import trio
from pedos_host.packets import PacketSocket
from pedos_protocol.errors import CallError, RemoteProtocolError
from pedos_protocol.names import harmless_text
from pedos_protocol.sound_link import (
    DATAGRAM_MAX,
    SESSION,
    VERSION,
    Borrow,
    Device,
    Devices,
    Ended,
    Failed,
    Hello,
    Lend,
    Listening,
    Message,
    Ready,
    Server,
    Welcome,
    build,
    parse,
)

from pedos_agent.device_classes.mic.stream import Stream
from pedos_agent.system.reading import words

log = logging.getLogger(__name__)

# A program says it as its first act.
HELLO_SECONDS: Final = 5.0
# Messages a second in the long run, and at once. Each of at most 128 streams says twice a second
# whether it is heard; with all of them, and a list of devices, a session begins.
RATE: Final = 300
BURST: Final = 600
# Bytes that count as one message more: to read a list of devices takes as long as 20 short ones.
BYTES_PER_MESSAGE: Final = 1024
_LAST_ID: Final = 2**32 - 1

#: Before it has said anything of its sound server.
NOT_YET: Final = "pedos-sound has just begun"
AGENT_ENDS: Final = "the VM's agent ends"
LEFT: Final = "pedos-sound has ended: the user has logged out, or it is just restarted"


class Session:
    """A session from its connection on.

    `devices` are its microphones, None before it has listed any; `lack` is why there is no sound
    server, "" if there is one. `changed` is called when either changes.
    """

    def __init__(self, packets: PacketSocket, number: int, changed: Callable[[], None]) -> None:
        """`number` tells it from all others of this agent."""
        self.uid = packets.uid
        self.number = number
        self.devices: tuple[Device, ...] | None = None
        self.lack = NOT_YET
        self._packets = packets
        self._changed = changed
        self._streams: dict[int, Stream] = {}
        self._last_id = 0
        self._next = 0.0  # when the next message may come, if the burst is used up
        self._scope = trio.CancelScope()
        self._reason: str | None = None

    async def run(self) -> str:
        """Serve it until it ends; returns why it did. Its streams have ended then."""
        why = AGENT_ENDS
        try:
            with self._scope:
                await self._converse()
            why = LEFT
        except (RemoteProtocolError, OSError) as error:
            said = words(error) if isinstance(error, OSError) else str(error)
            why = f"the connection of pedos-sound failed: {harmless_text(said)}"
        finally:
            self.devices, self.lack = None, LEFT
            self._packets.close()
            streams, self._streams = self._streams, {}
            for each in streams.values():
                each.end(self._reason or why)
        return self._reason or why

    def end(self, why: str) -> None:
        """Have it end; the first reason counts."""
        self._reason = self._reason or why
        self._scope.cancel()

    def device(self, device_id: str) -> Device | None:
        """Its microphone of that id; None if it has none."""
        return next((each for each in self.devices or () if each.id == device_id), None)

    def marks(self, device: Device) -> tuple[str, ...]:
        """What tells the microphone from another one that has its id at another time."""
        return ("session", str(self.number), device.identity)

    # Its streams

    def lend(
        self,
        device: Device,
        vm: str,
        muted: bool,
        descriptor: int,
        *,
        ended: Callable[[str], None],
        heard: Callable[[bool], None],
    ) -> Stream:
        """Have a device recorded for a VM, as frames to the descriptor. CallError."""
        message = partial(Lend, device=device.id, identity=device.identity, vm=vm, is_muted=muted)
        return self._begin(message, descriptor, ended, heard)

    def borrow(
        self,
        vm: str,
        device: str,
        description: str,
        descriptor: int,
        *,
        ended: Callable[[str], None],
    ) -> Stream:
        """Have the frames from the descriptor offered as a VM's microphone. CallError."""
        message = partial(Borrow, vm=vm, device=device, description=description)
        return self._begin(message, descriptor, ended, lambda _listening: None)

    def _begin(
        self,
        message: Callable[..., Message],
        descriptor: int,
        ended: Callable[[str], None],
        heard: Callable[[bool], None],
    ) -> Stream:
        if self._last_id == _LAST_ID:
            self.end("pedos-sound has had all streams of one connection")
        if self._reason is not None:
            raise CallError("failed", self._reason)
        self._last_id += 1
        stream = Stream(self._last_id, self._send, self._forget, ended=ended, heard=heard)
        try:
            self._packets.send_now(build(message(self._last_id)), [descriptor])
        except (OSError, trio.ClosedResourceError) as error:
            self._failed(error)
            raise CallError("failed", self._reason or LEFT) from error
        self._streams[stream.id] = stream
        return stream

    def _forget(self, id_: int) -> None:
        self._streams.pop(id_, None)

    def _send(self, message: Message) -> None:
        try:
            self._packets.send_now(build(message))
        except (OSError, trio.ClosedResourceError) as error:
            self._failed(error)

    def _failed(self, error: Exception) -> None:
        """It could not be sent something. A session that is stopped has room for hundreds of
        messages."""
        if isinstance(error, BlockingIOError):
            self.end("pedos-sound does not answer")
        elif isinstance(error, OSError):
            self.end(f"pedos-sound cannot be reached: {words(error)}")
        else:
            self.end(LEFT)

    # What it says

    async def _converse(self) -> None:
        first = None
        with trio.move_on_after(HELLO_SECONDS):
            first = await self._receive()
            if first is None:
                return
        if not isinstance(first, Hello):
            raise RemoteProtocolError("it did not begin with a hello")
        if first.version < VERSION:
            raise RemoteProtocolError(f"its version is {first.version}, and {VERSION} the least")
        log.info("the session of user %d: %s", self.uid, harmless_text(first.program))
        self._send(Welcome(VERSION))
        while (message := await self._receive()) is not None:
            self._take(message)

    async def _receive(self) -> Message | None:
        """The next message; None at the end. RemoteProtocolError, OSError."""
        try:
            untrusted = await self._packets.receive(DATAGRAM_MAX)
        except (ConnectionResetError, trio.ClosedResourceError):
            return None
        if not untrusted:
            return None
        price = 1 + len(untrusted) / BYTES_PER_MESSAGE
        self._next = max(self._next, trio.current_time()) + price / RATE
        await trio.sleep_until(self._next - BURST / RATE)
        return parse(untrusted, SESSION)

    def _take(self, message: Any) -> None:
        if isinstance(message, Server):
            self.lack = harmless_text(message.state)
            self._changed()
        elif isinstance(message, Devices):
            self.devices = message.devices
            self._changed()
        elif isinstance(message, Hello):
            raise RemoteProtocolError("a second hello")
        elif (stream := self._stream(message.id)) is None:
            pass  # it has crossed with the end of the stream
        elif isinstance(message, Ready):
            stream.answered()
        elif isinstance(message, Listening):
            stream.listened(message.is_listening)
        elif isinstance(message, (Failed, Ended)):
            del self._streams[message.id]
            stream.end(message.why)

    def _stream(self, id_: int) -> Stream | None:
        """The stream of that id; None if it is over. RemoteProtocolError if there was none."""
        if not 0 < id_ <= self._last_id:
            raise RemoteProtocolError(f"a stream that it was not given: {id_}")
        return self._streams.get(id_)
