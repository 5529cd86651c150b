"""How a call ends before its time: given up, ended by an agent, lost, broken by the other end."""

from __future__ import annotations

import gc
import os
import random
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from pedos_vchan.call_crew import crew
from pedos_vchan.call_pump import CallPump, EventKind
from pedos_vchan.call_pump import Event as Told

from tests.patience import PATIENCE

from .calling_pair import (
    CALL,
    Call,
    Plumbing,
    channels,
    each_kind,
    fill,
    is_closed,
    plumb,
    read,
    read_all,
    write,
)

if TYPE_CHECKING:
    from .conftest import Pairs

KIB = 1024
MIB = 1 << 20

pytestmark = pytest.mark.usefixtures("modest")


@each_kind
async def test_an_abort_ends_the_service_s_streams(pairs: Pairs, kind: Plumbing) -> None:
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            call = Call(nursery, await channels(pairs), kind)
            await call.told("caller", Told(EventKind.STARTED))
            await fill(call.ends.stdin)  # behind what the service does not read
            await fill(call.ends.service_stdout)
            call.caller.abort("the program was killed")
            await call.told("service", Told(EventKind.CALLER_GONE))
            await read_all(call.ends.service_stdin)
            await is_closed(call.ends.service_stdout)
            await is_closed(call.ends.service_stderr)
            caller, service = await call.over()
    assert (caller.kind, caller.status, caller.text) == ("aborted", 125, "the program was killed")
    assert (service.kind, service.status) == ("aborted", 125)
    assert caller.is_reusable
    assert service.is_reusable


async def test_a_service_that_its_agent_gives_up_is_a_problem(pairs: Pairs) -> None:
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            call = Call(nursery, await channels(pairs))
            await write(call.ends.service_stdout, b"words")
            assert await read(call.ends.stdout, 5) == b"words"
            call.service.abort("its keeper has ended")
            caller, service = await call.over()
    assert (caller.kind, caller.status, caller.text) == ("problem", 125, "its keeper has ended")
    assert caller.is_reusable
    assert service.kind == "problem"


async def test_a_call_can_be_ended_while_its_streams_go_on(pairs: Pairs) -> None:
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            call = Call(nursery, await channels(pairs))
            call.ends.close(call.ends.stdin)
            await call.told("service", Told(EventKind.STDIN_ENDED, 1))
            call.service.exit("exited", 0, now=True)
            caller, _ = await call.over()
    assert (caller.kind, caller.status) == ("exited", 0)
    assert caller.is_reusable


async def test_exit_counts_while_the_output_waits_for_its_reader(pairs: Pairs) -> None:
    """The service's side is free as soon as the other one holds the rest of the output."""
    data = random.Random(6).randbytes(150 * KIB)
    with trio.fail_after(PATIENCE):
        for reads in (True, False):
            async with trio.open_nursery() as nursery:
                call = Call(nursery, await channels(pairs), "pipes")
                await write(call.ends.service_stdout, data)
                call.ends.close(call.ends.service_stdout, call.ends.service_stderr)
                call.service.exit("exited", 0)
                await call.told("caller", Told(EventKind.EXITED))
                while "service" not in call.results:
                    await trio.lowlevel.checkpoint()
                assert "caller" not in call.results
                if reads:
                    assert await read_all(call.ends.stdout) == data
                else:
                    call.ends.close(call.ends.stdout)
                caller, _ = await call.over()
            assert (caller.kind, caller.status, caller.stdout) == ("exited", 0, len(data))
            assert caller.is_reusable


async def test_an_abort_after_the_exit_drops_the_output_that_waits(pairs: Pairs) -> None:
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            call = Call(nursery, await channels(pairs), "pipes")
            await write(call.ends.service_stdout, bytes(150 * KIB))
            call.ends.close(call.ends.service_stdout, call.ends.service_stderr)
            call.service.exit("exited", 4)
            await call.told("caller", Told(EventKind.EXITED))
            call.caller.abort("killed")
            caller, _ = await call.over()
    assert (caller.kind, caller.status, caller.is_reusable) == ("exited", 4, True)


async def test_an_agent_that_ends_while_output_waits_leaves_no_success(pairs: Pairs) -> None:
    """People delete files on 0."""
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            call = Call(nursery, await channels(pairs), "pipes")
            await write(call.ends.service_stdout, bytes(150 * KIB))
            call.ends.close(call.ends.service_stdout, call.ends.service_stderr)
            call.service.exit("exited", 0)
            await call.told("caller", Told(EventKind.EXITED))
            call.caller.cancel()
            caller, _ = await call.over()
    assert (caller.kind, caller.status) == ("problem", 125)
    assert caller.text == "the agent of this VM has ended"


async def test_a_service_that_is_broken_off_behind_its_exit_did_not_end_well(pairs: Pairs) -> None:
    """What its program has left holds stdout, and the rest of that is dropped."""
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            call = Call(nursery, await channels(pairs))
            call.ends.close(call.ends.stdin)
            call.service.exit("exited", 0)
            await call.told("service", Told(EventKind.STDIN_ENDED, 1))
            call.service.abort("ended by dom0's user")
            caller, _ = await call.over()
    assert (caller.kind, caller.status) == ("problem", 125)
    assert caller.text == "ended by dom0's user"


