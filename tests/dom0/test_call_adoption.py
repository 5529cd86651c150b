"""Calls go on over a restart of dom0's service, and nothing stays that only one side knows."""

from __future__ import annotations

import pytest
import trio
from pedos_dom0.calls import adoption, story
from trio.abc import Clock

from tests.dom0.calling import Calling, Side, calling, quiet
from tests.dom0.fakes import Params
from tests.dom0.test_call_failures import STEPS

__all__ = ["calling"]


async def restarted(calling: Calling) -> None:
    """dom0's service was killed and started; all agents have connected again."""
    await calling.world.restart()
    await trio.sleep(1)


async def test_a_call_goes_on_and_ends_as_any_other(
    calling: Calling, autojump_clock: Clock
) -> None:
    answers = [await calling.work.call() for _ in range(5)]
    await quiet()
    await restarted(calling)
    (first, *_) = adopted = calling.world.audit("call_adopted")
    assert {each["call"] for each in adopted} == {answer["call"] for answer in answers}
    assert (first["source"], first["target"], first["service"]) == ("work", "vault", "test.Echo")
    listed = (await calling.world.client.call("call.list"))["calls"]
    assert [each["state"] for each in listed] == ["running"] * 5
    assert listed[0]["seconds"] > 5
    assert [caller.closed for caller in calling.all] == [[]] * 5
    for answer in answers:
        await calling.vault.end(answer["call"])
        await calling.work.end(answer["call"])
    await quiet()
    assert len(calling.world.audit("call_ended")) == 5
    calling.assert_nothing_left()
    # Their channels are as good as before.
    assert not (await calling.work.call())["new"]


async def test_no_new_channel_gets_the_port_of_one_that_waits_for_its_other_side(
    calling: Calling, autojump_clock: Clock
) -> None:
    answer = await calling.work.call()
    await quiet()
    calling.vault.agent.listens = False
    await restarted(calling)
    assert (await calling.work.call("dom0"))["port"] != answer["port"]
    calling.vault.agent.listens = True
    await trio.sleep(2)
    assert calling.world.audit("call_adopted")[0]["call"] == answer["call"]


async def test_idle_channels_are_closed(calling: Calling, autojump_clock: Clock) -> None:
    answer = await calling.work.call()
    await quiet()
    await calling.vault.end(answer["call"])
    await calling.work.end(answer["call"])
    await quiet()
    await restarted(calling)
    assert calling.work.closed == calling.vault.closed == [answer["port"]]
    calling.assert_nothing_left()
    assert (await calling.work.call())["new"]


async def test_a_service_whose_caller_is_gone_is_told(
    calling: Calling, autojump_clock: Clock
) -> None:
    await calling.work.call()
    await quiet()
    calling.work.sides.clear()
    calling.work.ports.clear()
    await calling.world.restart()
    await trio.sleep(adoption.OTHER_SIDE_TIMEOUT - 1)
    assert len(calling.vault.sides) == 1
    await trio.sleep(2)
    assert calling.vault.sides == {}
    assert "service.kill" in calling.vault.agent.calls
    assert calling.world.audit("call_adopted") == []
    calling.assert_nothing_left()


async def test_a_caller_that_reads_slowly_gets_all_though_the_service_has_ended(
    calling: Calling, autojump_clock: Clock
) -> None:
    call = (await calling.work.call())["call"]
    await quiet()
    calling.vault.sides.clear()
    await calling.world.restart()
    await trio.sleep(3600)
    assert list(calling.work.sides) == [call]
    await calling.work.end(call)
    await quiet()
    assert "service.kill" not in calling.work.agent.calls


async def test_a_side_that_is_told_late_is_of_the_call_as_well(
    calling: Calling, autojump_clock: Clock
) -> None:
    call = (await calling.work.call())["call"]
    await quiet()
    calling.vault.agent.listens = False
    await calling.world.restart()
    await trio.sleep(600)
    calling.vault.agent.listens = True
    await trio.sleep(2)
    assert calling.world.audit("call_adopted")[0]["call"] == call


