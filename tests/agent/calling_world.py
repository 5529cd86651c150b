"""The calls of a VM's programs, in this process: dom0 is the test, and the other VM is a service's
side of the pump."""

from __future__ import annotations

import itertools
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import attrs
import trio
import trio.testing
from pedos_agent.calls.asking import Then
from pedos_agent.calls.calls import Calls
from pedos_agent.calls.channels import Channels
from pedos_agent.settings import Settings
from pedos_host.packets import PacketSocket
from pedos_protocol.call_link import (
    AGENT,
    DATAGRAM_MAX,
    Call,
    Ended,
    Message,
    Started,
    build,
    parse,
)
from pedos_protocol.errors import CallError
from pedos_protocol.messages import SCHEMA
from pedos_vchan.call_pump import CallPump, Event
from pedos_vchan.transport import SharedMemory

from tests.patience import PATIENCE

CALL = Call(1, True, "vault", "work.Echo", "+x", "")
ORDERS = (14, 14)


class Service:
    """The service of a call, as its pump has it; the test writes and reads the other ends."""

    def __init__(self, call: str) -> None:
        self.call = call
        self.events: list[str] = []
        self.signals: list[int] = []
        ours, theirs = zip(*(socket.socketpair() for _ in range(3)), strict=True)
        self.ends = [each.detach() for each in theirs]
        self.stdin, self.stdout, self.stderr = (
            trio.SocketStream(trio.socket.from_stdlib_socket(each)) for each in ours
        )

    def hear(self, event: Event) -> None:
        self.events.append(event.kind.name)
        if event.kind.name == "SIGNAL":
            self.signals.append(event.number)

    def close(self) -> None:
        for each in (self.stdin, self.stdout, self.stderr):
            each.socket.close()


Behave = Callable[[Service, CallPump], Awaitable[None]]


async def echo(service: Service, pump: CallPump) -> None:
    """What comes goes back, and a word to the error output."""
    await service.stderr.send_all(b"echo\n")
    async for data in service.stdin:
        await service.stdout.send_all(data)
    service.close()
    pump.exit("exited", 3)


async def until_aborted(service: Service, pump: CallPump) -> None:
    """Reads until the end of its input, whatever that means."""
    async for _ in service.stdin:
        pass
    service.close()
    pump.exit("exited", 0)


