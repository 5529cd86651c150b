"""One caller stands in for the reader, and the next one does before the first has gone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from pedos_protocol.errors import CallError
from pedos_protocol.events import Answer
from pedos_vchan import inbox
from pedos_vchan._native import ffi, lib
from pedos_vchan.peer import Peer

from tests.patience import PATIENCE

from .test_turn_hazards import Before, Puppet

if TYPE_CHECKING:
    from collections.abc import Callable

    from pedos_vchan.stream import VchanStream

    from .conftest import Pairs


async def settled(condition: Callable[[], bool]) -> None:
    await trio.testing.wait_all_tasks_blocked()
    assert condition()


@pytest.mark.parametrize("by", ["word", "news", "close", "cancel"])
async def test_a_substitute_is_woken_though_the_one_before_it_left_later(
    pairs: Pairs, by: str
) -> None:
    one, other = await pairs.streams()
    left = []
    scope = trio.CancelScope()

    async def first() -> None:
        await one.conversation.wait_instead()
        left.append("first")

    async def second() -> None:
        # The first one, which has not run yet when its place is taken.
        one.conversation.wake_substitute()
        with scope:
            try:
                await one.conversation.wait_instead()
            except trio.ClosedResourceError:
                assert by == "close"
        left.append("second")

    await one.conversation.wait()  # the client has come
    assert one.conversation.turn(b"") == (0, None)
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(first)
            await settled(lambda: left == [])
            nursery.start_soon(second)
            await settled(lambda: left == ["first"])
            wake = {
                "word": one.conversation.wake_substitute,
                "news": lambda: other.conversation.send_some(b"x"),
                "close": one.close,
                "cancel": scope.cancel,
            }
            wake[by]()
            await settled(lambda: left == ["first", "second"])


async def test_the_reader_is_left_alone_until_the_last_substitute_has_gone(pairs: Pairs) -> None:
    one, other = await pairs.streams()
    read = []

    async def reader() -> None:
        await one.conversation.wait()
        read.append(one.conversation.turn(b"")[1])

    async def second() -> None:
        one.conversation.wake_substitute()
        # And goes without a look, as one does that is cancelled.
        await one.conversation.wait_instead()

    await one.conversation.wait()  # the client has come
    assert one.conversation.turn(b"") == (0, None)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reader)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(one.conversation.wait_instead)
        await trio.testing.wait_all_tasks_blocked()
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as substitutes:
                substitutes.start_soon(second)
                await trio.testing.wait_all_tasks_blocked()
                assert one.conversation._substitute is not None
                scope.cancel()
                other.conversation.send_some(b"news")
        with trio.fail_after(PATIENCE):
            while not read:
                await trio.lowlevel.checkpoint()
    assert read == [b"news"]


async def test_a_second_substitute_beside_one_that_waits_is_refused_and_harms_nothing(
    pairs: Pairs,
) -> None:
    one, _ = await pairs.streams()
    await one.conversation.wait()  # the client has come
    assert one.conversation.turn(b"") == (0, None)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.conversation.wait_instead)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await one.conversation.wait_instead()
        one.conversation.wake_substitute()
        with trio.fail_after(PATIENCE):
            while nursery.child_tasks:
                await trio.lowlevel.checkpoint()


@pytest.mark.usefixtures("oldest_first")
@pytest.mark.parametrize("ends_by", ["time-out", "close"])
async def test_a_caller_that_stands_in_for_the_reader_twice_ends_in_time(
    pairs: Pairs, monkeypatch: pytest.MonkeyPatch, ends_by: str
) -> None:
    """A stands in for the reader. The reader is woken all the same, as it is for a sender when the
    other side reads a little, and takes the answers of both. B calls again before A has run."""
    monkeypatch.setattr(inbox, "TURN_SECONDS", 60)  # the reader takes both in one go
    one, other = await pairs.streams()
    puppet = Puppet(other)
    client = Peer(one, program="client 1", handlers={})
    said: list[str] = []
    readers: list[trio.lowlevel.Task] = []
    a_goes_on = trio.Event()
    b_goes_on = trio.Event()

    async def b() -> None:
        await b_goes_on.wait()
        await client.call("test.b", {}, timeout=60)
        why = "A has run before; the test does not show what it says"
        assert one.conversation._substitute is not None, why
        with pytest.raises(CallError) as caught:
            await client.call("test.b", {}, timeout=60)
        said.append(f"b: {caught.value.code}")

    async def a() -> None:
        await client.call("test.a", {}, timeout=60)
        await a_goes_on.wait()
        await client.call("test.a", {}, timeout=60)
        said.append("a: answered")

    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.run)
            await puppet.meet()
            await trio.testing.wait_all_tasks_blocked()
            readers.append(_task_in_wait(one, client))
            nursery.start_soon(b)  # older than A: it runs first where both can
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(a)
            request = await puppet.hear_request()
            await other.send_all(puppet.frame(Answer(request.id, {})))
            await trio.testing.wait_all_tasks_blocked()
            a_goes_on.set()
            requests = [await puppet.hear_request()]
            await trio.testing.wait_all_tasks_blocked()
            assert one.conversation._substitute is not None
            b_goes_on.set()
            requests.append(await puppet.hear_request())
            await trio.testing.wait_all_tasks_blocked()
            answers = b"".join(puppet.frame(Answer(request.id, {})) for request in requests)

            def answer() -> None:
                # After the reader's turn has taken back its request and before it looks, so that
                # no event comes: the part of a turn before that is what one for no bytes does.
                no_sent, nowhere = ffi.new("int64_t *"), ffi.new("char[1]")
                lib.pv_channel_turn(one._channel.native(), b"", 0, no_sent, nowhere, 0)
                other.conversation.send_some(answers)

            trio.lowlevel.add_instrument(Before(readers[0], answer))
            one.conversation.wake()
            while "a: answered" not in said:
                await trio.lowlevel.checkpoint()
            assert one.conversation._substitute is not None, "B does not stand in"
            if ends_by == "close":
                client.close()
            else:
                (waiter,) = client._caller._waiters.values()
                waiter.expire()  # as the sweeper does when its time has come
            while len(said) < 2:
                await trio.lowlevel.checkpoint()
            client.close()
    expected = "b: timeout" if ends_by == "time-out" else "b: unavailable"
    assert said == ["a: answered", expected]


def _task_in_wait(stream: VchanStream, peer: Peer) -> trio.lowlevel.Task:
    """The reader's task: the only one that waits for news of `stream`."""
    assert stream.conversation._led
    assert peer._inbox.reader_waits
    assert peer._session._nursery is not None
    return peer._session._nursery.parent_task