@pytest.mark.parametrize(
    "change", [{"service": "test.Other"}, {"argument": "+x"}, {"port": 99}, {"peer": 77}]
)
async def test_sides_that_differ_are_no_call(
    calling: Calling, autojump_clock: Clock, change: Params
) -> None:
    call = (await calling.work.call())["call"]
    await quiet()
    side = calling.work.sides[call]
    calling.work.sides[call] = Side(
        "caller",
        {**side.params, **change},
        change.get("port", side.port),
        change.get("peer", side.peer),
    )
    await calling.world.restart()
    await trio.sleep(adoption.OTHER_SIDE_TIMEOUT + 1)
    assert calling.world.audit("call_adopted") == []
    assert calling.vault.sides == {}


async def test_a_vm_cannot_take_the_side_of_another(
    calling: Calling, autojump_clock: Clock
) -> None:
    call = (await calling.work.call())["call"]
    await quiet()
    calling.untrusted.sides[call] = calling.work.sides[call]
    await calling.world.restart()
    await trio.sleep(adoption.OTHER_SIDE_TIMEOUT + 1)
    adopted = calling.world.audit("call_adopted")
    # Whoever tells it first: nobody else is the peer that the service's side names.
    assert [each["source"] for each in adopted] in ([], ["work"])


async def test_a_vm_cannot_call_itself_by_telling_so(
    calling: Calling, autojump_clock: Clock
) -> None:
    domid = calling.domid("untrusted")
    assert domid is not None
    params = {"service": "test.Echo", "argument": "+", "user": None}
    calling.untrusted.agent.on["call.running"] = told = Told(
        [
            {**running(params, domid, "caller"), "call": "0" * 32},
            {**running(params, domid, "service"), "call": "1" * 32},
        ]
    )
    await calling.world.restart()
    await trio.sleep(adoption.OTHER_SIDE_TIMEOUT + 1)
    assert told.asked
    assert calling.world.audit("call_adopted") == []


class Told:
    """What an agent answers to call.running."""

    def __init__(self, calls: list[Params], *, more: bool = False) -> None:
        self.calls, self.more, self.asked = calls, more, 0

    async def __call__(self, _params: Params) -> Params:
        self.asked += 1
        return {"calls": self.calls, "ports": [], "more": self.more}


def running(params: Params, peer: int, side: str = "caller") -> Params:
    return {
        "call": "0" * 32,
        "side": side,
        **params,
        "peer": peer,
        "port": 50,
        "seconds": 1.0,
        "stdin": 0,
        "stdout": 0,
        "stderr": 0,
    }


@pytest.mark.parametrize("calls", [[], [{"call": "0" * 32}], "again"])
async def test_an_agent_that_tells_without_end_is_disconnected(
    calling: Calling, autojump_clock: Clock, calls: list[Params]
) -> None:
    if calls == "again":
        calls = [running({"service": "a", "argument": "+", "user": None}, 1)]
    calling.untrusted.agent.on["call.running"] = told = Told(calls, more=True)
    await calling.world.restart()
    await quiet()
    end = calling.world.audit("disconnected")[-1]
    assert (end["vm"], end["broke"]) == ("untrusted", True)
    assert told.asked <= 2


async def test_an_agent_that_does_not_tell_is_used_all_the_same(
    calling: Calling, autojump_clock: Clock
) -> None:
    async def hang_once(_params: Params) -> None:
        del calling.vault.agent.on["call.running"]
        await trio.sleep_forever()

    calling.vault.agent.on["call.running"] = hang_once
    await calling.world.restart()
    await trio.sleep(adoption.RUNNING_TIMEOUT + 1)
    assert (await calling.work.call())["new"]


