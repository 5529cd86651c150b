"""How many channels are kept, and how many calls run."""

from __future__ import annotations

from functools import partial

import pytest
import trio
import trio.testing
from pedos_dom0.calls import broker, channels, ends, starts
from pedos_protocol.errors import CallError
from trio.abc import Clock

from tests.dom0.calling import Caller, Calling, calling, ended, lines, quiet, refused
from tests.dom0.fakes import Params, fails, hang

__all__ = ["calling"]


async def test_two_idle_channels_of_a_pair_are_kept_for_a_minute(
    calling: Calling, autojump_clock: Clock
) -> None:
    answers = [await calling.work.call() for _ in range(4)]
    await trio.sleep(1)
    for answer in answers:
        await calling.vault.end(answer["call"])
        await calling.work.end(answer["call"])
    await trio.sleep(1)
    assert len(calling.work.ports) == channels.IDLE_PER_PAIR
    await trio.sleep(channels.IDLE_SECONDS - 3)
    assert len(calling.work.ports) == channels.IDLE_PER_PAIR
    await trio.sleep(3)
    assert (calling.work.ports, calling.vault.ports) == ({}, {})
    assert list(calling.world.api.calls.broker.channels) == []


async def test_an_idle_channel_that_has_ended_is_not_used(calling: Calling) -> None:
    first = await calling.work.call()
    await quiet()
    await ended(calling)
    assert calling.vault.agent.peer is not None
    await calling.vault.agent.peer.notify(
        "channel.closed", {"port": first["port"], "reason": "it broke"}
    )
    await quiet()
    assert (await calling.work.call())["port"] != first["port"]


async def test_two_agents_set_up_few_channels_at_once(
    calling: Calling, autojump_clock: Clock
) -> None:
    waiting: list[Params] = []
    go = trio.Event()

    async def slow(params: Params) -> None:
        waiting.append(params)
        await go.wait()

    calling.work.agent.on["channel.listen"] = slow
    async with trio.open_nursery() as nursery:
        for _ in range(6):
            nursery.start_soon(calling.work.call)
        await quiet()
        assert len(waiting) == channels.SET_UP_PER_PAIR
        go.set()
    await quiet()
    assert len(calling.vault.sides) == 6


async def test_a_call_that_waits_for_channels_in_vain_is_told_who_does_not_answer(
    calling: Calling, autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker, "WAIT_TIMEOUT", 5.0)
    calling.vault.agent.on["service.start"] = hang
    for caller in (calling.work, calling.dom0):
        for _ in range(channels.SET_UP_PER_PAIR):
            await caller.call()
    began = trio.current_time()
    errors: list[CallError] = []

    async def call(caller: Caller) -> None:
        errors.append(await refused(caller))

    async with trio.open_nursery() as nursery:
        for _ in range(2):  # one that waits takes no place from others
            nursery.start_soon(call, calling.work)
        nursery.start_soon(call, calling.dom0)
        with trio.fail_after(1):
            await calling.work.call("halted")
    assert trio.current_time() - began == pytest.approx(5.0)
    assert {(each.code, each.message) for each in errors} == {
        (
            "busy",
            "the VM that would serve it did not answer: 2 channels for calls to that VM are being "
            "set up, which is the most at once",
        ),
        (
            "busy",
            "the agent of vault did not answer: 2 channels for calls of dom0 in vault are being "
            "set up, which is the most at once",
        ),
    }


# Starts. Calls that are being started with a new channel have a part in setting that up.

