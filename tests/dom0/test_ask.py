"""`ask`: dom0's user decides, and anything else that happens meanwhile denies the request."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio
from pedos_dom0.access import questions
from pedos_dom0.access.questions import ASK_TIMEOUT
from pedos_protocol.errors import CallError
from trio.abc import Clock

from tests.dom0.asked import ASK, answered, asking_world, denied
from tests.dom0.fakes import NO, FakePrompter, Params, World, fails, named, yes


@pytest.fixture
async def world(tmp_path: Path, nursery: trio.Nursery) -> AsyncIterator[World]:
    world = await asking_world(tmp_path, nursery)
    yield world
    await world.kill()


# Answers


async def test_a_question_has_all_that_dom0_s_user_needs_and_a_yes_attaches(
    world: World, autojump_clock: Clock
) -> None:
    async with world.client.prompter(yes("work")) as prompter:
        answer = await world.client.attach("work", "sys-usb:keys")
    assert (answer["outcome"], answer["vm"]) == ("attached", "work")
    (question,) = prompter.asked
    assert question == {
        "request": answer["request"],
        "source": "dom0",
        "service": "device.attach.block",
        "device_class": "block",
        "backend": "sys-usb",
        "device": "keys",
        "identity": "046d:c52b",
        "description": "a stick",
        "size": 4096,
        "read_only": False,
        "candidates": ["work"],
        "default": "work",
        "timeout_s": 60,
        "assigned": None,
    }
    (asked,) = world.audit("asked")
    assert (asked["description"], asked["size"], asked["timeout_s"]) == ("a stick", 4096, 60)
    (decision,) = world.audit("decision")
    assert decision["verdict"] == "ask" and decision["rule"] == "30-test.policy:2"
    assert asked["request"] == answered(world)["request"] == decision["request"]
    assert (answered(world)["verdict"], answered(world)["target"]) == ("allow", "work")


async def test_a_rule_may_send_what_is_asked_about_to_another_vm(
    world: World, autojump_clock: Clock
) -> None:
    world.policy.set("device.attach.block * @adminvm work ask target=vault\n")
    async with world.client.prompter(yes("vault")) as prompter:
        answer = await world.client.attach("work", "sys-usb:keys")
    assert prompter.asked[0]["candidates"] == ["vault"]
    assert answer["vm"] == "vault"
    (lease,) = world.state.leases.of_vm("vault")
    assert lease.key.device == "keys"
    assert world.audit("attach")[-1]["vm"] == "vault"


async def test_dom0_s_user_chooses_where_a_vm_named_none_that_there_is(
    world: World, autojump_clock: Clock
) -> None:
    world.policy.set(
        "device.attach.block +sys-usb:keys work @default ask default_target=vault\n"
        "device.attach.block +sys-usb:keys work vault allow\n"
        "device.attach.block +sys-usb:keys work halted ask\n"
        "device.attach.block +sys-usb:keys work sys-usb ask\n"
        "device.attach.block +sys-usb:keys work dom0 ask\n"
    )
    async with world.client.prompter(yes("vault")) as prompter:
        answer = await world.driver.agents["work"].ask(
            "device.attach", **named("nobody", "sys-usb:keys")
        )
    assert prompter.asked[0]["candidates"] == ["halted", "vault"]
    assert prompter.asked[0]["default"] == "vault"
    # The VM must not know where the device went.
    assert (answer["outcome"], answer["options"], answer["vm"]) == ("attached", {}, None)
    assert [lease.key.device for lease in world.state.leases.of_vm("vault")] == ["keys"]


async def test_the_rule_s_read_only_holds_for_what_was_asked(
    world: World, autojump_clock: Clock
) -> None:
    async with world.client.prompter(yes("work")) as prompter:
        answer = await world.client.attach("work", "sys-usb:ro", options={"read-only": "no"})
    assert prompter.asked[0]["read_only"] is True
    assert answer["options"]["read-only"] == "yes"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (NO, questions.SAID_NO),
        (yes("sys-usb"), "names sys-usb, which was not to be chosen"),
        (yes("nobody"), "names nobody"),
        ({"verdict": "allow", "target": None}, "names no VM"),
        ({"verdict": "yes", "target": "work"}, "is malformed"),
        ({}, "is malformed"),
    ],
)
async def test_any_other_answer_is_a_no(
    world: World, autojump_clock: Clock, answer: Params, reason: str
) -> None:
    async with world.client.prompter(answer):
        with denied(world, reason):
            await world.client.attach("work", "sys-usb:keys")


async def test_a_prompter_that_fails_is_a_no(world: World, autojump_clock: Clock) -> None:
    async def fail(_params: Params) -> Params:
        raise CallError("failed", "no terminal\x1b[2J")

    async with world.client.prompter(fail):
        with denied(world, "the prompter could not ask: no terminal_[2J"):
            await world.client.attach("work", "sys-usb:keys")


async def test_without_a_prompter_it_is_a_no_that_says_so(
    world: World, autojump_clock: Clock
) -> None:
    with denied(world, questions.NO_PROMPTER):
        await world.client.attach("work", "sys-usb:keys")
    with pytest.raises(CallError, match="no prompter is running"):
        await world.client.attach("work", "sys-usb:keys")
    assert world.audit("asked") == []


async def test_nobody_answers_in_time(world: World, autojump_clock: Clock) -> None:
    async with world.client.prompter() as prompter:
        began = trio.current_time()
        with denied(world, questions.LATE):
            await world.client.attach("work", "sys-usb:keys")
        assert trio.current_time() - began == pytest.approx(ASK_TIMEOUT)
        await trio.testing.wait_all_tasks_blocked()
        (cancelled,) = prompter.cancelled
        assert cancelled == {"request": prompter.asked[0]["request"], "reason": questions.LATE}


async def test_an_answer_that_comes_too_late_changes_nothing(
    world: World, autojump_clock: Clock
) -> None:
    async def late(_params: Params) -> Params:
        await trio.sleep(ASK_TIMEOUT + 1)
        return yes("work")

    async with world.client.prompter(late):
        with denied(world, questions.LATE):
            await world.client.attach("work", "sys-usb:keys")
        await trio.sleep(10)
        world.assert_nothing_left()


# Prompters that come and go


async def test_all_prompters_show_it_and_the_first_answer_counts(
    world: World, autojump_clock: Clock
) -> None:
    async with (
        world.client.prompter() as silent,
        world.client.prompter(yes("work")) as quick,
        world.client.prompter() as also_silent,
    ):
        began = trio.current_time()
        await world.client.attach("work", "sys-usb:keys")
        assert trio.current_time() == began, "nobody waits for the silent ones"
        await trio.testing.wait_all_tasks_blocked()
        (question,) = quick.asked
        for prompter in (silent, also_silent):
            assert prompter.asked == [question]
            (cancelled,) = prompter.cancelled
            assert cancelled == {"request": question["request"], "reason": questions.ANSWERED}
        assert quick.cancelled == []
    assert len(world.audit("asked")) == len(world.audit("answered")) == 1


async def test_of_two_answers_the_later_one_changes_nothing(
    world: World, autojump_clock: Clock
) -> None:
    async def later(_params: Params) -> Params:
        await trio.sleep(1)
        return yes("vault")

    async with world.client.prompter(later), world.client.prompter(NO):
        with denied(world, questions.SAID_NO):
            await world.client.attach("work", "sys-usb:keys")
        await trio.sleep(2)
        world.assert_nothing_left()
        assert world.api.prompters.prompts.standing() == 0


async def test_one_that_comes_while_it_is_open_shows_it_with_the_time_that_is_left(
    world: World, autojump_clock: Clock
) -> None:
    async with world.client.prompter() as silent, trio.open_nursery() as nursery:
        nursery.start_soon(world.client.attach, "work", "sys-usb:keys")
        await silent.was_asked.wait()
        await trio.sleep(10)
        async with world.client.prompter(yes("work")) as late:
            await late.was_asked.wait()
            assert late.asked[0]["timeout_s"] == 50
            await silent.register()  # once more, which makes it no other one
            await trio.testing.wait_all_tasks_blocked()
        assert len(silent.asked) == 1
    assert [lease.vm for lease in world.state.leases] == ["work"]


async def test_one_that_goes_away_leaves_it_to_the_others(
    world: World, autojump_clock: Clock
) -> None:
    async def die_after_ten_seconds(_params: Params) -> Params:
        await trio.sleep(10)
        dying.peer.close()
        return yes("vault")

    async def twenty_seconds_later(_params: Params) -> Params:
        await trio.sleep(20)
        return yes("work")

    async with (
        world.client.prompter(twenty_seconds_later),
        world.client.prompter(die_after_ten_seconds) as dying,
    ):
        answer = await world.client.attach("work", "sys-usb:keys")
    assert answer["vm"] == "work"
    assert len(world.audit("asked")) == len(world.audit("answered")) == 1


@pytest.mark.parametrize("code", ["failed", "timeout", "denied"])
async def test_one_that_cannot_ask_leaves_it_to_the_others(
    world: World, autojump_clock: Clock, code: str
) -> None:
    async def cannot(_params: Params) -> Params:
        raise CallError(code, "the screen is locked")

    async def later(_params: Params) -> Params:
        await trio.sleep(20)
        return yes("work")

    async with world.client.prompter(later) as other, world.client.prompter(cannot):
        assert (await world.client.attach("work", "sys-usb:keys"))["vm"] == "work"
        await world.client.detach("work", "sys-usb:keys")
        other.answer = cannot
        with denied(world, "the prompter could not ask: the screen is locked"):
            await world.client.attach("work", "sys-usb:keys")


async def test_when_the_last_one_goes_away_it_is_a_no(world: World, autojump_clock: Clock) -> None:
    async def die(_params: Params) -> Params:
        prompter.peer.close()
        return yes("work")

    async with world.client.prompter(die) as prompter:
        with denied(world, questions.PROMPTER_GONE):
            await world.client.attach("work", "sys-usb:keys")
    await trio.testing.wait_all_tasks_blocked()
    assert len(world.api.prompters.prompts) == 0


async def test_prompters_are_bounded(
    world: World, autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(questions, "PROMPTERS_MAX", 1)
    async with world.client.prompter():
        with fails("quota", "prompters"):
            await world.client.call("prompter.register")


# What changes while dom0's user thinks


async def asked_while(world: World, prompter: FakePrompter, change: Any) -> None:
    """The answer comes after `change`."""

    async def answer(_params: Params) -> Params:
        await change()
        return yes("work")

    prompter.answer = answer
    await world.client.attach("work", "sys-usb:keys")


@pytest.mark.parametrize(
    "rules",
    [
        "device.attach.block * @adminvm @anyvm deny\n" + ASK,
        "",
        # Now only the vault may be chosen.
        "device.attach.block +sys-usb:keys @adminvm work ask target=vault\n",
        "device.attach.block +sys-usb:keys @adminvm work allow target=vault\n",
    ],
    ids=["denied", "no rule", "not a candidate", "redirected"],
)
async def test_a_policy_that_has_changed_is_a_no(
    world: World, autojump_clock: Clock, rules: str
) -> None:
    async def change() -> None:
        world.policy.set(rules)

    async with world.client.prompter() as prompter:
        with fails("denied"):
            await asked_while(world, prompter, change)
    last = world.audit("decision")[-1]
    assert (last["verdict"], last["reason"]) == (
        "deny",
        "the policy has changed since dom0's user was asked",
    )
    world.assert_nothing_left()


async def test_a_policy_that_allows_it_by_now_is_no_obstacle(
    world: World, autojump_clock: Clock
) -> None:
    async def change() -> None:
        world.policy.set("device.attach.block * @adminvm @anyvm allow read-only=yes\n")

    async with world.client.prompter() as prompter:
        await asked_while(world, prompter, change)
    (lease,) = world.state.leases.of_vm("work")
    assert lease.options["read-only"] == "yes"


@pytest.mark.parametrize("how", ["another", "plugged in again", "gone"])
async def test_a_device_that_is_another_one_now_is_a_no(
    world: World, autojump_clock: Clock, how: str
) -> None:
    agent = world.driver.agents["sys-usb"]

    async def change() -> None:
        if how == "another":
            agent.plug("keys", identity="1050:0407")
            await agent.report()
        else:
            await agent.unplug("keys")
            if how == "plugged in again":
                agent.plug("keys")
                await agent.report()

    async with world.client.prompter() as prompter:
        with fails("not_found" if how == "gone" else "denied"):
            await asked_while(world, prompter, change)
    if how != "gone":
        assert "another device now" in world.audit("decision")[-1]["reason"]
    world.assert_nothing_left()


async def test_a_device_that_is_taken_meanwhile_is_busy(
    world: World, autojump_clock: Clock
) -> None:
    async def change() -> None:
        world.policy.set("device.attach.block * @adminvm @anyvm allow\n")
        await world.client.attach("vault", "sys-usb:keys")
        world.policy.set(ASK)

    async with world.client.prompter() as prompter:
        with fails("busy", "is attached to vault"):
            await asked_while(world, prompter, change)


async def test_whoever_asked_goes_away_and_takes_the_question_with_them(
    world: World, autojump_clock: Clock
) -> None:
    async with world.client.prompter() as prompter:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(world.client.attach, "work", "sys-usb:keys")
                await prompter.was_asked.wait()
                scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        (cancelled,) = prompter.cancelled
        assert cancelled["reason"] == questions.ASKER_GONE == answered(world)["reason"]
        assert world.api.prompters.prompts.standing() == 0
    world.assert_nothing_left()


async def test_a_vm_that_dies_takes_its_question_with_it(
    world: World, autojump_clock: Clock
) -> None:
    async def ask() -> None:
        with fails("unavailable"):
            await world.driver.agents["work"].ask("device.attach", **named("work", "sys-usb:stick"))

    async with world.client.prompter() as prompter:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await prompter.was_asked.wait()
            world.driver.die("work")
        await trio.testing.wait_all_tasks_blocked()
        assert prompter.cancelled[0]["reason"] == questions.ASKER_GONE


async def test_the_end_of_the_service_is_the_end_of_the_question(
    world: World, autojump_clock: Clock
) -> None:
    async def ask() -> None:
        with fails("unavailable"):
            await world.client.attach("work", "sys-usb:keys")

    async with world.client.prompter() as prompter, trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await prompter.was_asked.wait()
        await world.kill()
    await world.start()
    world.assert_nothing_left()


# Assignments and starts


async def test_an_assignment_is_asked_about_too_and_for_the_vm_that_was_chosen(
    world: World, autojump_clock: Clock
) -> None:
    async with world.client.prompter(yes("work")) as prompter:
        await world.client.attach("work", "sys-usb:keys", persistent=True)
        assert [question["service"] for question in prompter.asked] == [
            "device.attach.block",
            "device.assign.block",
        ]
        assert prompter.asked[1]["candidates"] == ["work"]
    assert [a.key.device for a in world.state.store.assignments("work")] == ["keys"]


async def test_a_no_to_the_assignment_is_a_no_to_both(world: World, autojump_clock: Clock) -> None:
    async def only_once(params: Params) -> Params:
        return yes("work") if params["service"] == "device.attach.block" else NO

    async with world.client.prompter(only_once):
        with denied(world, questions.SAID_NO):
            await world.client.attach("work", "sys-usb:keys", persistent=True)
    assert world.state.store.assignments("work") == []


async def test_a_start_asks_for_what_is_assigned_and_does_not_start_without_a_yes(
    world: World, autojump_clock: Clock
) -> None:
    world.policy.set("device.*.block * @adminvm @anyvm allow\n")
    await world.client.attach("halted", "sys-usb:keys", persistent=True)
    await world.client.attach("halted", "sys-usb:stick", persistent=True)
    world.policy.set(ASK)
    async with world.client.prompter(yes("halted")) as prompter:
        answer = await world.client.call("vm.start", vm="halted")
        assert answer["attached"] == ["sys-usb:keys", "sys-usb:stick"]
        assert [question["device"] for question in prompter.asked] == ["keys"]
        await world.client.call("vm.shutdown", vm="halted")
        prompter.answer = yes("vault")
        with fails("failed", "names vault, which was not to be chosen"):
            await world.client.call("vm.start", vm="halted")
        prompter.answer = NO
        with fails("failed", "sys-usb:keys is denied by policy", questions.SAID_NO):
            await world.client.call("vm.start", vm="halted")
    with fails("failed", "no prompter is running"):
        await world.client.call("vm.start", vm="halted")
    assert world.driver.infos["halted"].domid is None
    assert world.state.leases.of_vm("halted") == []
