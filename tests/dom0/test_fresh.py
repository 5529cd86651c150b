"""A device that was just plugged in is decided about once its source has identified it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from pedos_dom0.attachments.fresh import KNOWN_TIMEOUT
from pedos_protocol.errors import CallError
from trio.abc import Clock

from tests.dom0.fakes import ALLOW_DOM0, FakeAgent, Params, World, fails, named, yes

RULES = """
device.attach.block  +sys-usb:*:EVIL*   *          *        deny
device.attach.block  +sys-usb:*:GOOD*   @adminvm   work     allow
device.attach.block  +sys-usb:*:GOOD*   @adminvm   vault    allow
device.attach.block  +sys-usb:*:MAYBE*  @adminvm   *        ask
device.attach.block  +work:*:GOOD*      work       vault    allow
device.attach.block  +sys-usb:*:GOOD*   work       work     allow
"""
FRESH = {"identity": "", "description": "disk", "stale": "udev has not looked at it yet"}


def known(identity: str) -> Params:
    return {"identity": f"{identity}::", "description": "a stick", "stale": None}


@pytest.fixture
async def world(tmp_path: Path, nursery: trio.Nursery) -> AsyncIterator[World]:
    world = World(tmp_path, nursery, RULES)
    for name in ("sys-usb", "work", "vault"):
        world.vm(name)
    world.vm("halted", running=False)
    world.dom0_agent()
    await world.start()
    yield world
    await world.kill()


@pytest.fixture
def source(world: World) -> FakeAgent:
    return world.driver.agents["sys-usb"]


async def plug(agent: FakeAgent, fields: Params, device: str = "stick") -> None:
    agent.plug(device, instance="life-1", **fields)
    await agent.report()


async def attached_while(world: World, source: FakeAgent, fields: Params) -> Params:
    """The answer to an immediate attach; its source identifies the device later."""
    await plug(source, FRESH)
    answers = []

    async def attach() -> None:
        try:
            answers.append(await world.client.attach("work", "sys-usb:stick"))
        except CallError as error:
            answers.append({"error": error})

    async with trio.open_nursery() as nursery:
        nursery.start_soon(attach)
        await trio.sleep(KNOWN_TIMEOUT / 2)
        assert answers == [], "it waits"
        assert world.audit("decision") == [], "and nothing is decided about what is half known"
        await plug(source, fields)
    return answers[0]


async def test_an_attach_at_once_after_plugging_in_waits_until_udev_has_said_what_it_is(
    world: World, source: FakeAgent, autojump_clock: Clock
) -> None:
    answer = await attached_while(world, source, known("GOOD"))
    assert answer["outcome"] == "attached"
    (decision,) = world.audit("decision")
    assert decision["argument"] == "+sys-usb:stick:GOOD::"
    (lease,) = world.state.leases
    assert lease.identity == "GOOD::"


async def test_what_udev_says_then_is_what_policy_decides_about(
    world: World, source: FakeAgent, autojump_clock: Clock
) -> None:
    world.policy.set("device.attach.block +sys-usb:*:EVIL* * * deny\n" + ALLOW_DOM0)
    answer = await attached_while(world, source, known("EVIL"))
    assert answer["error"].code == "denied"
    assert source.calls == []


async def test_dom0s_user_is_asked_about_the_device_that_it_is(
    world: World, source: FakeAgent, autojump_clock: Clock
) -> None:
    async with world.client.prompter(yes("work")) as prompter:
        answer = await attached_while(world, source, known("MAYBE"))
    assert answer["outcome"] == "attached"
    (question,) = prompter.asked
    assert question["identity"] == "MAYBE::"


async def test_the_wait_is_bounded_and_the_refusal_says_what_and_what_next(
    world: World, source: FakeAgent, autojump_clock: Clock
) -> None:
    world.policy.set(ALLOW_DOM0)
    await plug(source, FRESH)
    began = trio.current_time()
    with fails(
        "busy",
        "sys-usb cannot tell what sys-usb:stick is: udev has not looked at it yet",
        "try again; if it stays so, see whether udev and the agent work in sys-usb",
    ):
        await world.client.attach("work", "sys-usb:stick")
    assert trio.current_time() - began == pytest.approx(KNOWN_TIMEOUT)
    assert source.calls == []
    assert world.audit("decision") == [], "nobody decides about what is half known"
    world.assert_nothing_left()


async def test_a_source_that_always_has_news_does_not_lengthen_the_wait(
    world: World, source: FakeAgent, autojump_clock: Clock
) -> None:
    world.policy.set(ALLOW_DOM0)
    await plug(source, FRESH)
    began = trio.current_time()
    reports = 256

    async def chatter() -> None:
        for number in range(2 * reports):
            await trio.sleep(KNOWN_TIMEOUT / reports)
            await plug(source, FRESH | {"description": str(number)})

    async with trio.open_nursery() as nursery:
        nursery.start_soon(chatter)
        with fails("busy", "udev has not looked at it yet"):
            await world.client.attach("work", "sys-usb:stick")
        assert trio.current_time() - began == pytest.approx(KNOWN_TIMEOUT)
        nursery.cancel_scope.cancel()


async def test_one_that_is_pulled_out_again_is_not_waited_for(
    world: World, source: FakeAgent, autojump_clock: Clock
) -> None:
    await plug(source, FRESH)

    async def pull() -> None:
        await trio.sleep(1)
        await source.unplug("stick")

    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pull)
        with fails("not_found", "no block device named 'stick'"):
            await world.client.attach("work", "sys-usb:stick")
    assert trio.current_time() - began == pytest.approx(1)


async def test_a_start_with_what_was_just_plugged_in_waits_for_it(
    world: World, source: FakeAgent, autojump_clock: Clock
) -> None:
    world.policy.set(ALLOW_DOM0)
    await plug(source, known("GOOD"))
    await world.client.attach("halted", "sys-usb:stick", persistent=True)
    await plug(source, FRESH)

    async def tell() -> None:
        await trio.sleep(KNOWN_TIMEOUT / 2)
        await plug(source, known("GOOD"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(tell)
        answer = await world.client.call("vm.start", vm="halted")
    assert answer["attached"] == ["sys-usb:stick"]


async def test_a_start_is_refused_when_nobody_says_what_the_assigned_device_is(
    world: World, source: FakeAgent, autojump_clock: Clock
) -> None:
    world.policy.set(ALLOW_DOM0)
    await plug(source, known("GOOD"))
    await world.client.attach("halted", "sys-usb:stick", persistent=True)
    world.policy.set("device.attach.block * @adminvm * ask\n")
    await plug(source, FRESH)
    async with world.client.prompter(yes("halted")) as prompter:
        with fails("failed", "cannot tell what sys-usb:stick is: udev has not looked at it yet"):
            await world.client.call("vm.start", vm="halted")
    assert prompter.asked == [], "there is nothing to ask about yet"


async def test_an_attached_device_that_cannot_be_looked_at_is_attached_already(
    world: World, source: FakeAgent, autojump_clock: Clock
) -> None:
    world.policy.set(ALLOW_DOM0)
    await plug(source, known("GOOD"))
    await world.client.attach("work", "sys-usb:stick")
    await plug(source, known("GOOD") | {"stale": "Too many open files"})
    began = trio.current_time()
    answer = await world.client.attach("work", "sys-usb:stick")
    assert (answer["outcome"], trio.current_time()) == ("already", began)


@pytest.mark.parametrize("fields", [FRESH, known("EVIL"), None])
async def test_the_time_of_a_denial_tells_no_vm_what_another_has(
    world: World, source: FakeAgent, autojump_clock: Clock, fields: Params | None
) -> None:
    if fields is not None:
        await plug(source, fields)
    began = trio.current_time()
    with fails("denied"):
        await world.driver.agents["work"].ask("device.attach", **named("work", "sys-usb:stick"))
    assert trio.current_time() == began


@pytest.mark.parametrize("rest", ["allow", "ask"])
@pytest.mark.parametrize("fields", [FRESH, known("EVIL"), known("") | {"stale": "no"}, None])
async def test_a_vm_learns_as_much_of_a_device_that_is_not_known_yet_as_of_one_that_is_not_there(
    world: World,
    source: FakeAgent,
    autojump_clock: Clock,
    fields: Params | None,
    rest: str,
) -> None:
    """A wildcard allows it to ask, and a rule denies it one by its identity."""
    world.policy.set(
        f"device.attach.block +sys-usb:*:EVIL* * * deny\ndevice.attach.block * work work {rest}\n"
    )
    if fields is not None:
        await plug(source, fields)
    began = trio.current_time()
    async with world.client.prompter(yes("work")) as prompter:
        with pytest.raises(CallError) as told:
            await world.driver.agents["work"].ask("device.attach", **named("work", "sys-usb:stick"))
    assert (told.value.code, told.value.message) == ("denied", "sys-usb:stick -> work")
    assert (trio.current_time(), prompter.asked) == (began, [])


async def test_a_vm_waits_for_its_own_device(world: World, autojump_clock: Clock) -> None:
    agent = world.driver.agents["work"]
    await plug(agent, FRESH)
    answers: list[Any] = []

    async def attach() -> None:
        params = named("vault", "work:stick")
        answers.append(await agent.ask("device.attach", **params))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(attach)
        await trio.sleep(KNOWN_TIMEOUT / 2)
        assert answers == []
        await plug(agent, known("GOOD"))
    assert answers[0]["outcome"] == "attached"
