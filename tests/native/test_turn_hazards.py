"""Hazards of callers that read in the reader's place, and of writers that take turns."""

from __future__ import annotations

import contextlib
import random
import threading
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from pedos_protocol.connection import PENDING_MAX, VERSIONS, Connection
from pedos_protocol.errors import CallError, RemoteProtocolError
from pedos_protocol.events import Answer, Event, Hello, NeedData, Notice, Request
from pedos_vchan import inbox
from pedos_vchan._native import lib
from pedos_vchan.conversation import Conversation
from pedos_vchan.event_loop import FLUSHES_AT_ONCE, Flusher
from pedos_vchan.first_step import GOING_ON_AT_ONCE
from pedos_vchan.peer import Peer
from pedos_vchan.session import CANCELLED, OUT_MAX

from tests.patience import PATIENCE

from .conftest import Pairs

if TYPE_CHECKING:
    from pathlib import Path

    from pedos_vchan.stream import VchanStream

Params = dict[str, Any]


async def echo(_peer: Peer, params: Params) -> Params:
    return params


class Puppet:
    """The other end of a channel, which says what the test tells it, when it is told."""

    def __init__(self, stream: VchanStream) -> None:
        self.stream = stream
        self._connection = Connection()

    def frame(self, event: Event) -> bytes:
        return self._connection.send(event)

    async def hear(self) -> Event:
        while isinstance(event := self._connection.next_event(), NeedData):
            self._connection.receive_data(await self.stream.receive_some())
        return event

    async def hear_request(self) -> Request:
        event = await self.hear()
        assert isinstance(event, Request)
        return event

    async def meet(self) -> None:
        await self.stream.send_all(self.frame(Hello(VERSIONS, "puppet")))
        assert isinstance(await self.hear(), Hello)


class Before(trio.abc.Instrument):
    """Does something just before a task continues, when nothing can stop that any more."""

    def __init__(self, task: trio.lowlevel.Task, what: Any) -> None:
        self._task = task
        self._what = what

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self._task:
            trio.lowlevel.remove_instrument(self)
            self._what()


@pytest.mark.parametrize("stands_in", [False, True])
async def test_a_stream_that_is_closed_under_one_who_was_woken_is_not_touched(
    pairs: Pairs, stands_in: bool
) -> None:
    one, other = await pairs.streams()
    ended = []
    tasks = []

    async def wait() -> None:
        tasks.append(trio.lowlevel.current_task())
        try:
            if stands_in:
                # It looks itself, at what must not be freed memory.
                await one.conversation.wait_instead()
            else:
                await one.conversation.wait()
                one.conversation.turn(b"")
        except trio.ClosedResourceError:
            ended.append("closed")

    await one.conversation.wait()  # the client has come
    one.conversation.turn(b"")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        trio.lowlevel.add_instrument(Before(tasks[0], one.close))
        other.conversation.send_some(b"news")
    assert ended == ["closed"]


async def test_room_for_a_sender_is_news_for_it_whoever_else_waits(pairs: Pairs) -> None:
    one, other = await pairs.streams(12, 12)
    await one.conversation.wait()  # the client has come
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.send_all, bytes(9000))  # leads: it is the first that waits
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(one.conversation.wait)  # the reader follows
        await trio.testing.wait_all_tasks_blocked()
        assert one.conversation.turn(b"") == (0, None)
        nursery.start_soon(one.conversation.wait_instead)
        await trio.testing.wait_all_tasks_blocked()
        got = 0
        with trio.fail_after(PATIENCE):
            while got < 9000:
                got += len(await other.receive_some())


async def test_an_end_right_behind_the_answer_is_found_though_its_caller_took_the_event(
    pairs: Pairs,
) -> None:
    """The peer closes, but does not go away: nothing else will tell of it."""
    one, other = await pairs.streams()
    puppet = Puppet(other)
    client = Peer(one, program="client 1", handlers={})
    ended = trio.Event()

    async def run() -> None:
        await client.run()
        ended.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await puppet.meet()
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(_call_twice, client)
        request = await puppet.hear_request()
        await other.send_all(puppet.frame(Answer(request.id, {})))
        request = await puppet.hear_request()  # whose caller reads itself
        await trio.testing.wait_all_tasks_blocked()
        other.conversation.send_some(puppet.frame(Answer(request.id, {})))
        lib.pv_channel_close(other._channel.native())
        with trio.fail_after(PATIENCE):
            await ended.wait()


