"""A call whose beginning fails at one of its steps, or is given up there."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from pedos_dom0.calls import broker
from pedos_protocol.errors import CallError
from trio.abc import Clock

from tests.dom0.calling import Calling, Side, calling, ended, lines, quiet, refused
from tests.dom0.fakes import Params, hang

__all__ = ["calling"]


@pytest.mark.parametrize(
    ("code", "told"), [("failed", "failed"), ("quota", "busy"), ("unavailable", "failed")]
)
async def test_a_caller_that_cannot_listen_gets_no_call(
    calling: Calling, code: str, told: str
) -> None:
    async def no(_params: Params) -> Params:
        raise CallError(code, "15 channels of 15 are in use")

    calling.work.agent.on["channel.listen"] = no
    error = await refused(calling.work)
    assert error.code == told
    assert "15 channels of 15 are in use" in error.message
    assert calling.vault.agent.calls == ["call.running"]
    await quiet()
    calling.assert_nothing_left()


async def test_idle_channels_make_room_for_others(calling: Calling) -> None:
    await calling.work.call()
    await quiet()
    await ended(calling)
    idle = next(iter(calling.work.ports))
    room = [False]

    async def no(_params: Params) -> None:
        if not room[0]:
            room[0] = True
            raise CallError("quota", "15 channels of 15 are in use")

    calling.work.agent.on["channel.listen"] = no
    answer = await calling.work.call("dom0")
    await quiet()
    assert answer["new"]
    assert idle in calling.work.closed


@pytest.mark.parametrize(
    ("code", "kind"), [("not_found", "not_found"), ("failed", "problem"), ("timeout", "problem")]
)
async def test_a_service_that_cannot_be_started_ends_the_call_of_the_caller(
    calling: Calling, code: str, kind: str
) -> None:
    go = trio.Event()

    async def no(_params: Params) -> Params:
        await go.wait()
        raise CallError(code, "vault's own words")

    calling.vault.agent.on["service.start"] = no
    answer = await calling.work.call()
    go.set()
    await quiet()
    calling.assert_nothing_left()
    begun, end = lines(calling, "call")[-1], lines(calling, "call_ended")[-1]
    assert "vault's own words" in begun["outcome"]
    assert end["kind"] == kind
    assert "service.kill" in calling.work.agent.calls
    assert answer["port"] in calling.work.closed


async def test_a_service_that_fails_at_once_is_the_answer(calling: Calling) -> None:
    async def no(_params: Params) -> Params:
        raise CallError("not_found", "no file of that name")

    calling.vault.agent.on["service.start"] = no

    async def reach(step: str) -> None:
        if step == "call.granted":
            await quiet()

    calling.world.reach = reach
    error = await refused(calling.work)
    assert (error.code, error.message) == ("not_found", "no such service")
    await quiet()
    assert "service.kill" not in calling.work.agent.calls
    calling.assert_nothing_left()


async def test_a_service_that_is_not_started_in_time_is_ended_at_both_sides(
    calling: Calling, autojump_clock: Clock
) -> None:
    calling.vault.agent.on["service.start"] = hang
    await calling.work.call()
    await trio.sleep(broker.START_TIMEOUT + 1)
    assert "service.kill" in calling.vault.agent.calls
    calling.assert_nothing_left()


async def later(_params: Params) -> Params:
    """An agent's word on a start: it will tell."""
    return {"started": False}


async def test_a_service_that_waits_for_a_session_has_not_started(calling: Calling) -> None:
    calling.vault.agent.on["service.start"] = later
    answer = await calling.work.call()
    await quiet()
    (info,) = (await calling.world.client.call("call.list"))["calls"]
    assert (info["state"], lines(calling, "call")) == ("starting", [])
    assert calling.vault.agent.peer is not None
    await calling.vault.agent.peer.notify("service.started", {"call": answer["call"]})
    await quiet()
    (info,) = (await calling.world.client.call("call.list"))["calls"]
    assert (info["state"], lines(calling, "call")[0]["outcome"]) == ("running", "started")


async def test_a_start_that_is_told_before_the_caller_has_its_answer_counts(
    calling: Calling,
) -> None:
    async def reach(step: str) -> None:
        if step == "call.granted":
            await quiet()
            assert calling.vault.agent.peer is not None
            (call,) = calling.vault.sides
            await calling.vault.agent.peer.notify("service.started", {"call": call})
            await quiet()
            assert lines(calling, "call") == []

    calling.vault.agent.on["service.start"] = later
    calling.world.reach = reach
    await calling.work.call()
    await quiet()
    (info,) = (await calling.world.client.call("call.list"))["calls"]
    assert (info["state"], lines(calling, "call")[0]["outcome"]) == ("running", "started")


async def test_a_service_that_is_not_found_in_the_channel_leaves_that_idle(
    calling: Calling,
) -> None:
    calling.vault.agent.on["service.start"] = later
    await calling.work.call()
    await quiet()
    call = calling.work.only()
    await calling.vault.end(call, "not_found", text="no such service")
    await calling.work.end(call, "not_found", 127)  # as its program exits
    await quiet()
    assert "caller_kind" not in lines(calling, "call_ended")[-1]
    assert lines(calling, "call")[-1]["outcome"] == "not_found: no such service"
    assert (await calling.work.call())["new"] is False


STEPS = ["call.decided", "call.listening", "call.granted"]


@pytest.mark.parametrize("step", STEPS)
async def test_a_caller_that_gives_up_at_any_step_leaves_nothing(
    calling: Calling, step: str, autojump_clock: Clock
) -> None:
    with trio.CancelScope() as scope:

        async def reach(name: str) -> None:
            if name == step:
                scope.cancel()
                await trio.sleep(1)

        calling.world.reach = reach
        with pytest.raises(CallError):
            await calling.work.call()
            raise CallError("failed", "answered")
    await trio.sleep(20)
    for call in calling.world.api.calls.broker.table:  # the answer was on its way already
        assert call.channel is not None
        calling.work.sides[call.id] = Side("caller", {}, call.channel.port, 0)
        await calling.work.end(call.id, "aborted", reusable=False)
        await calling.vault.end(call.id, "aborted", reusable=False)
    await trio.sleep(20)
    calling.assert_nothing_left()
