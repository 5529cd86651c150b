"""The device classes: what clients are told, and what is dropped of a newer agent's."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from pedos_protocol.device_classes import VERBS, class_names
from pedos_protocol.messages import parse_result
from trio.abc import Clock

from tests.dom0.fakes import World, fails

CLASS_UNKNOWN = "'printer' is not a device class: one of block, usb, pci, mic is meant"


@pytest.fixture
async def world(tmp_path: Path, nursery: object) -> AsyncIterator[World]:
    world = World(tmp_path, nursery)  # type: ignore[arg-type]
    world.vm("sys-usb", "sda", "sdb")
    world.vm("work")
    yield world
    await world.kill()


async def test_dom0s_user_and_a_vm_are_told_the_classes(
    world: World, autojump_clock: Clock
) -> None:
    await world.start()
    for answer in (
        await world.client.call("device.classes"),
        await world.driver.agents["work"].ask("device.classes"),
    ):
        classes = parse_result("device.classes", answer).classes
        assert [each.name for each in classes] == list(class_names())
        lacking = {each.name: each.lacking for each in classes}
        assert lacking["block"] is None
        assert "usbip-host" in (lacking["usb"] or "")


async def test_a_class_that_dom0_does_not_know_is_left_out_with_one_line(
    world: World, autojump_clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    agent = world.driver.agents["sys-usb"]
    agent.devices["sdb"] |= {"device_class": "printer"}
    agent.missing = [{"device_class": "scanner", "count": 1, "reason": "too many"}]
    await world.start()
    await agent.report()
    assert [each["device"] for each in await world.client.list()] == ["sda"]
    assert world.state.registry.devices_of("sys-usb").get("printer", "sdb") is None
    said = [line for line in caplog.messages if "does not know" in line]
    assert said == [
        "sys-usb reports devices of classes that dom0 does not know, and they are left out: "
        "printer, scanner"
    ]
    assert world.audit("disconnected") == []
    assert agent.connections == 1


@pytest.mark.parametrize("method", ["device.list", "device.attach", "device.detach"])
async def test_a_request_for_a_class_that_dom0_does_not_know_is_refused(
    world: World, autojump_clock: Clock, method: str
) -> None:
    await world.start()
    params = {
        "device.list": {},
        "device.attach": {"vm": "work", "backend": "sys-usb", "device": "sda"},
        "device.detach": {"vm": "work"},
    }[method]
    for call in (world.client.call, world.driver.agents["work"].ask):
        with fails("usage", CLASS_UNKNOWN):
            await call(method, device_class="printer", **params)
    assert world.audit("disconnected") == []


def test_the_policy_has_the_same_verbs() -> None:
    from pedos_dom0.policy import tokens

    assert tokens.DEVICE_VERBS == VERBS
