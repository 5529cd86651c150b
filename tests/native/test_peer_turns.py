"""Peers over channels, where a caller that is alone reads in the reader's place."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from pedos_protocol.connection import PENDING_MAX
from pedos_protocol.errors import CallError
from pedos_vchan.conversation import TURN_SIZE, Conversation
from pedos_vchan.peer import Peer
from pedos_vchan.session import OUT_MAX
from pedos_vchan.stream import VchanStream

if TYPE_CHECKING:
    from .conftest import Pairs

Params = dict[str, Any]


async def echo(_peer: Peer, params: Params) -> Params:
    return params


async def forever(_peer: Peer, _params: Params) -> None:
    await trio.sleep_forever()


async def ask_back(peer: Peer, params: Params) -> Params:
    return await peer.call("test.echo", params, timeout=5)


HANDLERS = {"test.echo": echo, "test.forever": forever, "test.ask_back": ask_back}


@contextlib.asynccontextmanager
async def two_peers(pairs: Pairs, **handlers: Any) -> AsyncIterator[tuple[Peer, Peer]]:
    """Two open peers over one channel; `handlers` are the second one's, beside HANDLERS."""
    named = {f"test.{name}": handler for name, handler in handlers.items()}
    one, other = await pairs.streams()
    async with trio.open_nursery() as nursery:
        client = Peer(one, program="client 1", handlers=HANDLERS, name="client")
        server = Peer(other, program="served 1", handlers={**HANDLERS, **named}, name="served")
        nursery.start_soon(client.run)
        await nursery.start(server.run)
        await trio.testing.wait_all_tasks_blocked()
        yield client, server
        client.close()


async def call(peer: Peer, method: str) -> None:
    await peer.call(method, {}, timeout=60)


async def expect(code: str, peer: Peer, method: str, timeout: float = 60) -> None:
    with pytest.raises(CallError) as caught:
        await peer.call(method, {}, timeout=timeout)
    assert caught.value.code == code


async def test_one_call_after_the_other_and_many_at_once_are_answered(pairs: Pairs) -> None:
    answered = set()

    async with two_peers(pairs) as (client, server):

        async def call_thrice(peer: Peer, number: int) -> None:
            for _ in range(3):
                result = await peer.call("test.echo", {"number": number}, timeout=60)
                answered.add((peer, result["number"]))

        await call_thrice(client, 0)
        await call_thrice(server, 0)
        async with trio.open_nursery() as nursery:
            for number in range(300):
                nursery.start_soon(call_thrice, client, number)
                nursery.start_soon(call_thrice, server, number)
        await call_thrice(client, 300)
        assert answered == {
            *((client, number) for number in range(301)),
            *((server, number) for number in range(300)),
        }


@pytest.mark.parametrize("size", [0, TURN_SIZE - 60, TURN_SIZE, 60_000])
async def test_frames_of_any_size_come_through_turns(pairs: Pairs, size: int) -> None:
    params = {"x": os.urandom(size)}
    async with two_peers(pairs) as (client, _):
        for _ in range(5):
            assert await client.call("test.echo", params, timeout=60) == params


async def test_a_caller_that_is_called_back_leaves_the_reading_to_the_reader(pairs: Pairs) -> None:
    async with two_peers(pairs) as (client, _):
        for number in range(20):
            params = {"number": number}
            assert await client.call("test.ask_back", params, timeout=60) == params


async def test_a_call_that_starts_while_another_one_reads_is_answered(pairs: Pairs) -> None:
    async with two_peers(pairs) as (client, _):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(expect, "timeout", client, "test.forever", 0.2)
            await trio.testing.wait_all_tasks_blocked()
            assert await client.call("test.echo", {"a": 1}, timeout=60) == {"a": 1}
        assert await client.call("test.echo", {"a": 2}, timeout=60) == {"a": 2}


async def test_a_caller_that_reads_is_stopped_at_its_deadline(
    pairs: Pairs, autojump_clock: trio.testing.MockClock
) -> None:
    autojump_clock.autojump_threshold = 0.05  # the answer is on its way through the kernel
    async with two_peers(pairs) as (client, _):
        before = trio.current_time()
        await expect("timeout", client, "test.forever", 7)
        assert trio.current_time() - before == pytest.approx(7)
        assert await client.call("test.echo", {"a": 1}, timeout=60) == {"a": 1}


