"""An answer that arrives while its caller is being told to stop waiting."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from pedos_protocol.connection import PENDING_MAX
from pedos_protocol.errors import CallError
from pedos_protocol.events import Answer, ErrorAnswer, Notice, Request
from pedos_vchan.conversation import TURN_SIZE
from pedos_vchan.peer import Peer
from pedos_vchan.session import CANCELLED

from .test_turn_hazards import Puppet

if TYPE_CHECKING:
    from .conftest import Pairs

ENDS = ("cancel", "deadline", "close")


def read(peer: Peer, data: bytes) -> None:
    """What the reader does with bytes that came, before any other task runs."""
    peer._inbox.receive(data)
    for event in peer._inbox.events:
        assert isinstance(event, Answer | ErrorAnswer)
        peer._caller.take_answer(event)


@pytest.mark.parametrize("in_place", [False, True], ids=["waits", "stands in for the reader"])
@pytest.mark.parametrize(
    "order",
    [
        *(("answer", end) for end in ENDS),
        *((end, "answer") for end in ENDS if end != "close"),  # then nothing comes any more
        *(("answer", *ends) for ends in itertools.combinations(ENDS, 2)),
        ("cancel", "deadline", "answer"),
    ],
    ids="-".join,
)
async def test_an_answer_that_has_come_is_its_callers_whatever_else_happens_then(
    pairs: Pairs, order: tuple[str, ...], in_place: bool
) -> None:
    one, other = await pairs.streams()
    puppet = Puppet(other)
    client = Peer(one, program="client 1", handlers={})
    scope = trio.CancelScope()
    got = []

    async def call() -> None:
        if in_place:
            await client.call("test.first", {}, timeout=60)
        with scope:
            got.append(await client.call("test.any", {}, timeout=60))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.run)
        await puppet.meet()
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(call)
        request = await puppet.hear_request()
        if in_place:
            await other.send_all(puppet.frame(Answer(request.id, {})))
            request = await puppet.hear_request()
        await trio.testing.wait_all_tasks_blocked()
        assert (one.conversation._substitute is not None) is in_place
        answer = puppet.frame(Answer(request.id, {"is": "done"}))
        (waiter,) = client._caller._waiters.values()
        steps = {
            "answer": lambda: read(client, answer),
            "cancel": scope.cancel,
            "deadline": waiter.expire,
            "close": client.close,
        }
        for step in order:
            steps[step]()
        await trio.testing.wait_all_tasks_blocked()
        assert got == [{"is": "done"}]
        assert client._caller._free_slots == PENDING_MAX
        if "close" not in order:
            assert other.conversation.turn(b"") == (0, None)  # and nothing was taken back
        client.close()


async def test_a_caller_that_is_cancelled_before_the_answer_has_it_taken_back(
    pairs: Pairs,
) -> None:
    one, other = await pairs.streams()
    puppet = Puppet(other)
    client = Peer(one, program="client 1", handlers={})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.run)
        await puppet.meet()
        async with trio.open_nursery() as callers:
            callers.start_soon(call_any, client)
            request = await puppet.hear_request()
            callers.cancel_scope.cancel()
        assert await puppet.hear() == Notice(CANCELLED, {"id": request.id})
        await other.send_all(puppet.frame(Answer(request.id, {})))  # too late, and frees its place
        await trio.testing.wait_all_tasks_blocked()
        assert client._caller._free_slots == PENDING_MAX
        client.close()


async def test_a_handler_behind_whose_request_nothing_has_come_catches_up_at_once(
    pairs: Pairs,
) -> None:
    one, other = await pairs.streams()
    puppet = Puppet(other)
    tasks = []

    async def change(peer: Peer, _params: dict[str, object]) -> None:
        await peer.caught_up()
        tasks.append(trio.lowlevel.current_task())  # one that has waited keeps the reader's

    server = Peer(one, program="served 1", handlers={"test.change": change}, notices={})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.run)
        await puppet.meet()
        for number in (1, 2):
            await other.send_all(puppet.frame(Request(number, "test.change", {}, 60_000)))
            assert await puppet.hear() == Answer(number, {})
        server.close()
    assert tasks[0] is tasks[1]


@pytest.mark.parametrize("begun", [False, True])
async def test_what_has_come_is_read_before_a_handler_that_catches_up_goes_on(
    pairs: Pairs, begun: bool
) -> None:
    one, other = await pairs.streams()
    puppet = Puppet(other)
    going = trio.Event()
    done = []

    async def change(peer: Peer, _params: dict[str, object]) -> None:
        if begun:
            await going.wait()
        await peer.caught_up()
        done.append("changed")

    server = Peer(one, program="served 1", handlers={"test.change": change}, notices={})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.run)
        await puppet.meet()
        await trio.testing.wait_all_tasks_blocked()
        request = puppet.frame(Request(1, "test.change", {}, 60_000))
        # More than one turn takes.
        between = puppet.frame(Notice("test.any", {"x": "x" * TURN_SIZE}))
        taken_back = between + puppet.frame(Notice(CANCELLED, {"id": 1}))
        if begun:
            await other.send_all(request)
            await trio.testing.wait_all_tasks_blocked()
            going.set()  # and before the handler runs:
            assert other.conversation.send_some(taken_back) == len(taken_back)
        else:
            assert other.conversation.send_some(request + taken_back) == len(request + taken_back)
        answer = await puppet.hear()
        assert isinstance(answer, ErrorAnswer) and answer.code == "timeout"
        assert done == []
        # When there is nothing to read, it goes on.
        await other.send_all(puppet.frame(Request(2, "test.change", {}, 60_000)))
        assert await puppet.hear() == Answer(2, {})
        server.close()


async def test_a_caller_that_is_cancelled_already_asks_for_nothing(pairs: Pairs) -> None:
    one, other = await pairs.streams()
    puppet = Puppet(other)
    client = Peer(one, program="client 1", handlers={})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.run)
        await puppet.meet()
        with trio.CancelScope() as scope:
            scope.cancel()
            await call_any(client)
        assert scope.cancelled_caught
        await trio.testing.wait_all_tasks_blocked()
        assert other.conversation.turn(b"") == (0, None)
        client.close()


async def call_any(peer: Peer) -> None:
    await peer.call("test.any", {}, timeout=60)


async def test_without_an_answer_the_first_end_is_told(pairs: Pairs) -> None:
    one, other = await pairs.streams()
    puppet = Puppet(other)
    client = Peer(one, program="client 1", handlers={})
    told = []

    async def call() -> None:
        with pytest.raises(CallError) as caught:
            await call_any(client)
        told.append(caught.value.code)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.run)
        await puppet.meet()
        nursery.start_soon(call)
        await puppet.hear_request()
        (waiter,) = client._caller._waiters.values()
        waiter.expire()
        client.close()
    assert told == ["timeout"]
