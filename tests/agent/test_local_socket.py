"""What any user of a VM can do at its agent's socket, and how the agent handles it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from pedos_agent.connections.local_socket import (
    FORWARDS_MAX,
    METHODS,
    REQUEST_MAX,
    LocalSocket,
)
from pedos_host.throttle import LINES, Throttle
from pedos_host.unix import connect_unix
from pedos_protocol.codec import FRAME_MAX
from pedos_protocol.connection import PENDING_MAX, VERSIONS, Connection
from pedos_protocol.errors import CallError
from pedos_protocol.events import Answer, Hello, NeedData, Notice, Request
from pedos_vchan.peer import Peer, open_peer

from tests.patience import PATIENCE

if TYPE_CHECKING:
    from pathlib import Path

    from trio.abc import Clock


class Dom0:
    """What is passed on."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def ask(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        await trio.lowlevel.checkpoint()
        self.asked.append(method)
        if params:
            return params
        raise CallError("usage", "it lacks its parameters")


async def test_notices_in_the_shape_of_requests_are_neither_passed_on_nor_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dom0, path = Dom0(), tmp_path / "sock"
    async with trio.open_nursery() as nursery:
        await nursery.start(LocalSocket(path, dom0.ask).run)
        stream, connection = await connect_unix(path), Connection()
        said = connection.send(Hello((1, 1), "x"))
        for method in METHODS:
            said += connection.send(Notice(method, {})) * 100
        request = Request(1, "device.list", {"device_class": "block"}, 10_000)
        await stream.send_all(said + connection.send(request))
        heard: list[Any] = []
        while not any(isinstance(event, Answer) for event in heard):
            connection.receive_data(await stream.receive_some())
            while not isinstance(event := connection.next_event(), NeedData):
                heard.append(event)
        await stream.aclose()
        nursery.cancel_scope.cancel()
    assert dom0.asked == ["device.list"]
    assert not caplog.records


async def test_clients_that_fail_are_a_few_lines_however_many_they_are(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pedos_agent.connections.local_socket.throttle", Throttle())
    caplog.set_level("INFO")
    path = tmp_path / "sock"
    async with trio.open_nursery() as nursery:
        await nursery.start(LocalSocket(path, Dom0().ask).run)
        for _ in range(3 * LINES):
            async with await connect_unix(path) as stream:
                await stream.send_all(b"nonsense")
                with pytest.raises(trio.BrokenResourceError):  # it hangs up after its hello
                    while await stream.receive_some():
                        pass
                    raise trio.BrokenResourceError
        nursery.cancel_scope.cancel()
    assert len(caplog.records) == LINES


async def test_what_dom0_alone_serves_is_said_so_in_words_for_people(tmp_path: Path) -> None:
    path = tmp_path / "sock"
    async with trio.open_nursery() as nursery:
        await nursery.start(LocalSocket(path, Dom0().ask).run)
        async with open_peer(await connect_unix(path), program="x", handlers={}) as peer:
            with pytest.raises(CallError) as refused:
                await peer.call("vm.list", {}, timeout=PATIENCE)
        nursery.cancel_scope.cancel()
    assert (refused.value.code, refused.value.message) == (
        "unknown_method",
        "dom0 alone serves the request to list the VMs, and this is a VM",
    )


async def test_no_user_can_end_the_connection_to_a_dom0_that_does_not_read(
    tmp_path: Path, autojump_clock: Clock
) -> None:
    """Requests wait for it, also those whose clients have given up."""
    dom0, ours = trio.testing.memory_stream_pair()
    await dom0.send_all(Connection().send(Hello(VERSIONS, "dom0")))
    async with open_peer(ours, program="agent", handlers={}) as peer:

        async def ask(method: str, params: dict[str, Any]) -> dict[str, Any]:
            return await peer.call(method, params, timeout=PATIENCE)

        handle = LocalSocket(tmp_path / "sock", ask)._handler("device.list")
        ours.send_stream.send_all_hook = trio.sleep_forever
        for _ in range(2 * PENDING_MAX):
            with trio.move_on_after(PATIENCE / 2):
                await handle(peer, {"exclude": ["x" * (REQUEST_MAX - 100)]})
        assert peer.is_open


async def test_the_answers_of_dom0_may_wait_for_a_vm_that_is_paused(autojump_clock: Clock) -> None:
    vm, ours = trio.testing.memory_stream_pair()
    connection = Connection()

    async def answer(_peer: Peer, _params: dict[str, Any]) -> dict[str, Any]:
        return {"devices": "x" * (FRAME_MAX - 100)}

    await vm.send_all(connection.send(Hello(VERSIONS, "agent")))
    async with open_peer(ours, program="dom0", handlers={"device.list": answer}) as peer:
        ours.send_stream.send_all_hook = trio.sleep_forever
        for number in range(FORWARDS_MAX):
            await vm.send_all(connection.send(Request(number, "device.list", {}, 60_000)))
        await trio.testing.wait_all_tasks_blocked()
        assert connection.ours_in_flight == FORWARDS_MAX
        assert peer.is_open
