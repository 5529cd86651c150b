"""The threads that run calls: how many stay, and what a call leaves that ends in an unusual way."""

from __future__ import annotations

import os
import select
import socket
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from pedos_vchan._native import lib
from pedos_vchan.call_crew import crew
from pedos_vchan.call_pump import CallPump, Event

from tests.patience import PATIENCE

from .calling_pair import CALL

if TYPE_CHECKING:
    from .conftest import Pairs

ORDER = 12
#: As csrc/call_crew.h has it.
SPARE = 4


def threads() -> int:
    return len(os.listdir("/proc/self/task"))


async def call_nothing(pairs: Pairs) -> None:
    """One whole call, of a service that ends at once."""
    one, two = await pairs.channels(ORDER, ORDER)
    service = CallPump(two, "service", CALL)
    service.exit("exited", 3)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(service.run, -1, -1, -1)
        end = await CallPump(one, "caller", CALL).run(-1, -1, -1)
    assert (end.kind, end.status) == ("exited", 3)


async def test_of_many_threads_a_few_stay(pairs: Pairs) -> None:
    with trio.fail_after(PATIENCE):
        await call_nothing(pairs)
        before = threads()
        callers = []
        async with trio.open_nursery() as nursery:
            for _ in range(3 * SPARE):
                one, two = await pairs.channels(ORDER, ORDER)
                callers.append(CallPump(two, "service", CALL))
                nursery.start_soon(CallPump(one, "caller", CALL).run, -1, -1, -1)
                nursery.start_soon(callers[-1].run, -1, -1, -1)
            await trio.testing.wait_all_tasks_blocked()
            assert threads() >= before + 5 * SPARE
            for each in callers:
                each.exit("exited", 0)
        while threads() > before + SPARE:
            await trio.lowlevel.checkpoint()


async def test_a_coroutine_that_is_closed_waits_for_its_thread(pairs: Pairs) -> None:
    """As when the event loop breaks down."""
    one, _ = await pairs.channels(ORDER, ORDER)
    mine, its = socket.socketpair()
    with mine, trio.fail_after(PATIENCE):
        coroutine = CallPump(one, "caller", CALL).run(its.detach(), -1, -1)
        coroutine.send(None)
        coroutine.close()
        assert one.closed
        assert mine.recv(1) == b""
        await call_nothing(pairs)  # the crew has lost nothing by it


async def test_news_of_a_closed_coroutine_are_dropped(pairs: Pairs) -> None:
    """Also those that are on their way to the loop."""
    with trio.fail_after(PATIENCE):
        channels = [await pairs.channels(ORDER, ORDER) for _ in range(3)]
        coroutines = [CallPump(one, "caller", CALL).run(-1, -1, -1) for one, _ in channels]
        for each in coroutines:
            each.send(None)
        for _, two in channels:
            two.close()  # each call ends by itself now
        assert select.select([lib.pv_crew_fd(crew()._native)], [], [], PATIENCE)[0]
        for each in coroutines:
            each.close()
        await call_nothing(pairs)


async def test_a_mistake_in_hearing_of_one_call_ends_no_call(
    pairs: Pairs, caplog: pytest.LogCaptureFixture
) -> None:
    def mistaken(_event: Event) -> None:
        raise ValueError

    one, two = await pairs.channels(ORDER, ORDER)
    service = CallPump(two, "service", CALL)
    service.exit("exited", 3)
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(service.run, -1, -1, -1)
            end = await CallPump(one, "caller", CALL, mistaken).run(-1, -1, -1)
        assert (end.kind, end.status) == ("exited", 3)
        assert "could not be handled" in caplog.text
        await call_nothing(pairs)


async def test_without_a_thread_the_streams_are_closed(
    pairs: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run(*_: object, **_how: object) -> int:
        raise BlockingIOError

    one, _ = await pairs.channels(ORDER, ORDER)
    mine, its = socket.socketpair()
    monkeypatch.setattr(crew(), "run", run)
    with mine:
        with pytest.raises(BlockingIOError):
            await CallPump(one, "caller", CALL).run(its.detach(), -1, -1)
        assert mine.recv(1) == b""
    assert one.closed
