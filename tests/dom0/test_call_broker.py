"""The beginning of a call: who is told what, and what the audit log has."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from pedos_dom0.drivers.base import DriverError
from trio.abc import Clock

from tests.dom0.calling import Calling, calling, ended, lines, quiet, refused
from tests.dom0.fakes import NO, Params, fails, yes

__all__ = ["calling"]


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


@pytest.mark.parametrize("uid", [False, True, "0", -1, [0]])
async def test_a_program_whose_user_cannot_be_read_calls_as_nobody(
    calling: Calling, uid: object
) -> None:
    error = await refused(calling.dom0, uid=uid)
    assert error.code == "usage" and "uid" in error.message
    assert lines(calling, "decision") == []


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


async def test_a_name_that_no_vm_has_is_said_to_be_one_to_dom0s_user_alone(
    calling: Calling,
) -> None:
    error = await refused(calling.dom0, "nosuch")
    assert (error.code, error.message) == ("failed", "no VM named 'nosuch'")
    assert error.data["hint"] == "qvm-ls"
    assert (await refused(calling.dom0, "@default")).code == "denied"
    vms = await refused(calling.work, "nosuch")
    assert (vms.code, "no VM" in vms.message) == ("denied", False)
    assert [each["outcome"] for each in lines(calling, "call")] == [
        "failed: no VM named 'nosuch'",
        "denied",
        "denied",
    ]
