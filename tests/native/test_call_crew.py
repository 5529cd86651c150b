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
from pedos_vchan.call_pump import CallEnd, CallPump, Event, EventKind

from tests.patience import PATIENCE

from .calling_pair import CALL

if TYPE_CHECKING:
    from pedos_vchan.channel import Channel

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


def test_a_loop_that_ends_ends_its_calls(pairs: Pairs) -> None:
    """Those that run, and those whose end is on its way to the loop; nobody is told any more."""
    mine, its = socket.socketpair()
    told: list[CallEnd] = []
    left: list[Channel] = []

    async def main() -> None:
        running, _ = await pairs.channels(ORDER, ORDER)
        ending, other = await pairs.channels(ORDER, ORDER)
        CallPump(running, "caller", CALL).begin(its.detach(), -1, -1, then=told.append)
        CallPump(ending, "caller", CALL).begin(-1, -1, -1, then=told.append)
        other.close()
        assert select.select([lib.pv_crew_fd(crew()._native)], [], [], PATIENCE)[0]
        left.extend((running, ending))

    with mine:
        trio.run(main)
        assert mine.recv(1) == b""
    assert [each.closed for each in left] == [True, True]
    assert not told


async def test_what_is_told_lazily_comes_with_the_end_or_soon(pairs: Pairs) -> None:
    told: list[str] = []
    for is_short in (True, False):
        one, two = await pairs.channels(ORDER, ORDER)
        service = CallPump(two, "service", CALL)
        caller = CallPump(one, "caller", CALL, lambda event: told.append(event.kind.name))
        caller.wanted, caller.lazily = (), (EventKind.STARTED,)
        if is_short:
            service.exit("exited", 3)
        stdout, writer = os.pipe()
        os.close(writer)
        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(service.run, -1, stdout, -1)
                caller.begin(-1, -1, -1, then=lambda end: told.append(end.kind))
                if not is_short:
                    while told[-1:] != ["STARTED"]:
                        await trio.lowlevel.checkpoint()
                    service.exit("exited", 3)
            while told[-1:] != ["exited"]:
                await trio.lowlevel.checkpoint()
    assert told == ["STARTED", "exited"] * 2


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
    def begin(*_: object, **_how: object) -> None:
        raise BlockingIOError

    one, _ = await pairs.channels(ORDER, ORDER)
    mine, its = socket.socketpair()
    monkeypatch.setattr(crew(), "begin", begin)
    with mine:
        with pytest.raises(BlockingIOError):
            await CallPump(one, "caller", CALL).run(its.detach(), -1, -1)
        assert mine.recv(1) == b""
