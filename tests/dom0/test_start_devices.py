"""A VM starts with what is assigned at its start, not with what was assigned at the request."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.abc import Clock

from tests.dom0.fakes import ALLOW_DOM0, NO, World, fails, yes

ASK = "device.attach.block +sys-usb:{} @adminvm vault ask\n"


@pytest.fixture
async def world(tmp_path: Path, nursery: trio.Nursery) -> AsyncIterator[World]:
    world = World(tmp_path, nursery)
    world.vm("sys-usb", "sda", "sdb")
    world.vm("vault", running=False)
    world.dom0_agent()
    await world.start()
    yield world
    await world.kill()


def assigned(world: World) -> list[str]:
    return [str(assignment.key) for assignment in world.state.store.assignments("vault")]


async def test_what_is_detached_and_assigned_while_dom0s_user_thinks_counts_for_the_start(
    world: World, autojump_clock: Clock
) -> None:
    await world.client.attach("vault", "sys-usb:sda", persistent=True)
    world.policy.set(ASK.format("sda") + ALLOW_DOM0)

    async def answer(_params: Any) -> Any:
        await world.client.detach("vault", "sys-usb:sda")
        await world.client.attach("vault", "sys-usb:sdb", persistent=True)
        return yes("vault")

    async with world.client.prompter(answer):
        started = await world.client.call("vm.start", vm="vault")
    assert started["attached"] == assigned(world) == ["sys-usb:sdb"]


@pytest.mark.parametrize("second", [yes("vault"), NO])
async def test_what_is_assigned_while_dom0s_user_thinks_is_asked_about_too(
    world: World, autojump_clock: Clock, second: Any
) -> None:
    await world.client.attach("vault", "sys-usb:sda", persistent=True)
    answers = [yes("vault"), second]

    async def answer(_params: Any) -> Any:
        if len(answers) == 2:
            world.policy.set(ALLOW_DOM0)
            await world.client.attach("vault", "sys-usb:sdb", persistent=True)
            world.policy.set(ASK.format("sda") + ASK.format("sdb") + ALLOW_DOM0)
        return answers.pop(0)

    world.policy.set(ASK.format("sda") + ALLOW_DOM0)
    async with world.client.prompter(answer) as prompter:
        if second == NO:
            with fails("failed", "vault was not started: its assigned device sys-usb:sdb"):
                await world.client.call("vm.start", vm="vault")
        else:
            started = await world.client.call("vm.start", vm="vault")
            assert started["attached"] == ["sys-usb:sda", "sys-usb:sdb"]
    assert len(prompter.asked) == 2
    assert world.state.store.starts() == []


async def test_nothing_is_assigned_to_a_vm_that_starts_with_what_was_assigned_before(
    world: World, autojump_clock: Clock
) -> None:
    await world.client.attach("vault", "sys-usb:sda", persistent=True)

    async def reach(step: str) -> None:
        if step == "start.reserved":
            with fails("failed", "vault is being started", "try again when it runs"):
                await world.client.attach("vault", "sys-usb:sdb", persistent=True)

    world.reach = reach
    started = await world.client.call("vm.start", vm="vault")
    assert started["attached"] == assigned(world) == ["sys-usb:sda"]
    await world.client.attach("vault", "sys-usb:sdb", persistent=True)
    assert assigned(world) == ["sys-usb:sda", "sys-usb:sdb"]


async def test_an_assignment_that_is_being_written_when_a_vm_starts_is_waited_for(
    world: World, autojump_clock: Clock
) -> None:
    await world.client.attach("vault", "sys-usb:sda", persistent=True)

    async def slow(work: Any) -> Any:
        await trio.sleep(1)
        return work()

    world.disk = slow
    async with trio.open_nursery() as nursery:

        async def assign() -> None:
            await world.client.attach("vault", "sys-usb:sdb", persistent=True)

        nursery.start_soon(assign)
        await trio.sleep(0.5)
        assert assigned(world) == ["sys-usb:sda"]
        started = await world.client.call("vm.start", vm="vault")
    assert started["attached"] == assigned(world) == ["sys-usb:sda", "sys-usb:sdb"]