@pytest.mark.parametrize("side", ["caller", "service"])
async def test_the_other_end_s_end_is_a_lost_call(pairs: Pairs, side: str) -> None:
    with trio.fail_after(PATIENCE):
        ends = {}
        one, two = await channels(pairs)
        stdin, stdout = plumb("sockets"), plumb("sockets")
        async with trio.open_nursery() as nursery:
            gone = trio.CancelScope()
            caller, service = CallPump(one, "caller", CALL), CallPump(two, "service", CALL)
            dead, alive = (caller, service) if side == "caller" else (service, caller)

            async def die() -> None:
                with gone:
                    await dead.run(-1, *((-1, -1)))

            if side == "caller":
                nursery.start_soon(die)
                await trio.testing.wait_all_tasks_blocked()
                gone.cancel()
                ends["alive"] = await alive.run(stdin[1], stdout[0], -1)
            else:
                nursery.start_soon(die)
                await trio.testing.wait_all_tasks_blocked()
                gone.cancel()
                ends["alive"] = await alive.run(stdin[0], stdout[1], -1)
        for fd in (
            stdin[0] if side == "caller" else stdin[1],
            stdout[1] if side == "caller" else stdout[0],
        ):
            os.close(fd)
    end = ends["alive"]
    assert (end.kind, end.status, end.is_reusable, end.is_breach) == ("lost", 125, False, False)
    assert end.text == end.reason == "the other VM's agent closed the channel"
    assert one.closed
    assert two.closed


async def test_what_came_before_the_other_end_was_lost_is_written(pairs: Pairs) -> None:
    with trio.fail_after(PATIENCE):
        one, two = await channels(pairs)
        stdout, source = plumb("sockets"), plumb("sockets")
        os.set_blocking(stdout[0], False)
        os.set_blocking(source[1], False)
        ends = []
        async with trio.open_nursery() as nursery:
            gone = trio.CancelScope()

            async def die() -> None:
                with gone:
                    await CallPump(two, "service", CALL).run(-1, source[0], -1)

            async def call() -> None:
                ends.append(await CallPump(one, "caller", CALL).run(-1, stdout[1], -1))

            nursery.start_soon(die)
            nursery.start_soon(call)
            held = await fill(source[1])
            gone.cancel()
            got = len(await read_all(stdout[0]))
        os.close(stdout[0])
        os.close(source[1])
    assert ends[0].kind == "lost"
    assert ends[0].stdout == got
    assert 0 < got <= held


async def test_an_end_that_does_not_come_costs_the_channel(pairs: Pairs) -> None:
    """The other end is stuck: it takes the abort, and says no END."""
    one, _ = await channels(pairs)
    told: list[Told] = []
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            pump = CallPump(one, "caller", CALL, told.append)
            ends = []

            async def run() -> None:
                ends.append(await pump.run(-1, -1, -1))

            nursery.start_soon(run)
            pump.abort("enough")
    assert (ends[0].kind, ends[0].is_reusable) == ("aborted", False)
    assert "within a second" in ends[0].reason
    assert one.closed


async def test_cancelling_closes_the_channel_and_the_descriptors(pairs: Pairs) -> None:
    with trio.fail_after(PATIENCE):
        one, two = await channels(pairs)
        stdin, stdout = plumb("pipes"), plumb("pipes")
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(CallPump(one, "caller", CALL).run, stdin[0], stdout[1], -1)
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
        assert one.closed
        assert os.read(stdout[0], 1) == b""
        with pytest.raises(BrokenPipeError):
            os.write(stdin[1], b"x")
        end = await CallPump(two, "service", CALL).run(-1, -1, -1)
        assert end.kind == "lost"
    os.close(stdin[1])
    os.close(stdout[0])


async def test_another_call_s_frame_is_a_breach(pairs: Pairs) -> None:
    with trio.fail_after(PATIENCE):
        one, two = await channels(pairs)
        ends = []
        async with trio.open_nursery() as nursery:

            async def call() -> None:
                ends.append(await CallPump(one, "caller", bytes(16)).run(-1, -1, -1))

            nursery.start_soon(call)
            ends.append(await CallPump(two, "service", CALL).run(-1, -1, -1))
    assert {end.kind for end in ends} == {"lost"}
    breach = next(end for end in ends if end.is_breach)
    assert breach.reason == "the other VM broke the protocol of calls: another call's id"
    assert breach.status == 125


async def test_a_call_that_is_over_has_no_descriptors_and_takes_orders(pairs: Pairs) -> None:
    one, two = await channels(pairs)
    crew()  # the loop's, which has a descriptor
    gc.collect()  # what earlier tests had open, which would be closed in the middle of this one
    before = set(os.listdir("/proc/self/fd"))
    caller, service = CallPump(one, "caller", CALL), CallPump(two, "service", CALL)
    service.exit("exited", 0)
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(service.run, -1, -1, -1)
            await caller.run(-1, -1, -1)
    caller.abort("too late")
    caller.signal(15)
    service.exit("exited", 1)
    assert caller.counts() == (0, 0, 0)
    assert set(os.listdir("/proc/self/fd")) == before