FEW = channels.SET_UP_AT_ONCE // 2


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Turns for few starts of a source that is alone, which wait with new channels."""
    monkeypatch.setattr(starts, "ALONE", FEW)
    monkeypatch.setattr(channels, "SET_UP_PER_PAIR", channels.SET_UP_AT_ONCE)


class Starts:
    """Agents whose starts of services in vault are held."""

    def __init__(self, calling: Calling) -> None:
        self.sources: list[str] = []
        self.go = trio.Event()
        calling.vault.agent.on["service.start"] = self._start

    async def _start(self, params: Params) -> None:
        self.sources.append(params["source"])
        await self.go.wait()


async def test_a_source_that_calls_without_end_leaves_the_target_s_agent_to_others(
    calling: Calling, few: None, autojump_clock: Clock
) -> None:
    held = Starts(calling)
    for _ in range(FEW + 1):
        await calling.work.call()
    await calling.untrusted.call()
    await quiet()
    assert held.sources == ["work"] * FEW + ["untrusted"]
    held.go.set()
    await trio.sleep(1)
    assert len(calling.vault.sides) == FEW + 2
    assert {line["outcome"] for line in lines(calling, "call")} == {"started"}
    for caller in (calling.work, calling.untrusted):
        for call in list(caller.sides):
            await calling.vault.end(call)
            await caller.end(call)
    await quiet()
    calling.assert_nothing_left()


async def test_a_source_that_hangs_keeps_no_other_one_s_channel_from_being_set_up(
    calling: Calling, autojump_clock: Clock
) -> None:
    held = Starts(calling)

    async def never(params: Params) -> None:
        await trio.sleep_forever()

    calling.work.agent.on["channel.listen"] = never
    async with trio.open_nursery() as nursery:
        for _ in range(2 * channels.SET_UP_AT_ONCE):
            nursery.start_soon(calling.work.call)
        await quiet()
        with trio.fail_after(1):
            await calling.untrusted.call()
        await quiet()
        assert held.sources == ["untrusted"]
        nursery.cancel_scope.cancel()


async def test_a_call_that_ends_before_its_turn_is_not_started(
    calling: Calling, few: None, autojump_clock: Clock
) -> None:
    held = Starts(calling)
    for _ in range(FEW):
        await calling.work.call()
    last = (await calling.work.call())["call"]
    await calling.work.end(last, "aborted", reusable=False)
    await quiet()
    held.go.set()
    await trio.sleep(1)
    assert last not in calling.vault.sides
    assert len(held.sources) == FEW
    (line,) = [each for each in lines(calling, "call_ended") if each["call"] == last]
    assert line["kind"] == "aborted"
    assert last not in {each.id for each in calling.world.api.calls.broker.table}


async def test_a_call_that_dom0s_user_ends_before_its_turn_is_not_started(
    calling: Calling, few: None, nursery: trio.Nursery, autojump_clock: Clock
) -> None:
    held = Starts(calling)
    for _ in range(FEW):
        await calling.work.call()
    last = (await calling.work.call())["call"]
    calling.vault.agent.on["service.kill"] = hang
    nursery.start_soon(partial(calling.world.client.call, "call.end", call=last))
    await quiet()
    held.go.set()
    await trio.sleep(ends.KILL_TIMEOUT + 1)
    assert last not in calling.vault.sides and last not in calling.work.sides
    assert len(held.sources) == FEW


async def test_starts_behind_those_that_hang_do_not_wait_longer_than_they(
    calling: Calling, few: None, autojump_clock: Clock
) -> None:
    Starts(calling)
    for _ in range(2 * FEW):
        await calling.work.call()
    await trio.sleep(broker.START_TIMEOUT + 1)
    calling.assert_nothing_left()
    assert {line["kind"] for line in lines(calling, "call_ended")} == {"problem"}


async def test_starts_that_wait_end_with_the_target_s_agent(
    calling: Calling, few: None, autojump_clock: Clock
) -> None:
    Starts(calling)
    for _ in range(2 * FEW):
        await calling.work.call()
    await quiet()
    calling.vault.kill()
    await trio.sleep(1)
    calling.assert_nothing_left()


# Bounds


async def test_calls_over_the_bound_of_a_pair_wait_for_an_end(
    calling: Calling, autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pedos_dom0.calls.slots.PER_PAIR", 2)
    first = await calling.work.call()
    await calling.work.call()
    more: list[Params] = []

    async def call() -> None:
        more.append(await calling.work.call())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(call)
        await quiet()
        assert more == []
        listed = (await calling.world.client.call("call.list"))["calls"]
        assert [each["state"] for each in listed] == ["running", "running", "waiting"]
        await calling.vault.end(first["call"])
        await calling.work.end(first["call"])
    # It goes on in the channel that has become free.
    assert (more[0]["port"], more[0]["new"]) == (first["port"], False)
    error = await refused(calling.work)
    assert (error.code, error.message) == (
        "busy",
        "2 calls run there already, which is the most",
    )


async def test_a_source_has_so_many_calls_and_so_many_that_wait(
    calling: Calling, autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pedos_dom0.calls.slots.PER_SOURCE", 1)
    monkeypatch.setattr("pedos_dom0.calls.slots.WAITING_PER_SOURCE", 1)
    await calling.work.call()
    errors: list[CallError] = []

    async def call() -> None:
        errors.append(await refused(calling.work))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(call)
        nursery.start_soon(call)
    assert [error.code for error in errors] == ["quota", "quota"]
    assert errors[0].message.startswith("1 calls of work wait already")
    assert errors[1].message == "1 calls of work run already, which is the most"
    # Another source is not held up.
    await calling.untrusted.call()


async def test_no_channel_is_set_up_with_an_agent_that_has_gone(calling: Calling) -> None:
    state, made = calling.world.state, calling.world.api.calls.broker.channels
    work, vault = state.agents.get("work"), state.agents.get("vault")
    assert work is not None and vault is not None
    calling.vault.kill()
    await quiet()
    with fails("unavailable"):
        await made.permit(work, vault, 1.0)
    assert not any(vault in each for each in made._setting_up)
