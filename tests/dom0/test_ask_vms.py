"""Questions that VMs cause: what the VMs get and learn, and how few of them dom0's user sees."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
import trio
from pedos_dom0.access import questions
from pedos_dom0.access.questions import OPEN_PER_ASKER
from pedos_protocol.errors import CallError
from trio.abc import Clock

from tests.dom0.asked import ASK, answered, asking_world, denied
from tests.dom0.fakes import NO, Params, World, fails, named, yes


@pytest.fixture
async def world(tmp_path: Path, nursery: trio.Nursery) -> AsyncIterator[World]:
    world = await asking_world(tmp_path, nursery)
    yield world
    await world.kill()


async def test_a_vm_gets_what_dom0_s_user_grants_and_learns_no_more(
    world: World, autojump_clock: Clock
) -> None:
    agent = world.driver.agents["work"]
    async with world.client.prompter(yes("work")) as prompter:
        answer = await agent.ask("device.attach", **named("work", "sys-usb:stick"))
        assert answer["outcome"] == "attached"
        assert prompter.asked[0]["source"] == "work"
        assert prompter.asked[0]["candidates"] == ["work"]
        answer = await agent.ask("device.detach", **named("work", "sys-usb:stick"))
        assert answer["results"][0]["detached"]
        assert prompter.asked[1]["service"] == "device.detach.block"
        prompter.answer = NO
        with pytest.raises(CallError) as refused:
            await agent.ask("device.attach", **named("work", "sys-usb:stick"))
    error = refused.value
    assert (error.code, error.message) == ("denied", "sys-usb:stick -> work")
    assert error.data == {"request": answered(world)["request"]}


async def test_nobody_is_asked_about_what_there_is_not(world: World, autojump_clock: Clock) -> None:
    agent = world.driver.agents["work"]
    world.policy.set("device.*.block  *  work  work  ask\n")
    async with world.client.prompter(yes("work")) as prompter:
        with fails("denied"):
            await agent.ask("device.attach", **named("work", "sys-usb:nothing"))
        with fails("not_found"):
            await agent.ask("device.detach", **named("work", "sys-usb:stick"))
        with fails("not_found"):
            await world.client.attach("work", "sys-usb:nothing")
    assert prompter.asked == []


async def test_one_vm_has_few_questions_open_and_more_are_denied(
    world: World, autojump_clock: Clock
) -> None:
    outcomes: list[str] = []

    async def ask(device: str) -> None:
        try:
            await world.driver.agents["work"].ask("device.attach", **named("work", device))
        except CallError as error:
            outcomes.append(error.code)

    world.policy.set("device.attach.block  +sys-usb:*  @anyvm  *  ask\n" + ASK)
    for number in range(OPEN_PER_ASKER + 2):
        world.driver.agents["sys-usb"].plug(f"disk{number}")
    await world.driver.agents["sys-usb"].report()
    async with world.client.prompter() as prompter, trio.open_nursery() as nursery:
        for number in range(OPEN_PER_ASKER + 2):
            nursery.start_soon(ask, f"sys-usb:disk{number}")
        await trio.testing.wait_all_tasks_blocked()
        assert len(prompter.asked) == OPEN_PER_ASKER
        assert outcomes == ["denied", "denied"]
        assert f"work has {OPEN_PER_ASKER} questions open" in answered(world)["reason"]
        # Others can still be asked about.
        prompter.answer = yes("vault")
        assert (await world.client.attach("vault", "sys-usb:keys"))["vm"] == "vault"
        nursery.cancel_scope.cancel()


async def test_a_user_in_a_vm_who_gives_up_takes_the_question_back(
    world: World, autojump_clock: Clock
) -> None:
    agent = world.driver.agents["work"]
    async with world.client.prompter() as prompter:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                partial(agent.ask, "device.attach", **named("work", "sys-usb:stick"))
            )
            await prompter.was_asked.wait()
            nursery.cancel_scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        (cancelled,) = prompter.cancelled
        assert cancelled["reason"] == questions.ASKER_GONE == answered(world)["reason"]
        assert world.api.prompters.prompts.standing() == 0
        # It may be asked again, but questions do not flicker.
        prompter.answer = yes("work")
        with denied(world, "work was not granted it a moment ago"):
            await agent.ask("device.attach", **named("work", "sys-usb:stick"))
        await trio.sleep(questions.COOL_DOWN_WITHDRAWN)
        await agent.ask("device.attach", **named("work", "sys-usb:stick"))


@pytest.mark.parametrize("answer", [NO, None], ids=["no", "no answer"])
async def test_a_vm_cannot_wear_dom0_s_user_down(
    world: World, autojump_clock: Clock, answer: Params | None
) -> None:
    agent = world.driver.agents["work"]
    world.policy.set("device.attach.block  +sys-usb:*  @anyvm  *  ask\n")
    async with world.client.prompter(answer) as prompter:
        for _ in range(10):
            with fails("denied"):
                await agent.ask("device.attach", **named("work", "sys-usb:stick"))
        with fails("denied"):  # the name of another VM does not make it another question
            await agent.ask("device.attach", **named("vault", "sys-usb:stick"))
        assert len(prompter.asked) == 1
        prompter.answer = yes("work")
        await agent.ask("device.attach", **named("work", "sys-usb:keys"))
        await trio.sleep(questions.COOL_DOWN)
        await agent.ask("device.attach", **named("work", "sys-usb:stick"))
        assert [question["device"] for question in prompter.asked] == ["stick", "keys", "stick"]


async def test_dom0_s_own_user_may_ask_again_at_once(world: World, autojump_clock: Clock) -> None:
    async with world.client.prompter(NO) as prompter:
        for _ in range(3):
            with denied(world, questions.SAID_NO):
                await world.client.attach("work", "sys-usb:keys")
        assert len(prompter.asked) == 3
