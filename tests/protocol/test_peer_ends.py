"""The end of one direction is the end of both (docs/protocol.md)."""

from __future__ import annotations

import socket
from typing import Any

import pytest
import trio
import trio.testing
from pedos_protocol.connection import VERSIONS, Connection
from pedos_protocol.events import Hello, NeedData, Request
from pedos_vchan.peer import Peer

Params = dict[str, Any]


async def test_what_a_side_asked_for_is_cancelled_when_it_has_said_its_last_word(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A half-close, of which a vchan has none; and nobody can tell it from a program's death."""
    ours, theirs = (
        trio.SocketStream(trio.socket.from_stdlib_socket(end)) for end in socket.socketpair()
    )
    served = []

    async def wait(_peer: Peer, _params: Params) -> None:
        try:
            await trio.sleep_forever()
        finally:
            served.append("cancelled")

    async def undo(peer: Peer, _params: Params) -> Params:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await peer.notify("test.undone", {})  # it is told nothing any more
            served.append("undone")
        return {}

    connection = Connection()
    heard = []
    async with trio.open_nursery() as nursery:
        peer = Peer(theirs, program="served 1", handlers={"test.wait": wait, "test.undo": undo})
        nursery.start_soon(peer.run)
        said = connection.send(Hello(VERSIONS, "x"))
        said += connection.send(Request(1, "test.wait", {}, 60_000))
        said += connection.send(Request(2, "test.undo", {}, 60_000))
        await ours.send_all(said)
        await trio.testing.wait_all_tasks_blocked()
        await ours.send_eof()
        while data := await ours.receive_some():
            connection.receive_data(data)
            while not isinstance(event := connection.next_event(), NeedData):
                heard.append(event)
        await ours.aclose()
    assert sorted(served) == ["cancelled", "undone"]
    assert [type(event) for event in heard] == [Hello]
    assert not caplog.records
