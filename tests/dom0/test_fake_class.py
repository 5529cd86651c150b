"""A class of devices that stands in no file of the service: registered here, it works."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from pedos_dom0.device_classes import registered
from pedos_dom0.device_classes.base import DeviceClass
from pedos_dom0.drivers.carrier import CarriedByAgents
from pedos_dom0.policy import tokens
from pedos_protocol import device_classes as described
from trio.abc import Clock

from tests.dom0.fake_carrier import FakeCarrier
from tests.dom0.fakes import FakeDriver, Params, World, fails, named

FAKE = described.DeviceClass(
    "fake",
    one="fake device",
    many="fake devices",
    source="sys-usb",
    example="toy",
    options=(described.Option("colour", ("red", "blue"), example="red"),),
)


async def nameless(_params: Params) -> Params:
    """The target's answer: what was imported has no name there."""
    await trio.lowlevel.checkpoint()
    return {"frontend": None}


@pytest.fixture
async def world(
    tmp_path: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[World]:
    monkeypatch.setitem(registered.CLASSES, "fake", DeviceClass(FAKE))
    monkeypatch.setattr(tokens, "DEVICE_CLASSES", (*described.DEVICE_CLASSES, "fake"))
    carriers = {**FakeDriver.carriers, "fake": CarriedByAgents()}
    monkeypatch.setattr(FakeDriver, "carriers", carriers)
    world = World(tmp_path, nursery)
    usb = world.vm("sys-usb", "sda")
    usb.plug("toy", "fake")
    for vm in ("work", "vault"):
        world.vm(vm).on["import.start"] = nameless
    world.dom0_agent()
    await world.start()
    yield world
    await world.kill()


def of_fake(vm: str, **more: Any) -> Params:
    return {**named(vm, "sys-usb:toy", "fake"), **more}


async def attached(world: World) -> list[tuple[str, list[Params]]]:
    return [(each["device"], each["attachments"]) for each in await world.client.list("fake")]


async def test_a_class_that_is_registered_works(world: World, autojump_clock: Clock) -> None:
    assert await attached(world) == [("toy", [])]
    answer = await world.client.call("device.attach", **of_fake("work", options={"colour": "blue"}))
    assert answer["options"] == {"colour": "blue"}
    assert await attached(world) == [("toy", [{"vm": "work", "options": {"colour": "blue"}}])]
    with fails("busy", "work", "qvm-device fake detach work sys-usb:toy"):
        await world.client.call("device.attach", **of_fake("vault"))
    await world.client.call("device.detach", **of_fake("work"))
    assert await attached(world) == [("toy", [])]
    world.assert_nothing_left()


async def test_its_attachment_outlives_the_service_and_ends_when_it_is_unplugged(
    world: World, autojump_clock: Clock
) -> None:
    await world.client.call("device.attach", **of_fake("work"))
    await world.restart()
    assert await attached(world) == [("toy", [{"vm": "work", "options": {}}])]
    await world.driver.agents["sys-usb"].unplug("toy")
    await trio.testing.wait_all_tasks_blocked()
    assert await attached(world) == []
    world.assert_nothing_left()


async def test_it_is_explained_and_told(world: World, autojump_clock: Clock) -> None:
    asked = {
        "device_class": "fake",
        "vm": "work",
        "backend": "sys-usb",
        "device": "toy",
        "verb": "attach",
    }
    explained = await world.client.call("device.explain", **asked)
    assert explained["verdict"] == "allow"
    told = (await world.client.call("device.classes"))["classes"]
    assert [(each["name"], each["lacking"]) for each in told if each["name"] == "fake"] == [
        ("fake", None)
    ]
    with fails("usage", "known for fake: colour=red|blue"):
        await world.client.call("device.attach", **of_fake("work", options={"size": "9"}))


async def test_where_the_hypervisor_carries_disks_it_is_not_plugged_as_one(
    world: World, monkeypatch: pytest.MonkeyPatch, autojump_clock: Clock
) -> None:
    carrier = FakeCarrier()
    monkeypatch.setattr(world.driver, "carriers", {**world.driver.carriers, "block": carrier})
    await world.client.call("device.attach", **of_fake("work"))
    assert carrier.did == []
    (lease,) = world.state.leases
    assert lease.frontend is None
    await world.client.call("device.detach", **of_fake("work"))
    world.assert_nothing_left()


async def test_a_disk_without_a_name_is_a_breach(world: World, autojump_clock: Clock) -> None:
    with fails("failed", "work gave an answer that makes no sense"):
        await world.client.attach("work", "sys-usb:sda")