@pytest.mark.parametrize("step", [*STEPS, "call.ended"])
async def test_a_service_that_is_killed_at_any_step_leaves_nothing_half_done(
    calling: Calling, autojump_clock: Clock, step: str
) -> None:
    killed = calling.world.kill_at(step)

    async def call() -> None:
        answer = await calling.work.call()
        await quiet()
        await calling.vault.end(answer["call"])
        await calling.work.end(answer["call"])

    async def attempt() -> None:
        with trio.move_on_after(30):
            try:
                await call()
            except Exception as error:
                assert "connection" in str(error), error

    async with trio.open_nursery() as nursery:
        nursery.start_soon(attempt)
        await killed.wait()
        await quiet()
        await restarted(calling)
        await trio.sleep(adoption.OTHER_SIDE_TIMEOUT + 1)
        # What the caller's agent has of it, it has with an answer: then both sides go on.
        assert calling.vault.sides.keys() <= calling.work.sides.keys()
        for each, side in list(calling.work.sides.items()):
            if each in calling.vault.sides:
                await calling.vault.end(each)
                await calling.work.end(each)
            else:  # which its agent sees, as the channel has no other end
                assert calling.vault.ports.get(side.port) is not False
                await calling.work.end(each, "lost", reusable=False)
        await quiet()
        calling.assert_nothing_left()
        nursery.cancel_scope.cancel()


async def test_two_vms_cannot_take_the_channel_of_others(
    calling: Calling, autojump_clock: Clock
) -> None:
    await calling.world.restart()
    await trio.sleep(1)
    answer = await calling.work.call()
    await quiet()
    untrusted = calling.domid("untrusted")
    assert untrusted is not None
    params = {"service": "test.Echo", "argument": "+", "user": None}
    port = {"port": answer["port"], "call": "e" * 32}
    for caller, side, peer in (
        (calling.untrusted, "caller", 0),
        (calling.dom0, "service", untrusted),
    ):
        caller.agent.on["call.running"] = Told([{**running(params, peer, side), **port}])
        caller.agent.kill()
    await trio.sleep(2)
    assert [each["call"] for each in calling.world.audit("call_adopted")] == ["e" * 32]
    await calling.vault.end(answer["call"])
    await calling.work.end(answer["call"])
    await quiet()
    again = await calling.work.call()
    assert (again["port"], again["new"]) == (answer["port"], False)


async def test_an_end_that_is_told_after_a_restart_is_in_the_log(
    calling: Calling, autojump_clock: Clock
) -> None:
    call = (await calling.work.call())["call"]
    await quiet()
    side = calling.vault.sides.pop(call)  # it ends while dom0's service is away
    await restarted(calling)
    calling.vault.sides[call] = side
    await calling.vault.end(call, status=3, stdout=100)
    await quiet()
    (line,) = calling.world.audit("call_ended")
    assert (line["call"], line["caller"], line["service"]) == (call, "vault", "test.Echo")
    assert (line["status"], line["stdout"], line["reason"]) == (3, 100, story.UNTOLD)
    await calling.work.end(call)
    await quiet()


async def test_an_end_that_is_told_twice_is_in_the_log_once(calling: Calling) -> None:
    call = (await calling.work.call())["call"]
    await quiet()
    side = calling.vault.sides[call]
    await calling.vault.end(call)
    await calling.work.end(call)
    await quiet()
    calling.vault.sides[call] = side
    await calling.vault.end(call)
    await quiet()
    assert len(calling.world.audit("call_ended")) == 1
    calling.assert_nothing_left()


async def test_a_side_that_is_told_twice_keeps_its_port(
    calling: Calling, autojump_clock: Clock
) -> None:
    answer = await calling.work.call()
    await quiet()
    calling.vault.agent.listens = False
    told = []

    async def twice(params: Params) -> Params | None:
        told.append(params)
        if len(told) > 1:
            return None
        one = {
            "call": answer["call"], "side": "caller", "service": "test.Echo", "argument": "+",
            "user": None, "peer": answer["peer"], "port": answer["port"], "seconds": 1.0,
            "stdin": 0, "stdout": 0, "stderr": 0,
        }  # fmt: skip
        return {"calls": [one], "ports": [], "more": False}

    calling.work.agent.on["call.running"] = twice
    await restarted(calling)
    ports = calling.world.state.leases.ports
    owner = f"caller of call {answer['call']}"
    first = ports.of(owner)
    assert first is not None and first.port == answer["port"]
    calling.work.sides[answer["call"]].port = 99
    link = calling.world.state.agents.get("work")
    assert link is not None
    await calling.world.api.calls.greet(link)
    assert ports.of(owner) == first
