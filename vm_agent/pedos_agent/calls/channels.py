"""The channels over which calls go, one call at a time: those that are in use, and idle ones.

dom0 decides which there are, and when an idle one is not kept any more; only what ends by itself is
told to dom0. The caller's VM listens on a port, its grants pay; the other VM connects.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Final

import trio
from pedos_host.faultpoints import reach
from pedos_host.throttle import throttle
from pedos_protocol.errors import CallError
from pedos_vchan.channel import Channel
from pedos_vchan.idle import IdleChannels
from pedos_vchan.transport import Listener, Transport

log = logging.getLogger(__name__)

#: Tell(method, params) tells dom0, if it is connected; it does not wait.
Tell = Callable[[str, dict[str, Any]], None]

# From dom0's request until the channel is there, with the wait for others that are being made: the
# other VM connects as soon as dom0 has told it to. Between guests that takes 0.1 s; dom0 gives all
# that it does for a call at most as long.
SETUP_SECONDS: Final = 10.0
# The same once dom0's service has ended: a VM that it has told to connect does so by then.
ALONE_SECONDS: Final = 0.5
# As for data channels: the server listens before the other VM is told to connect.
CONNECT_SECONDS: Final = 1.0
RETRY_SECONDS: Final = 0.02
# Channels that are being made at once. Each takes a transaction and a watch of xenstore, of which a
# guest has 10 and 128 for everything.
MAKING_MAX: Final = 4
# Ports of this VM, whichever side it is: dom0 has at most 64 calls of a caller run, 128 of a
# target, and 8 idle channels. Beyond this dom0 would have lost count.
PORTS_MAX: Final = 256


class _Port:
    """One channel: on its way, idle, or in use."""

    __slots__ = (
        *("arrived", "channel", "is_client", "is_used", "is_wanted", "listening", "peer", "port"),
        "why",
    )

    def __init__(self, peer: int, port: int) -> None:
        self.peer = peer
        self.port = port
        self.channel: Channel | None = None
        self.arrived = trio.Event()  # or it never will: see `why`
        self.why = ""
        self.is_client = False  # this VM has connected
        self.is_used = False
        self.is_wanted = True  # by dom0; else it is closed after its use
        self.listening: trio.CancelScope | None = None

    def can_be_taken(self, peer: int) -> bool:
        """Whether it is there, or expected, for a call with that VM."""
        return self.peer == peer and self.is_wanted and not self.is_used


class Channels:
    """The channels of this VM for calls, by port."""

    def __init__(self, transport: Transport, tell: Tell) -> None:
        """`tell` gets the notices for dom0."""
        self._transport = transport
        self._tell = tell
        self._ports: dict[int, _Port] = {}
        self._idle = IdleChannels(self._news)
        self._making = trio.Semaphore(MAKING_MAX)
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the idle channels until cancelled; then close those that are not in use."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                task_status.started()
                try:
                    await trio.sleep_forever()
                finally:
                    self._nursery = None  # before it is closed to new tasks
        finally:
            for each in list(self._ports.values()):
                if not each.is_used:
                    self._drop(each)

    def idle(self) -> tuple[int, ...]:
        """The ports of channels that are not in use: idle, or waiting for the other VM."""
        return tuple(sorted(each.port for each in self._ports.values() if not each.is_used))

    async def listen(self, peer: int, port: int, orders: tuple[int, int]) -> None:
        """Await that VM at the port; returns when it can connect. CallError, OSError."""
        entry = self._new(peer, port)
        until = trio.current_time() + SETUP_SECONDS
        listener = None
        try:
            with trio.CancelScope(deadline=until):
                async with self._making:
                    listener = await self._transport.listen(peer, port, orders)
            if listener is None:
                message = f"this VM cannot make a channel within {SETUP_SECONDS:g} s"
                raise CallError("timeout", message)
        except BaseException:
            self._drop(entry)
            raise
        if self._nursery is None or not entry.is_wanted:
            listener.close()
            self._drop(entry)
            raise CallError("failed", f"port {port} is not wanted any more")
        entry.listening = trio.CancelScope(deadline=until)
        self._nursery.start_soon(self._accept, entry, listener, entry.listening)

    async def _accept(self, entry: _Port, listener: Listener, scope: trio.CancelScope) -> None:
        problem = f"the other VM did not connect within {SETUP_SECONDS:g} s"
        with listener, scope:
            try:
                await reach("calling.listening")
                channel = await listener.accept()
            except (OSError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
                problem = f"the other VM cannot connect: {error}"
            else:
                entry.channel = channel
        entry.listening = None
        if entry.channel is None:
            self._fail(entry, entry.why or problem)
        elif not entry.is_wanted:
            self._drop(entry)
        elif not entry.is_used:
            self._rest(entry)
        entry.arrived.set()

    async def connect(self, peer: int, port: int) -> Channel:
        """A new channel to the VM that listens at the port, for use at once; `give_back` ends the
        use. CallError, OSError."""
        entry = self._new(peer, port)
        entry.is_client = entry.is_used = True
        try:
            entry.channel = await self._connected(peer, port)
        except BaseException:
            self._drop(entry)
            raise
        entry.arrived.set()
        return entry.channel

    async def _connected(self, peer: int, port: int) -> Channel:
        why = f"it is not there within {SETUP_SECONDS:g} s"
        with trio.move_on_after(SETUP_SECONDS):
            async with self._making:
                begun = trio.current_time()
                while True:
                    try:
                        return await self._transport.connect(peer, port)
                    except (FileNotFoundError, ConnectionRefusedError) as error:
                        if trio.current_time() - begun >= CONNECT_SECONDS:
                            why = error.strerror or str(error)
                            break
                    await trio.sleep(RETRY_SECONDS)
        raise CallError("failed", f"no channel to the calling VM: {why}")

    def take_idle(self, peer: int, port: int) -> Channel | None:
        """The channel to that VM at the port, for use, if it is there and idle; None otherwise:
        `take` says why, or waits. `give_back` ends the use."""
        entry = self._ports.get(port)
        if entry is None or entry.channel is None or not entry.can_be_taken(peer):
            return None
        entry.is_used = True
        self._idle.remove(entry.channel)
        return entry.channel

    async def take(self, peer: int, port: int) -> Channel:
        """As `take_idle`; waits for the VM if it is only expected. CallError."""
        if (channel := self.take_idle(peer, port)) is not None:
            return channel
        entry = self._ports.get(port)
        if entry is None or not entry.can_be_taken(peer):
            raise CallError("failed", f"there is no channel to domain {peer} at port {port}")
        entry.is_used = True
        try:
            await entry.arrived.wait()
        except BaseException:
            entry.is_used = False
            self.close(port)
            raise
        if entry.channel is None:
            raise CallError("failed", entry.why)
        return entry.channel

    def give_back(self, channel: Channel, reason: str = "") -> None:
        """End the use of a channel. It is idle then, or closed with the `reason` why it is of no
        more use."""
        entry = self._ports.get(channel.port)
        if entry is None or entry.channel is not channel:
            channel.close()
            return
        entry.is_used = False
        if reason or channel.closed or not entry.is_wanted or self._nursery is None:
            self._fail(entry, reason or "it was closed")
        else:
            self._rest(entry)

    def close(self, port: int) -> None:
        """dom0 does not want the channel at the port any more; one in use is closed after that."""
        entry = self._ports.get(port)
        if entry is None:
            return
        entry.is_wanted = False
        if entry.listening is not None:
            entry.why = entry.why or "dom0 gave it up before the other VM had connected"
            entry.listening.cancel()
        elif not entry.is_used:
            self._drop(entry)

    def alone(self) -> None:
        """The connection to dom0 has ended, which forgets the idle channels. It may have told one
        VM of a call, and not the other; that one hears it from this VM."""
        soon = trio.current_time() + ALONE_SECONDS
        for each in list(self._ports.values()):
            if each.listening is not None:
                each.listening.deadline = min(each.listening.deadline, soon)
                each.why = "dom0's service ended before the other VM had connected"
            elif each.is_client and not each.is_used:
                self._drop(each)
        if self._nursery is not None:
            unused = [each for each in self._ports.values() if not each.is_used]
            self._nursery.start_soon(self._drop_later, unused)

    async def _drop_later(self, unused: Sequence[_Port]) -> None:
        """Close those that are still idle when all that dom0 has said at last is done."""
        await trio.sleep(ALONE_SECONDS)
        for each in unused:
            if not each.is_used and each.listening is None:
                self._drop(each)

    def _new(self, peer: int, port: int) -> _Port:
        if port in self._ports:
            raise CallError("failed", f"port {port} is in use")
        if len(self._ports) >= PORTS_MAX:
            message = f"this VM has {PORTS_MAX} channels for calls, which is the most"
            raise CallError("quota", message)
        entry = self._ports[port] = _Port(peer, port)
        return entry

    def _rest(self, entry: _Port) -> None:
        assert entry.channel is not None
        try:
            self._idle.add(entry.channel)
        except OSError as error:
            self._fail(entry, f"it cannot be watched: {error.strerror}")

    def _news(self, channel: Channel, news: str) -> None:
        entry = self._ports.get(channel.port)
        if entry is None or entry.channel is not channel or entry.is_used:
            return
        # Bytes before the use: the other side has begun the next call, or breaks the rules; the one
        # who takes the channel finds out. dom0 closes it if nobody does.
        if news == "closed":
            self._fail(entry, "the other VM has closed it, or has ended")

    def _fail(self, entry: _Port, reason: str) -> None:
        """The channel is of no more use, which dom0 is told unless it has said so itself."""
        entry.why = reason
        self._drop(entry)
        if entry.is_wanted:
            if (more := throttle.more("a channel for calls ended")) is not None:
                log.info("the channel at port %d ended: %s%s", entry.port, reason, more)
            self._tell("channel.closed", {"port": entry.port, "reason": reason})

    def _drop(self, entry: _Port) -> None:
        if self._ports.get(entry.port) is entry:
            del self._ports[entry.port]
        channel, entry.channel = entry.channel, None
        if channel is not None:
            self._idle.remove(channel)
            channel.close()