@pytest.mark.usefixtures("oldest_first")
async def test_an_end_right_behind_a_withdrawn_request_is_no_failure(
    pairs: Pairs, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Others get their turn between any two events, so the withdrawn handler ends in one."""
    monkeypatch.setattr(inbox, "TURN_SECONDS", -1)
    one, other = await pairs.streams()
    puppet = Puppet(other)

    async def wait(_peer: Peer, _params: Params) -> None:
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(Peer(one, program="served 1", handlers={"test.wait": wait}).run)
        await puppet.meet()
        await other.send_all(puppet.frame(Request(1, "test.wait", {}, 60_000)))
        await trio.testing.wait_all_tasks_blocked()
        other.conversation.send_some(puppet.frame(Notice(CANCELLED, {"id": 1})))
        lib.pv_channel_close(other._channel.native())
    assert not caplog.records


async def _call_twice(peer: Peer) -> None:
    for _ in range(2):
        await peer.call("test.any", {}, timeout=60)


async def test_a_frame_that_comes_byte_by_byte_leaves_other_tasks_their_turn(
    pairs: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = await pairs.streams()
    puppet = Puppet(other)
    server = Peer(one, program="served 1", handlers={})
    turns = 0
    most = 0

    async def run() -> None:
        with pytest.raises(RemoteProtocolError, match="flood"):
            await server.run()

    turn = Conversation.turn

    def drip(conversation: Conversation, out: bytes) -> tuple[int, bytes | None]:
        nonlocal turns
        if conversation is not one.conversation:
            return turn(conversation, out)
        turns += 1
        return 0, frame[turns - 1 : turns]

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await puppet.meet()
        await trio.testing.wait_all_tasks_blocked()
        frame = puppet.frame(Notice("x.y", {"x": bytes(60_000)}))
        monkeypatch.setattr(Conversation, "turn", drip)
        other.conversation.send_some(b"\0")  # wakes it
        while server.is_open:
            before = turns
            await trio.lowlevel.checkpoint()
            most = max(most, turns - before)
    assert turns > 5000
    assert most < 1000  # some 50 in a turn of 0.1 ms


async def test_frames_keep_their_order_whoever_writes_them(pairs: Pairs) -> None:
    """Turns of callers, the flusher and the task that waits for room write by turns."""
    one, other = await pairs.streams(12, 12)
    heard: list[int] = []
    rng = random.Random(1)

    async def hear(_peer: Peer, params: Params) -> None:
        heard.append(params["n"])
        if rng.random() < 0.2:
            await trio.lowlevel.checkpoint()

    client = Peer(one, program="client 1", handlers={})
    handlers = {"test.echo": echo, "test.hear": hear}
    server = Peer(other, program="served 1", handlers=handlers, frames_per_second=1e9)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.run)
        await nursery.start(server.run)
        for n in range(600):
            size = rng.choice((0, 0, 100, 3000, 9000))
            await client.notify("test.hear", {"n": n, "x": bytes(size)})
            if rng.random() < 0.3:
                params = {"x": bytes(rng.choice((0, 5000)))}
                assert await client.call("test.echo", params, timeout=60) == params
                assert heard == list(range(n + 1))
            await client.drained(30_000)
        await client.call("test.echo", {}, timeout=60)
        assert heard == list(range(600))
        client.close()


async def test_what_waits_for_a_peer_that_does_not_read_is_bounded(pairs: Pairs) -> None:
    one, other = await pairs.streams(12, 12)
    puppet = Puppet(other)
    server = Peer(one, program="served 1", handlers={})
    most = 0

    async def run() -> None:
        with pytest.raises(RemoteProtocolError, match="does not read"):
            await server.run()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await puppet.meet()
        await trio.testing.wait_all_tasks_blocked()
        while not server._session.ended:
            await server.notify("test.any", {"x": bytes(9000)})
            most = max(most, server._session.outbox.size)
    assert OUT_MAX - 10_000 < most <= OUT_MAX


async def test_a_call_may_be_cancelled_at_each_of_its_steps(pairs: Pairs) -> None:
    one, other = await pairs.streams()
    client = Peer(one, program="client 1", handlers={"test.echo": echo})
    server = Peer(other, program="served 1", handlers={"test.echo": echo})
    finished = 0

    class Count(trio.abc.Instrument):
        """Cancels the caller at one of the next steps of any task."""

        def __init__(self, scope: trio.CancelScope, steps: int) -> None:
            self.scope, self.steps = scope, steps

        def after_task_step(self, _task: trio.lowlevel.Task) -> None:
            self.steps -= 1
            if not self.steps:
                self.scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.run)
        await nursery.start(server.run)
        for steps in range(1, 30):
            for _ in range(2):  # after these, a call reads by itself
                await client.call("test.echo", {}, timeout=5)
            with trio.CancelScope() as scope:
                cancel = Count(scope, steps)
                trio.lowlevel.add_instrument(cancel)
                assert await client.call("test.echo", {"n": steps}, timeout=5) == {"n": steps}
                finished += 1
            trio.lowlevel.remove_instrument(cancel)
            assert await server.call("test.echo", {"n": steps}, timeout=5) == {"n": steps}
        assert not client._caller._waiters
        client.close()
    assert 0 < finished < 29


async def test_very_many_peers_are_written_to_in_several_steps() -> None:
    flusher = Flusher()
    flushed: list[int] = []
    most = 0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(flusher.run)
        await trio.testing.wait_all_tasks_blocked()
        for number in range(10 * FLUSHES_AT_ONCE):
            flusher.soon(lambda number=number: flushed.append(number))  # type: ignore[misc]
        while len(flushed) < 10 * FLUSHES_AT_ONCE:
            before = len(flushed)
            await trio.lowlevel.checkpoint()
            most = max(most, len(flushed) - before)
        nursery.cancel_scope.cancel()
    assert flushed == list(range(10 * FLUSHES_AT_ONCE))
    assert most <= 2 * FLUSHES_AT_ONCE


async def _talk(directory: Path, number: int, calls: int) -> None:
    """A loop's whole life, which ends while notices still wait to be written."""
    pairs = Pairs(directory)
    one, other = await pairs.streams()
    client = Peer(one, program="client 1", handlers={})
    server = Peer(other, program="served 1", handlers={"test.echo": echo})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.run)
        await nursery.start(server.run)
        for n in range(calls):
            params = {"who": number, "n": n, "x": bytes([number]) * (n % 7 * 900)}
            assert await client.call("test.echo", params, timeout=60) == params
        await server.notify("test.any", {})
        nursery.cancel_scope.cancel()
    pairs.close()


