"""A call from its request to its end: who is told what, and what the audit log has."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from pedos_dom0.calls import broker, channels
from pedos_dom0.drivers.base import DriverError
from pedos_protocol.errors import CallError
from trio.abc import Clock

from tests.dom0.calling import Caller, Calling, Side, calling, quiet
from tests.dom0.fakes import NO, Params, fails, hang, yes

__all__ = ["calling"]


async def ended(calling: Calling, server: Caller | None = None, **more: Any) -> None:
    """Both sides of the only call end well."""
    call = calling.work.only()
    await (server or calling.vault).end(call, **more)
    await calling.work.end(call, **more)
    await quiet()


def lines(calling: Calling, event: str) -> list[Params]:
    return calling.world.audit(event)


async def refused(caller: Caller, *arguments: Any, **more: Any) -> CallError:
    with pytest.raises(CallError) as caught:
        await caller.call(*arguments, **more)
    return caught.value


# The beginning


async def test_an_allowed_call_gets_a_channel_and_its_service_is_started(calling: Calling) -> None:
    work, vault = calling.work, calling.vault
    answer = await work.call(argument="+a.b", uid=1000)
    await quiet()
    call = answer["call"]
    assert answer == {
        "call": call,
        "request": lines(calling, "decision")[0]["request"],
        "peer": calling.domid("vault"),
        "port": answer["port"],
        "new": True,
        "target": None,
    }
    assert work.agent.calls == ["call.running", "channel.listen"]
    assert vault.sides[call].params == {
        "call": call,
        "service": "test.Echo",
        "argument": "+a.b",
        "source": "work",
        "requested_target": "vault",
        "user": None,
        "peer": calling.domid("work"),
        "port": answer["port"],
        "new": True,
        "stderr": True,
    }
    await ended(calling)
    calling.assert_nothing_left()


async def test_the_audit_log_has_a_call_as_one_story(calling: Calling) -> None:
    answer = await calling.work.call()
    await quiet()
    await ended(calling, status=3)
    decision, begun, end = (lines(calling, e)[-1] for e in ("decision", "call", "call_ended"))
    assert (decision["verdict"], decision["rule"]) == ("allow", "30-test.policy:2")
    named = {
        "request": answer["request"],
        "call": answer["call"],
        "caller": "work",
        "source": "work",
        "target": "vault",
        "service": "test.Echo",
        "argument": "+",
    }
    assert begun.items() >= {**named, "outcome": "started", "channel": "new"}.items()
    assert begun["stages"].keys() == {"decide", "channel", "start"}
    said = {"kind": "exited", "status": 3, "stdin": 1, "stdout": 2, "stderr": 3}
    assert end.items() >= {**named, **said}.items()
    assert {decision["request"], begun["request"]} == {answer["request"]}


async def test_the_next_call_takes_the_idle_channel(calling: Calling) -> None:
    first = await calling.work.call()
    await quiet()
    await ended(calling)
    second = await calling.work.call()
    await quiet()
    assert (second["port"], second["new"]) == (first["port"], False)
    assert calling.work.agent.calls.count("channel.listen") == 1
    assert calling.vault.sides[second["call"]].params["new"] is False
    assert lines(calling, "call")[-1]["channel"] == "idle"


@pytest.mark.parametrize("which", ["work", "vault"])
async def test_a_channel_that_one_side_cannot_use_again_is_closed(
    calling: Calling, which: str
) -> None:
    first = await calling.work.call()
    await quiet()
    call = first["call"]
    await calling.vault.end(call, reusable=which != "vault")
    await calling.work.end(call, reusable=which != "work")
    await quiet()
    assert calling.work.closed == calling.vault.closed == [first["port"]]
    assert (await calling.work.call())["new"]


async def test_a_channel_is_the_next_ones_only_when_both_sides_have_ended(calling: Calling) -> None:
    first = await calling.work.call()
    await quiet()
    await calling.work.end(first["call"])
    await quiet()
    assert (await calling.work.call())["port"] != first["port"]


# Policy


async def test_a_vm_learns_that_it_is_denied_and_the_request_id(calling: Calling) -> None:
    for target in ("untrusted", "nowhere", "@default", "@dispvm", "uuid:00"):
        error = await refused(calling.work, target)
        decision = lines(calling, "decision")[-1]
        assert decision["verdict"] == "deny"
        assert (error.code, error.data) == ("denied", {"request": decision["request"]})
        assert error.message == f"test.Echo+ -> {target}"
    assert calling.untrusted.agent.calls == ["call.running"]
    assert lines(calling, "call")[-1]["outcome"] == "denied"
    calling.assert_nothing_left()


async def test_no_vm_calls_itself(calling: Calling) -> None:
    assert (await refused(calling.work, "work")).code == "denied"
    assert lines(calling, "decision")[-1]["reason"] == "no VM calls itself"
    request = {"service": "test.Echo", "argument": "+", "source": "work", "target": "work"}
    explained = await calling.world.client.call("policy.explain", **request)
    assert (explained["verdict"], explained["reason"]) == ("deny", "no VM calls itself")


@pytest.mark.parametrize(
    ("service", "target"),
    [("test.Moved", "untrusted"), ("test.Default", ""), ("test.User", "vault")],
)
async def test_a_rule_chooses_the_target_and_the_user(
    calling: Calling, service: str, target: str
) -> None:
    answer = await calling.work.call(target, service)
    await quiet()
    assert (answer["peer"], answer["target"]) == (calling.domid("vault"), None)
    started = calling.vault.sides[answer["call"]].params
    assert started["requested_target"] == (target or "@default")
    assert started["user"] == ("mail" if service == "test.User" else None)


async def test_a_user_is_chosen_by_dom0_alone(calling: Calling) -> None:
    assert (await refused(calling.work, user="root")).code == "usage"
    answer = await calling.dom0.call(user="root", uid=0)
    await quiet()
    assert answer["target"] == "vault"
    assert calling.vault.sides[answer["call"]].params["user"] == "root"


async def test_a_user_that_no_vm_can_have_is_an_error_of_the_rule(calling: Calling) -> None:
    calling.world.policy.set("test.Echo * work vault allow user=a:b\n")
    assert (await refused(calling.work)).code == "failed"
    assert "'a:b', which is no user's name" in lines(calling, "call")[-1]["outcome"]


async def test_dom0s_user_is_told_the_rule(calling: Calling) -> None:
    calling.world.policy.set("test.Echo * @adminvm @anyvm deny\n")
    for uid, who in ((0, "dom0"), (1000, "dom0 (uid 1000)")):
        error = await refused(calling.dom0, uid=uid)
        assert (error.code, error.data["rule"]) == ("denied", "30-test.policy:1")
        assert lines(calling, "decision")[-1]["caller"] == who


async def test_a_service_of_dom0_writes_its_errors_to_no_vm(calling: Calling) -> None:
    answer = await calling.work.call("dom0")
    await quiet()
    assert calling.dom0.sides[answer["call"]].params["stderr"] is False
    await ended(calling, calling.dom0)
    calling.assert_nothing_left()


async def test_a_client_of_dom0s_sockets_makes_no_calls(calling: Calling) -> None:
    with fails("unknown_method"):
        await calling.world.client.call(
            "service.call", service="test.Echo", argument="+", target="vault"
        )


# Questions


async def test_dom0s_user_chooses_the_target(calling: Calling, autojump_clock: Clock) -> None:
    async with calling.world.client.prompter(yes("untrusted"), calls=True) as prompter:
        answer = await calling.work.call("@default", "test.Ask")
    assert prompter.asked[0]["candidates"] == ["untrusted", "vault"]
    assert answer["peer"] == calling.domid("untrusted")
    await quiet()
    await ended(calling, calling.untrusted)
    calling.assert_nothing_left()


async def test_a_no_of_dom0s_user_is_a_denial(calling: Calling, autojump_clock: Clock) -> None:
    async with calling.world.client.prompter(NO, calls=True):
        assert (await refused(calling.work, "vault", "test.Ask")).code == "denied"
    calling.assert_nothing_left()


async def test_a_caller_that_gives_up_withdraws_its_question(
    calling: Calling, autojump_clock: Clock
) -> None:
    async with calling.world.client.prompter(None, calls=True) as prompter:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(calling.work.call, "vault", "test.Ask")
                await prompter.was_asked.wait()
                (info,) = (await calling.world.client.call("call.list"))["calls"]
                assert (info["state"], info["target"], info["requested"]) == (
                    "asking",
                    None,
                    "vault",
                )
                scope.cancel()
        await quiet()
        assert prompter.cancelled[0]["reason"] == "the command that asked has ended"
    calling.assert_nothing_left()


# The target


async def test_two_calls_at_once_make_one_start_of_a_halted_vm(
    calling: Calling, autojump_clock: Clock
) -> None:
    answers: list[Params] = []

    async def call() -> None:
        answers.append(await calling.work.call("halted"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(call)
        nursery.start_soon(call)
    await quiet()
    assert {answer["peer"] for answer in answers} == {calling.domid("halted")}
    assert len(calling.halted.sides) == 2
    (start,) = lines(calling, "start")
    assert (start["caller"], start["outcome"]) == ("autostart", "started")
    assert start["request"] in [answer["request"] for answer in answers]
    assert "wait" in lines(calling, "call")[-1]["stages"]


async def test_a_vm_that_a_rule_does_not_start_is_not_started(calling: Calling) -> None:
    assert (await refused(calling.work, "halted", "test.Stopped")).code == "denied"
    assert lines(calling, "start") == []


async def test_a_target_that_cannot_be_started_is_a_reason_for_dom0_alone(
    calling: Calling, autojump_clock: Clock
) -> None:
    calling.world.driver.refuse_start = DriverError("no memory is left")
    error = await refused(calling.work, "halted")
    assert error.code == "unavailable"
    assert "halted" not in error.message and "memory" not in error.message
    assert "no memory is left" in lines(calling, "call")[-1]["outcome"]
    error = await refused(calling.dom0, "halted", uid=0)
    assert "halted cannot be reached: it could not be started" in error.message
    calling.assert_nothing_left()


async def test_a_target_without_an_agent_is_waited_for_and_not_for_ever(
    calling: Calling, autojump_clock: Clock
) -> None:
    calling.vault.agent.listens = False
    calling.vault.kill()
    await quiet()
    began = trio.current_time()
    assert (await refused(calling.work)).code == "unavailable"
    assert trio.current_time() - began == pytest.approx(10, abs=0.1)
    calling.assert_nothing_left()


async def test_an_older_agent_serves_no_calls(calling: Calling, autojump_clock: Clock) -> None:
    calling.vault.agent.says_version_1 = True
    calling.vault.kill()
    await trio.sleep(1)
    assert (await refused(calling.work)).code == "unavailable"
    assert "is older" in lines(calling, "call")[-1]["outcome"]


# Failures of the steps


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


async def test_a_service_that_waits_for_a_session_has_not_started(calling: Calling) -> None:
    async def later(_params: Params) -> Params:
        return {"started": False}

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
    async def later(_params: Params) -> Params:
        return {"started": False}

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
    async def later(_params: Params) -> Params:
        return {"started": False}

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


# The end


@pytest.mark.parametrize("who", ["work", "vault"])
async def test_an_agent_that_goes_away_ends_the_other_side(calling: Calling, who: str) -> None:
    answer = await calling.work.call()
    await quiet()
    gone, other = (calling.work, calling.vault) if who == "work" else (calling.vault, calling.work)
    killed: list[Params] = []

    async def kill(params: Params) -> None:
        killed.append(params)

    other.agent.on["service.kill"] = kill
    gone.kill()
    await quiet()
    (told,) = killed
    # A caller does not learn where policy has sent it.
    name = "work" if who == "work" else "the other VM"
    assert (told["kind"], told["text"]) == ("lost", f"the agent of {name} went away")
    end = lines(calling, "call_ended")[-1]
    assert (end["call"], end["kind"]) == (answer["call"], "lost")
    assert other.closed == [answer["port"]]
    calling.assert_nothing_left()


async def test_a_caller_has_the_rest_though_the_agent_of_the_service_goes_away(
    calling: Calling,
) -> None:
    answer = await calling.work.call()
    await quiet()
    await calling.vault.end(answer["call"])
    await quiet()
    calling.vault.kill()
    await quiet()
    assert list(calling.work.sides) == [answer["call"]]
    assert "service.kill" not in calling.work.agent.calls
    await calling.work.end(answer["call"], reusable=False)
    await quiet()
    calling.assert_nothing_left()


async def test_a_service_is_told_that_its_caller_is_gone(
    calling: Calling, autojump_clock: Clock
) -> None:
    answer = await calling.work.call()
    await trio.sleep(1)
    await calling.work.end(answer["call"], "aborted", reusable=False)
    await trio.sleep(broker.LATE_SECONDS - 0.1)
    assert "service.kill" not in calling.vault.agent.calls
    await trio.sleep(0.2)
    assert "service.kill" in calling.vault.agent.calls
    calling.assert_nothing_left()


async def test_a_domain_that_is_destroyed_ends_its_calls(calling: Calling) -> None:
    await calling.work.call()
    await quiet()
    calling.vault.sides.clear()
    calling.vault.ports.clear()
    calling.world.driver.die("vault")
    await quiet()
    calling.assert_nothing_left()
    assert lines(calling, "call_ended")[-1]["kind"] == "lost"


async def test_the_end_is_in_the_log_though_the_caller_reads_slowly(
    calling: Calling, autojump_clock: Clock
) -> None:
    answer = await calling.work.call()
    await trio.sleep(1)
    await calling.vault.end(answer["call"], status=7)
    await trio.sleep(broker.LATE_SECONDS - 0.1)
    assert lines(calling, "call_ended") == []
    (info,) = (await calling.world.client.call("call.list"))["calls"]
    assert info["state"] == "ending"
    await trio.sleep(0.2)
    assert lines(calling, "call_ended")[0]["status"] == 7
    await trio.sleep(3600)
    await calling.work.end(answer["call"], status=7)
    await trio.sleep(0.1)
    assert len(lines(calling, "call_ended")) == 1
    calling.assert_nothing_left()


async def test_where_the_sides_differ_the_log_has_both(calling: Calling) -> None:
    answer = await calling.work.call()
    await quiet()
    await calling.vault.end(answer["call"], "exited", 0, stdout=100)
    await calling.work.end(
        answer["call"], "problem", reusable=False, text="a breach", stdout=50, breach=True
    )
    await quiet()
    end = lines(calling, "call_ended")[-1]
    assert (end["kind"], end["caller_kind"], end["stdout"]) == ("exited", "problem", 100)
    assert end["breach"] == "caller: it is over"


@pytest.mark.parametrize("method", ["service.ended", "service.started"])
async def test_a_vm_that_tells_of_anothers_call_is_disconnected(
    calling: Calling, method: str
) -> None:
    answer = await calling.work.call()
    await quiet()
    peer = calling.untrusted.agent.peer
    assert peer is not None
    if method == "service.started":
        await peer.notify(method, {"call": answer["call"]})
    else:
        calling.untrusted.sides[answer["call"]] = calling.work.sides[answer["call"]]
        await calling.untrusted.end(answer["call"])
    await quiet()
    assert lines(calling, "disconnected")[-1]["vm"] == "untrusted"
    assert list(calling.vault.sides) == [answer["call"]]


@pytest.mark.parametrize("method", ["service.ended", "service.started", "channel.closed"])
async def test_a_malformed_notice_ends_the_connection(calling: Calling, method: str) -> None:
    assert calling.work.agent.peer is not None
    await calling.work.agent.peer.notify(method, {"call": 5})
    await quiet()
    assert lines(calling, "disconnected")[-1]["broke"]


async def test_dom0s_user_ends_a_call(calling: Calling) -> None:
    answer = await calling.work.call()
    await quiet()
    assert await calling.world.client.call("call.end", call=answer["call"]) == {}
    await quiet()
    end = lines(calling, "call_ended")[-1]
    assert (end["by"], end["kind"], end["text"]) == (
        "dom0",
        "problem",
        "dom0's user ended the call",
    )
    calling.assert_nothing_left()
    with fails("not_found", "has ended"):
        await calling.world.client.call("call.end", call=answer["call"])


async def test_dom0s_user_ends_a_call_that_asks(calling: Calling, autojump_clock: Clock) -> None:
    async with calling.world.client.prompter(None, calls=True) as prompter:
        errors: list[CallError] = []

        async def call() -> None:
            errors.append(await refused(calling.work, "vault", "test.Ask"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(call)
            await prompter.was_asked.wait()
            (info,) = (await calling.world.client.call("call.list"))["calls"]
            await calling.world.client.call("call.end", call=info["call"])
    assert lines(calling, "call")[-1]["by"] == "dom0"
    calling.assert_nothing_left()


# Lists


async def test_a_list_has_all_calls_with_what_the_agents_tell(
    calling: Calling, autojump_clock: Clock
) -> None:
    calling.work.bytes, calling.vault.bytes = (1, 2, 3), (9, 9, 9)
    for _ in range(5):
        await calling.work.call()
    await calling.dom0.call(uid=4321)
    calling.dom0.agent.on["call.running"] = hang
    calling.vault.agent.on["call.running"] = hang
    await quiet()
    listed = await calling.world.client.call("call.list")
    assert listed["more"] is False
    calls = listed["calls"]
    assert [each["number"] for each in calls] == list(range(1, 7))
    assert [(each["stdin"], each["stderr"]) for each in calls] == [(1, 3)] * 5 + [(None, None)]
    assert {(each["source"], each["target"], each["by"]) for each in calls} == {
        ("work", "vault", ""),
        ("dom0", "vault", "dom0 (uid 4321)"),
    }
    listed = await calling.world.client.call("call.list", after=calls[3]["number"])
    assert [each["call"] for each in listed["calls"]] == [each["call"] for each in calls[4:]]


# Channels


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


async def test_one_agent_sets_up_few_channels_at_once(
    calling: Calling, autojump_clock: Clock
) -> None:
    waiting: list[Params] = []
    go = trio.Event()

    async def slow(params: Params) -> None:
        waiting.append(params)
        await go.wait()

    calling.vault.agent.on["service.start"] = slow
    async with trio.open_nursery() as nursery:
        for _ in range(6):
            nursery.start_soon(calling.work.call)
        await quiet()
        assert len(waiting) == channels.SET_UP_AT_ONCE
        go.set()
    await quiet()
    assert len(calling.vault.sides) == 6


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


async def test_what_a_vm_may_call_leaves_the_log_to_what_it_is_denied(calling: Calling) -> None:
    for _ in range(100):
        answer = await calling.work.call()
        await quiet()
        await calling.vault.end(answer["call"])
        await calling.work.end(answer["call"])
        await quiet()
    assert len(lines(calling, "call_ended")) == 64
    await refused(calling.work, "untrusted")
    assert lines(calling, "decision")[-1]["verdict"] == "deny"
    await calling.world.kill()
    await calling.world.start()
