"""What a connection keeps while nothing happens on it: dom0 has one for each VM."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio
import trio.testing
from pedos_vchan.event_loop import EventLoop, Flusher, Sweeper, event_loop
from pedos_vchan.peer import Peer

from tests.parts import parts

if TYPE_CHECKING:
    from .conftest import Pairs

Params = dict[str, Any]


async def echo(_peer: Peer, params: Params) -> Params:
    return params


async def test_no_part_of_a_connection_has_a_dict_of_attributes(pairs: Pairs) -> None:
    one, other = await pairs.streams()
    served = Peer(one, program="served 1", handlers={"test.echo": echo})
    client = Peer(other, program="client 1", handlers={})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(served.run)
        await nursery.start(client.run)
        assert await client.call("test.echo", {"x": 1}, timeout=5) == {"x": 1}
        for peer in (served, client):
            kept = list(parts(peer, EventLoop, Sweeper, Flusher))
            assert one.conversation in kept or other.conversation in kept
            assert [type(part) for part in kept if hasattr(part, "__dict__")] == []
        client.close()


async def test_no_deadline_is_watched_for_a_connection_after_its_hello(pairs: Pairs) -> None:
    one, other = await pairs.streams()
    served = Peer(one, program="served 1", handlers={})
    client = Peer(other, program="client 1", handlers={})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(served.run)
        await trio.testing.wait_all_tasks_blocked()
        assert len(event_loop().sweeper._watched) == 1  # it waits for hello
        await nursery.start(client.run)
        await trio.testing.wait_all_tasks_blocked()
        assert event_loop().sweeper._watched == set()
        client.close()
