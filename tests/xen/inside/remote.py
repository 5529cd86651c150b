"""A stream's far end in another domain, driven from here: for checks that hold both ends at once.

Every call of the far end travels as one line of JSON over a channel of its own and runs there; its
result or its error comes back the same way, and a cancellation travels after it.
"""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import Awaitable, Callable
from typing import Any

import trio
import trio.testing
from pedos_vchan import xen
from pedos_vchan.stream import VchanStream

COMMANDS_PORT = 60
FIRST_PORT = 100
ERRORS = (
    trio.BrokenResourceError,
    trio.BusyResourceError,
    trio.ClosedResourceError,
    TypeError,
    ValueError,
)

Opener = Callable[[str, int, int, int], Awaitable[xen.Channel]]


class Lines:
    """Messages over a stream, one a line."""

    def __init__(self, stream: VchanStream) -> None:
        self._stream = stream
        self._lock = trio.Lock()
        self._held = b""

    async def send(self, message: dict[str, Any]) -> None:
        # Half a line would be no message for ever after.
        with trio.CancelScope(shield=True):
            async with self._lock:
                await self._stream.send_all(json.dumps(message).encode() + b"\n")

    async def receive(self) -> dict[str, Any] | None:
        while b"\n" not in self._held:
            part = await self._stream.receive_some()
            if not part:
                return None
            self._held += part
        line, _, self._held = self._held.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message


async def serve(opened: Opener, peer: int) -> None:
    """Makes what the other side asks for, until it closes."""
    lines = Lines(VchanStream(await opened("server", peer, COMMANDS_PORT, 16)))
    streams: dict[int, VchanStream] = {}
    scopes: dict[int, trio.CancelScope] = {}

    async def make(request: dict[str, Any]) -> Any:
        which, verb = request["stream"], request["verb"]
        if verb == "open":
            channel = await opened(request["role"], peer, which, request["order"])
            streams[which] = VchanStream(channel)
            return None
        stream = streams[which]
        if verb == "send_all":
            return await stream.send_all(base64.b64decode(request["data"]))
        if verb == "receive_some":
            return base64.b64encode(await stream.receive_some(request["most"])).decode()
        if verb == "wait":
            return await stream.wait_send_all_might_not_block()
        return await stream.aclose()

    async def run(request: dict[str, Any]) -> None:
        answer = {"id": request["id"]}
        with trio.CancelScope() as scope:
            scopes[request["id"]] = scope
            try:
                answer["result"] = await make(request)
            except ERRORS as error:
                answer["error"] = type(error).__name__
        if scope.cancelled_caught:
            answer["error"] = "Cancelled"
        await lines.send(answer)

    async with trio.open_nursery() as nursery:
        while (request := await lines.receive()) is not None:
            if request["verb"] == "cancel":
                scopes[request["id"]].cancel()
            else:
                # Run in the order in which they came, as calls of one program would be.
                nursery.start_soon(run, request)
                await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()


class Far:
    """The other domain, seen from here."""

    def __init__(self, lines: Lines) -> None:
        self._lines = lines
        self._numbers = itertools.count()
        self._open: dict[int, tuple[trio.Event, dict[str, Any]]] = {}
        self.ports = itertools.count(FIRST_PORT)

    async def listen(self) -> None:
        while (answer := await self._lines.receive()) is not None:
            event, into = self._open.pop(answer["id"])
            into.update(answer)
            event.set()

    async def call(self, **request: Any) -> Any:
        number = next(self._numbers)
        event, answer = trio.Event(), {}
        self._open[number] = (event, answer)
        await trio.lowlevel.checkpoint()
        await self._lines.send({"id": number, **request})
        try:
            await event.wait()
        except trio.Cancelled:
            with trio.CancelScope(shield=True):
                await self._lines.send({"id": number, "verb": "cancel"})
                await event.wait()
            raise
        for kind in ERRORS:
            if answer.get("error") == kind.__name__:
                raise kind("in the other domain")
        return answer.get("result")


class FarStream(trio.abc.Stream):
    """A VchanStream of the other domain."""

    def __init__(self, far: Far, which: int) -> None:
        self._far = far
        self._which = which
        self._closed = False

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        text = base64.b64encode(data).decode()
        await self._far.call(stream=self._which, verb="send_all", data=text)

    async def wait_send_all_might_not_block(self) -> None:
        await self._far.call(stream=self._which, verb="wait")

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        result = await self._far.call(stream=self._which, verb="receive_some", most=max_bytes)
        return base64.b64decode(result)

    async def aclose(self) -> None:
        if not self._closed:
            self._closed = True
            # A close that is cancelled closes all the same.
            with trio.CancelScope(shield=True):
                await self._far.call(stream=self._which, verb="aclose")
        await trio.lowlevel.checkpoint()


async def check(opened: Opener, peer: int, far_role: str) -> int:
    """trio's own check of a two-way stream, between two domains; returns how many it took."""
    lines = Lines(VchanStream(await opened("client", peer, COMMANDS_PORT, 16)))
    far = Far(lines)
    made = 0

    async def make(order: int = 16) -> tuple[trio.abc.Stream, trio.abc.Stream]:
        nonlocal made
        made += 1
        which = next(far.ports)
        near: list[VchanStream] = []

        async def here() -> None:
            role = "client" if far_role == "server" else "server"
            near.append(VchanStream(await opened(role, peer, which, order)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(here)
            await far.call(stream=which, verb="open", role=far_role, order=order)
        return near[0], FarStream(far, which)

    async def clogged() -> tuple[trio.abc.Stream, trio.abc.Stream]:
        one, two = await make(12)
        await one.send_all(bytes(4096))
        await two.send_all(bytes(4096))
        return one, two

    async with trio.open_nursery() as nursery:
        nursery.start_soon(far.listen)
        await trio.testing.check_two_way_stream(make, clogged)
        nursery.cancel_scope.cancel()
    return made