async def test_a_caller_that_reads_can_be_cancelled_and_nothing_is_lost(pairs: Pairs) -> None:
    async with two_peers(pairs) as (client, server):
        for number in range(5):
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(expect, "timeout", client, "test.forever")
                    await trio.testing.wait_all_tasks_blocked()
                    scope.cancel()
            assert scope.cancelled_caught
            # The reader reads again: it takes what comes by itself.
            assert await server.call("test.echo", {"a": number}, timeout=5) == {"a": number}


@pytest.mark.parametrize("how", ["hang_up", "close", "close_stream"])
async def test_a_caller_that_reads_is_told_of_the_end(pairs: Pairs, how: str) -> None:
    one, other = await pairs.streams()
    client = Peer(one, program="client 1", handlers={})
    server = Peer(other, program="served 1", handlers=HANDLERS)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.run)
        await nursery.start(server.run)
        nursery.start_soon(expect, "unavailable", client, "test.forever")
        await trio.testing.wait_all_tasks_blocked()
        {"hang_up": server.close, "close": client.close, "close_stream": one.close}[how]()
    assert not client.is_open
    assert not server.is_open


async def test_a_handler_keeps_its_task_and_its_deadline_from_its_first_step_on(
    pairs: Pairs,
) -> None:
    deadlines = []

    async def curious(peer: Peer, params: Params) -> Params:
        task = trio.lowlevel.current_task()
        with trio.move_on_after(50):
            if params["waits"]:
                await trio.lowlevel.checkpoint()
                deadlines.append(trio.current_effective_deadline() - trio.current_time())
            inner = await peer.call("test.remaining", {}, timeout=100)
        assert trio.lowlevel.current_task() is task
        return inner

    async with two_peers(pairs, curious=curious) as (client, _):

        async def remaining(_peer: Peer, _params: Params) -> Params:
            await trio.lowlevel.checkpoint()
            return {"s": trio.current_effective_deadline() - trio.current_time()}

        client._server.handlers = {**HANDLERS, "test.remaining": remaining}
        for waits in (False, True):
            result = await client.call("test.curious", {"waits": waits}, timeout=20)
            assert 15 < result["s"] <= 20.01
    assert 15 < deadlines[0] <= 20


async def test_a_flood_of_calls_leaves_other_tasks_their_turn(pairs: Pairs) -> None:
    one, other = await pairs.streams()
    served = 0

    async def slow(_peer: Peer, _params: Params) -> None:
        nonlocal served
        served += 1
        sum(range(20_000))  # longer than a turn

    client = Peer(one, program="client 1", handlers={})
    server = Peer(other, program="served 1", handlers={"test.slow": slow})
    between = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.run)
        await nursery.start(server.run)
        await trio.testing.wait_all_tasks_blocked()
        async with trio.open_nursery() as flood:
            for _ in range(PENDING_MAX):
                flood.start_soon(call, client, "test.slow")
            while served < PENDING_MAX:
                before = served
                await trio.lowlevel.checkpoint()
                between.append(served - before)
        client.close()
    assert max(between) <= 2


async def test_a_peer_that_does_not_read_is_ended_over_a_channel_too(
    pairs: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = await pairs.streams()
    server = Peer(other, program="served 1", handlers={})
    raw = Peer(one, program="raw", handlers={})
    async with trio.open_nursery() as nursery:
        with contextlib.suppress(trio.BrokenResourceError):
            nursery.start_soon(_run_until_broken, server)
            await nursery.start(raw.run)
            await trio.testing.wait_all_tasks_blocked()
            _stop_reading(one, monkeypatch)
            for _ in range(OUT_MAX // 60_000 + 4):
                await server.notify("operation.step", {"x": b"x" * 60_000})
            await trio.testing.wait_all_tasks_blocked()
            assert not server.is_open
            nursery.cancel_scope.cancel()


async def _run_until_broken(peer: Peer) -> None:
    with contextlib.suppress(Exception):
        await peer.run()


def _stop_reading(stream: VchanStream, monkeypatch: pytest.MonkeyPatch) -> None:
    turn = Conversation.turn

    def idle(conversation: Conversation, out: bytes) -> tuple[int, bytes | None]:
        return (0, None) if conversation is stream.conversation else turn(conversation, out)

    monkeypatch.setattr(Conversation, "turn", idle)
