"""What an operation waits for is reported to the command that waits, and to no other client."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from pedos_dom0.tasks import progress
from pedos_protocol.errors import CallError

from tests.dom0.fakes import World, hang


class Command:
    """The connection of a command."""

    def __init__(self) -> None:
        self.steps: list[tuple[float, str, str, str]] = []

    async def notify(self, method: str, params: dict[str, Any]) -> None:
        await trio.lowlevel.checkpoint()
        assert method == "operation.step"
        self.steps.append((trio.current_time(), params["step"], params["vm"], params["device"]))

    async def drained(self, below: int) -> None:
        await trio.lowlevel.checkpoint()


@pytest.fixture
async def world(tmp_path: Path, nursery: trio.Nursery) -> AsyncIterator[World]:
    world = World(tmp_path, nursery)
    world.vm("sys-usb", "stick")
    world.vm("work")
    world.dom0_agent()
    await world.start()
    yield world
    await world.kill()


@pytest.fixture
def command() -> Command:
    return Command()


async def test_a_quick_operation_tells_nothing(
    command: Command, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    with progress.told("r", command, nursery):
        progress.at("make", "work")
        await trio.sleep(progress.TELL_AFTER - 0.1)
    await trio.sleep(10)
    assert command.steps == []


async def test_a_slow_one_tells_each_step_once_and_at_once(
    command: Command, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    began = trio.current_time()
    with progress.told("r", command, nursery):
        progress.at("connect", "sys-usb")  # over before anything is told
        progress.at("make", "work")
        await trio.sleep(2)
        progress.at("attach", "work", "sys-usb:sda")
        await trio.sleep(3)
    progress.at("boot", "work")  # of another operation, or none
    await trio.sleep(10)
    assert [(round(when - began, 3), *rest) for when, *rest in command.steps] == [
        (progress.TELL_AFTER, "make", "work", ""),
        (2, "attach", "work", "sys-usb:sda"),
    ]


async def test_steps_in_other_tasks_belong_to_the_operation_that_began_them(
    command: Command, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    other = Command()

    async def work(vm: str) -> None:
        await trio.sleep(1)
        progress.at("boot", vm)

    with progress.told("r", command, nursery):
        nursery.start_soon(work, "work")
        with progress.told("s", other, nursery):
            nursery.start_soon(work, "home")
            await trio.sleep(2)
        await trio.sleep(1)
    assert [each[2] for each in command.steps] == ["work"]
    assert [each[2] for each in other.steps] == ["home"]


async def test_what_a_vm_waits_for_is_told_to_nobody(
    command: Command, autojump_clock: trio.testing.MockClock
) -> None:
    with progress.told("r", command, None):
        progress.at("answer", "work", "sys-usb:sda")
        await trio.sleep(5)
    assert command.steps == []


async def test_a_command_is_told_what_its_attach_and_its_detach_wait_for(
    world: World, autojump_clock: trio.testing.MockClock
) -> None:
    told: list[tuple[str, str, str]] = []

    async def step(_peer: object, params: dict[str, Any]) -> None:
        told.append((params["step"], params["vm"], params["device"]))

    attach = {
        "device_class": "block", "vm": "work", "backend": "sys-usb", "device": "stick",
        "options": {}, "persistent": False,
    }  # fmt: skip
    detach = {
        "device_class": "block", "vm": "work", "backend": "sys-usb", "device": "stick",
        "force": False,
    }  # fmt: skip
    agents = world.driver.agents
    async with world.client.connected(operation_step=step) as peer:
        agents["sys-usb"].on["export.start"] = hang
        with pytest.raises(CallError, match="sys-usb did not answer the request to lend a device"):
            await peer.call("device.attach", attach, timeout=60)
        assert told == [("lend", "sys-usb", "sys-usb:stick"), ("end", "sys-usb", "sys-usb:stick")]
        del agents["sys-usb"].on["export.start"]
        await world.client.attach("work", "sys-usb:stick")
        told.clear()
        agents["work"].on["import.stop"] = hang
        with pytest.raises(CallError, match="whose agent does not say whether it is used"):
            await peer.call("device.detach", detach, timeout=60)
        assert told[0] == ("return", "work", "sys-usb:stick")
