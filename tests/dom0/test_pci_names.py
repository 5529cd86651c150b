"""A PCI device has two names, its port and its address: dom0's user may say either."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
from trio.abc import Clock

from tests.dom0.fakes import World, fails, named

PORT, ADDRESS = "00_1c.0-00.0", "02_00.0"


@pytest.fixture
async def world(tmp_path: Path, nursery: trio.Nursery) -> AsyncIterator[World]:
    world = World(tmp_path, nursery)
    agent = world.vm("sys-usb", PORT, "00_14.0")
    for device in agent.devices.values():
        device["device_class"] = "pci"
    agent.devices[PORT]["alias"] = ADDRESS
    world.vm("work")
    await world.start()
    yield world
    await world.kill()


def detached(device: str) -> dict[str, str]:
    return {**named("work", f"sys-usb:{device}"), "device_class": "pci"}


@pytest.mark.parametrize("name", [PORT, ADDRESS])
async def test_dom0s_user_may_say_either_name(
    world: World, autojump_clock: Clock, name: str
) -> None:
    with fails("not_found", f"sys-usb:{PORT} is neither attached nor assigned to work"):
        await world.client.call("device.detach", **detached(name))


async def test_an_id_is_meant_before_an_alias(world: World, autojump_clock: Clock) -> None:
    agent = world.driver.agents["sys-usb"]
    agent.devices[PORT]["alias"] = "00_14.0"
    await agent.report()
    with fails("not_found", "sys-usb:00_14.0 is neither"):
        await world.client.call("device.detach", **detached("00_14.0"))


async def test_an_alias_of_two_devices_names_neither(world: World, autojump_clock: Clock) -> None:
    agent = world.driver.agents["sys-usb"]
    agent.devices["00_14.0"]["alias"] = ADDRESS
    await agent.report()
    with fails("not_found", f"sys-usb:{ADDRESS} is neither"):
        await world.client.call("device.detach", **detached(ADDRESS))


async def test_a_vm_learns_nothing_of_anothers_devices_by_an_address(
    world: World, autojump_clock: Clock
) -> None:
    params = {"verb": "attach", "device_class": "pci", "backend": "sys-usb", "device": ADDRESS}
    answer = await world.driver.agents["work"].ask("policy.mine", **params)
    assert PORT not in str(answer)