@pytest.mark.parametrize("threads", [1, 2])
def test_event_loops_share_nothing(tmp_path: Path, threads: int) -> None:
    """One after the other, and one a thread."""
    done = []

    def live(number: int) -> None:
        folder = tmp_path / str(number)
        folder.mkdir()
        for life in range(2):
            (folder / str(life)).mkdir()
            trio.run(_talk, folder / str(life), number, 100)
        done.append(number)

    running = [threading.Thread(target=live, args=(n,)) for n in range(1, threads + 1)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    assert sorted(done) == list(range(1, threads + 1))


async def test_handlers_that_are_woken_together_leave_others_their_turn(pairs: Pairs) -> None:
    one, other = await pairs.streams()
    event = trio.Event()
    waiting = going_on = most = answered = 0

    async def wait(_peer: Peer, _params: Params) -> None:
        nonlocal waiting, going_on
        waiting += 1
        await event.wait()
        going_on += 1

    async def call() -> None:
        nonlocal answered
        await client.call("test.wait", {}, timeout=60)
        answered += 1

    client = Peer(one, program="client 1", handlers={})
    server = Peer(other, program="served 1", handlers={"test.wait": wait})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.run)
        await nursery.start(server.run)
        async with trio.open_nursery() as flood:
            for _ in range(PENDING_MAX):
                flood.start_soon(call)
            while waiting < PENDING_MAX:
                await trio.lowlevel.checkpoint()
            event.set()
            while going_on < PENDING_MAX:
                before = going_on
                await trio.lowlevel.checkpoint()
                most = max(most, going_on - before)
        client.close()
    assert answered == PENDING_MAX
    assert most <= 2 * GOING_ON_AT_ONCE  # two passes may lie between two of our steps


async def test_handlers_that_wait_for_their_turn_are_ended_with_the_connection(
    pairs: Pairs,
) -> None:
    one, other = await pairs.streams()
    event = trio.Event()
    waiting = ended = 0

    async def wait(_peer: Peer, _params: Params) -> None:
        nonlocal waiting, ended
        waiting += 1
        try:
            await event.wait()
        finally:
            ended += 1

    async def call() -> None:
        with contextlib.suppress(CallError):  # some are answered before
            await client.call("test.wait", {}, timeout=60)

    client = Peer(one, program="client 1", handlers={})
    server = Peer(other, program="served 1", handlers={"test.wait": wait})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.run)
        await nursery.start(server.run)
        for _ in range(PENDING_MAX):
            nursery.start_soon(call)
        while waiting < PENDING_MAX:
            await trio.lowlevel.checkpoint()
        event.set()
        await trio.lowlevel.checkpoint()
        server.close()
    assert ended == PENDING_MAX