class World:
    """A VM's calls, dom0, and the other VM."""

    def __init__(self, settings: Settings, nursery: trio.Nursery) -> None:
        self.path = settings.socket.with_name("calls")
        self.settings = attrs.evolve(settings, calls=self.path)
        self.calls = Calls(self.settings, SharedMemory(settings.vchan, 2))
        self.calls.dom0 = self
        self.theirs = Channels(SharedMemory(settings.vchan, 3), lambda *_: None)
        self.nursery = nursery
        self.behave: Behave = echo
        self.asked: list[dict[str, Any]] = []
        self.told: list[tuple[str, dict[str, Any]]] = []
        self.services: list[Service] = []
        self.is_away = False  # dom0
        self.answer: Callable[[dict[str, Any]], Awaitable[dict[str, Any]]] = self.grant
        self._numbers = itertools.count(16)
        self._clients: list[Client] = []
        self._used: set[int] = set()  # ports with a call

    # dom0

    def ask(
        self, method: str, params: dict[str, Any], *, timeout: float, then: Then
    ) -> Callable[[], None]:
        """As Peer.ask of the control channel."""
        assert method == "service.call" and timeout > 0
        SCHEMA.parse_params(method, params)
        self.asked.append(params)
        scope = trio.CancelScope()
        self.nursery.start_soon(self._answer, params, then, scope)
        return scope.cancel

    async def _answer(self, params: dict[str, Any], then: Then, scope: trio.CancelScope) -> None:
        answer: dict[str, Any] | CallError = CallError("timeout", "service.call was cancelled")
        with scope:
            try:
                answer = await self.answer(params)
            except CallError as error:
                answer = error
        then(answer)

    def tell(self, method: str, params: dict[str, Any]) -> bool:
        SCHEMA.parse_params(method, params)
        if self.is_away:
            return False
        self.told.append((method, params))
        return True

    def ended(self) -> list[dict[str, Any]]:
        """What was told of ends."""
        return [params for method, params in self.told if method == "service.ended"]

    async def order(self, method: str, **params: Any) -> dict[str, Any]:
        """A request of dom0 to the agent."""
        handlers = {**self.calls.handlers, **self.calls.harmless}
        SCHEMA.parse_params(method, params)
        answer = await handlers[method](None, params)  # type: ignore[arg-type]
        SCHEMA.parse_result(method, answer)
        return answer or {}

    async def grant(self, params: dict[str, Any]) -> dict[str, Any]:
        """The call is allowed; the other VM begins."""
        both = set(self.theirs.idle()) & set(self.calls.channels.idle())
        idle = sorted(both - self._used)
        port = idle[0] if idle else next(self._numbers)
        self._used.add(port)
        call = f"{next(self._numbers):032x}"
        if not idle:
            left, right = ORDERS
            await self.order(
                "channel.listen", peer=3, port=port, left_order=left, right_order=right
            )
        self.nursery.start_soon(self._serve, call, port, not idle)
        return self.granted(call, port, not idle)

    def granted(self, call: str, port: int, new: bool) -> dict[str, Any]:
        return {
            **{"call": call, "request": "a1", "peer": 3, "port": port, "new": new},
            "target": None,
        }

    async def _serve(self, call: str, port: int, new: bool) -> None:
        channel = await (self.theirs.connect(2, port) if new else self.theirs.take(2, port))
        service = Service(call)
        self.services.append(service)
        pump = CallPump(channel, "service", bytes.fromhex(call), service.hear)
        self.nursery.start_soon(self.behave, service, pump)
        end = await pump.run(*service.ends, shutdown=True)
        self._used.discard(port)
        self.theirs.give_back(channel, "" if end.is_reusable else end.reason)

    # programs

    def connect(self) -> Client:
        client = Client(self.path)
        self._clients.append(client)
        return client

    async def run(self, message: Call = CALL, written: bytes = b"") -> tuple[Ended, bytes, bytes]:
        """One call by a program of its own: how it ended, and its output."""
        client = self.connect()
        end, out, err = await client.run(message, written)
        client.close()
        return end, out, err

    async def until(self, is_so: Callable[[], Any]) -> None:
        with trio.fail_after(PATIENCE):
            while not is_so():  # noqa: ASYNC110 - what it waits for is the code's own
                await trio.sleep(0.001)

    def close(self) -> None:
        for each in (*self._clients, *self.services):
            each.close()


class Client:
    """A program that calls."""

    def __init__(self, path: Path) -> None:
        raw = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        raw.connect(str(path))
        self.packets = PacketSocket(raw)
        self.stream: trio.SocketStream | None = None
        self.errors: trio.SocketStream | None = None

    def plain(self) -> socket.socket:
        """Its connection once more, as Python has sockets."""
        return socket.socket(fileno=os.dup(self.packets.fileno()))

    def send(self, message: Message, *descriptors: int) -> None:
        self.packets.send_now(build(message), descriptors)

    def call(self, message: Call = CALL) -> None:
        """Asks, with a socket for input and output and one for errors."""
        self._close_streams()
        ours, theirs = socket.socketpair()
        errors, their_errors = socket.socketpair()
        self.send(message, theirs.fileno(), theirs.fileno(), their_errors.fileno())
        theirs.close()
        their_errors.close()
        self.stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
        self.errors = trio.SocketStream(trio.socket.from_stdlib_socket(errors))

    async def hear(self) -> Message | None:
        with trio.fail_after(PATIENCE):
            raw = await self.packets.receive(DATAGRAM_MAX)
        return parse(raw, AGENT) if raw else None

    async def end(self) -> Ended:
        """The end, without what comes before."""
        while not isinstance(said := await self.hear(), Ended):
            assert isinstance(said, Started)
        return said

    async def run(self, message: Call, written: bytes) -> tuple[Ended, bytes, bytes]:
        self.call(message)
        assert self.stream is not None and self.errors is not None
        with trio.fail_after(PATIENCE):
            await self.stream.send_all(written)
            await self.stream.send_eof()
            out = b"".join([data async for data in self.stream])
            err = b"".join([data async for data in self.errors])
            return await self.end(), out, err

    def close(self) -> None:
        self.packets.close()
        self._close_streams()

    def _close_streams(self) -> None:
        for each in (self.stream, self.errors):
            if each is not None:
                each.socket.close()
        self.stream = self.errors = None
