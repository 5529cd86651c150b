"""When everything stops, the borrowed devices in use are reported first."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest
import trio
from pedos_dom0.local import unused
from pedos_dom0.local.bringup import CannotComeUp
from pedos_dom0.local.layout import Layout
from pedos_dom0.local.unused import until_unused
from pedos_protocol.errors import CallError
from trio.abc import Clock

USED = "sys-usb:sda: it stays attached to work: xvdi is in use: loop0 has it open"


class Dom0:
    def __init__(self) -> None:
        self.used = [USED]
        self.asked = 0
        self.on_call: Callable[[], Any] = trio.lowlevel.checkpoint

    async def call(self, method: str, params: dict[str, Any], *, timeout: float) -> dict[str, Any]:
        assert (method, params) == ("vm.used", {})
        self.asked += 1
        await self.on_call()
        return {"used": self.used}


@pytest.fixture
def dom0(monkeypatch: pytest.MonkeyPatch) -> Dom0:
    made = Dom0()

    @asynccontextmanager
    async def service(_layout: Layout) -> AsyncIterator[Any]:
        yield cast("Any", made)

    monkeypatch.setattr(unused, "service", service)
    return made


LAYOUT = Layout(Path("/nowhere"))


async def test_it_says_once_who_uses_what_and_goes_on_when_that_has_ended(
    dom0: Dom0, autojump_clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(waiting, nursery)
            await trio.sleep(10)
            assert caplog.messages == [USED, caplog.messages[1]]
            assert "Ctrl-C takes it all the same" in caplog.messages[1]
            dom0.used = []
    assert dom0.asked > 2


async def waiting(nursery: trio.Nursery) -> None:
    await until_unused(LAYOUT, trio.sleep_forever, hurried=False)
    nursery.cancel_scope.cancel()


async def test_a_second_signal_ends_it_all_the_same(dom0: Dom0, autojump_clock: Clock) -> None:
    for on_call in (trio.lowlevel.checkpoint, trio.sleep_forever):  # also while it is asked
        dom0.on_call = on_call
        came = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(waiting_for, came)
            await trio.sleep(3)
            came.set()


async def waiting_for(came: trio.Event) -> None:
    await until_unused(LAYOUT, came.wait, hurried=False)
    assert came.is_set()


async def test_what_is_told_to_end_says_what_it_takes_and_waits_for_nothing(
    dom0: Dom0, autojump_clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    await until_unused(LAYOUT, trio.sleep_forever, hurried=True)
    assert caplog.messages == [USED, "this is taken from them"]
    assert dom0.asked == 1


@pytest.mark.parametrize(("hurried", "at_most"), [(True, 2), (False, 25)])
async def test_a_service_that_does_not_answer_is_not_waited_for_for_ever(
    dom0: Dom0,
    autojump_clock: Clock,
    caplog: pytest.LogCaptureFixture,
    hurried: bool,
    at_most: float,
) -> None:
    dom0.on_call = trio.sleep_forever
    began = trio.current_time()
    await until_unused(LAYOUT, trio.sleep_forever, hurried=hurried)
    assert trio.current_time() - began <= at_most
    assert caplog.messages == ["dom0's service does not say what is in use"]


@pytest.mark.parametrize(("hurried", "at_most"), [(True, 0), (False, 25)])
async def test_a_service_that_is_not_there_is_waited_for_a_while(
    dom0: Dom0,
    autojump_clock: Clock,
    caplog: pytest.LogCaptureFixture,
    hurried: bool,
    at_most: float,
) -> None:
    async def gone() -> None:
        raise CannotComeUp("dom0's service does not answer")

    dom0.on_call = gone
    began = trio.current_time()
    await until_unused(LAYOUT, trio.sleep_forever, hurried=hurried)
    assert trio.current_time() - began == pytest.approx(at_most)
    assert caplog.messages[0] == "what is in use cannot be told: dom0's service does not answer"


async def test_each_time_that_the_service_cannot_be_asked_is_said_once(
    dom0: Dom0, autojump_clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    async def gone() -> None:
        raise CannotComeUp("it is gone")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(waiting, nursery)
        for times in (1, 2):
            dom0.on_call = trio.lowlevel.checkpoint
            await trio.sleep(5)
            dom0.on_call = gone
            await trio.sleep(5)
            said = caplog.messages.count("what is in use cannot be told: it is gone")
            assert said == times
        nursery.cancel_scope.cancel()


async def test_a_service_that_is_just_starting_again_is_asked_when_it_is_there(
    dom0: Dom0, autojump_clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    async def starting() -> None:
        if dom0.asked == 1:
            raise CannotComeUp("dom0's service does not answer")

    dom0.on_call = starting
    with trio.move_on_after(60) as patience:
        await until_unused(LAYOUT, trio.sleep_forever, hurried=False)
    assert patience.cancelled_caught, "what is in use was taken"
    assert USED in caplog.messages


@pytest.mark.parametrize("failure", [CannotComeUp("it is gone"), CallError("timeout", "no")])
async def test_what_was_said_to_be_in_use_is_not_taken_because_the_service_cannot_be_asked_again(
    dom0: Dom0, autojump_clock: Clock, caplog: pytest.LogCaptureFixture, failure: Exception
) -> None:
    async def gone() -> None:
        raise failure

    ended = trio.Event()

    async def wait() -> None:
        await until_unused(LAYOUT, trio.sleep_forever, hurried=False)
        ended.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.sleep(3)
        dom0.on_call = gone
        await trio.sleep(100)
        assert not ended.is_set()
        _, _, lack = caplog.messages
        assert lack == f"what is in use cannot be told: {failure}"
        dom0.used, dom0.on_call = [], trio.lowlevel.checkpoint
        with trio.fail_after(10):
            await ended.wait()
