"""Operations run to their end, and a waiting caller gets the result."""

from __future__ import annotations

import trio
import trio.testing
from pedos_dom0.requests.operations import Operations


async def test_a_result_that_has_come_is_its_callers_though_it_is_cancelled_just_then() -> None:
    goes_on, gone, scope = trio.Event(), trio.Event(), trio.CancelScope()
    got = []

    async def work() -> str:
        await goes_on.wait()
        scope.cancel()  # the caller, which cannot run before this has ended
        return "done"

    async def ask() -> None:
        with scope:
            got.append(await operations.run("vm", "work", work, gone))

    async with trio.open_nursery() as nursery:
        operations = Operations(nursery)
        nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        goes_on.set()
    assert got == ["done"]
    assert not gone.is_set()


async def test_an_operation_that_ends_with_the_service_has_no_result() -> None:
    gone = trio.Event()
    got = []

    async def ask() -> None:
        got.append(await operations.run("vm", "work", trio.sleep_forever, gone))

    async with trio.open_nursery() as nursery:
        operations = Operations(nursery)
        nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert not got
    assert gone.is_set()
