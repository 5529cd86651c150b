"""A device class that no file of the service mentions: registered here, it works."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from pedos_cli.prompt_question import parse
from pedos_dom0.drivers.carrier import CarriedByAgents
from pedos_dom0.policy.parser import parse_file
from pedos_protocol.device_classes import DeviceClass, Option
from trio.abc import Clock

from tests.dom0.fake_carrier import FakeCarrier
from tests.dom0.fakes import Params, World, fails, named
from tests.fake_class import registered

NAMED = DeviceClass(
    "named",
    one="named device",
    many="named devices",
    source="sys-usb",
    example="robot",
    options=(Option("as", ("toy0", "toy1"), example="toy0"),),
    name_option="as",
)


@pytest.fixture
async def world(tmp_path: Path, nursery: trio.Nursery) -> AsyncIterator[World]:
    with registered():
        world = World(tmp_path, nursery)
        world.driver.carriers = {**world.driver.carriers, NAMED.name: CarriedByAgents()}
        usb = world.vm("sys-usb", "sda")
        usb.plug("toy", "fake")
        for vm in ("work", "vault"):
            world.vm(vm)
        world.dom0_agent()
        await world.start()
        yield world
        await world.kill()


def of_fake(vm: str, **more: Any) -> Params:
    return {**named(vm, "sys-usb:toy", "fake"), **more}


async def attached(world: World) -> list[tuple[str, list[Params]]]:
    """Each device of the class, with who has it and how; nothing is left over here."""
    listed = await world.client.list("fake")
    assert not any(to["left_over"] for each in listed for to in each["attachments"])
    return [
        (each["device"], [{"vm": to["vm"], "options": to["options"]} for to in each["attachments"]])
        for each in listed
    ]


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


def calls_it(name: str | None) -> Callable[[Params], Awaitable[Params]]:
    """The target's answer: that is what was imported is called there."""

    async def answer(_params: Params) -> Params:
        await trio.lowlevel.checkpoint()
        return {"frontend": name}

    return answer


@pytest.mark.parametrize(
    ("device_class", "name", "wrong"),
    [
        ("block", None, "the name is missing"),
        ("block", "toy0", "no block device is called 'toy0' there"),
        ("block", "xvda", "no block device is called 'xvda' there"),
        ("fake", "xvdi", "no fake device is called 'xvdi' there"),
        ("named", None, "the name is missing"),
        ("named", "xvdi", "no named device is called 'xvdi' there"),
    ],
)
async def test_a_name_that_the_class_does_not_have_is_a_breach(
    world: World, device_class: str, name: str | None, wrong: str, autojump_clock: Clock
) -> None:
    work, usb = world.driver.agents["work"], world.driver.agents["sys-usb"]
    work.on["import.start"] = calls_it(name)
    usb.plug("robot", "named")
    device = {"block": "sda", "fake": "toy", "named": "robot"}[device_class]
    with registered(NAMED):
        await usb.report()
        with fails("failed", "work gave a malformed answer"):
            await world.client.call(
                "device.attach", **named("work", f"sys-usb:{device}", device_class)
            )
    (line,) = world.audit("disconnected")
    assert line["reason"].endswith(f" is malformed: {wrong}")


async def test_a_name_of_its_class_is_listed_and_reported(
    world: World, autojump_clock: Clock
) -> None:
    work, usb = world.driver.agents["work"], world.driver.agents["sys-usb"]
    work.on["import.start"] = calls_it("toy1")
    usb.plug("robot", "named")
    with registered(NAMED):
        await usb.report()
        await world.client.call("device.attach", **named("work", "sys-usb:robot", "named"))
        (lease,) = world.state.leases
        assert lease.frontend == "toy1"
        (imported,) = work.imports.values()
        assert imported["frontend"] == "toy1"
        await work.report()
        assert world.audit("disconnected") == []
        imported["frontend"] = "xvdi"
        with fails("unavailable"):
            await work.report()
        await trio.testing.wait_all_tasks_blocked()
    (line,) = world.audit("disconnected")
    assert "no named device is called 'xvdi' there" in line["reason"]


async def test_an_agent_is_told_the_class_of_what_it_is_to_give_back_unless_it_is_a_disk(
    world: World, autojump_clock: Clock
) -> None:
    """An agent of before knows no such parameter, and has nothing but disks."""
    told: dict[str, list[Params]] = {"import.check": [], "import.stop": []}
    for method, heard in told.items():

        async def hear(params: Params, heard: list[Params] = heard) -> None:
            heard.append(params)

        world.driver.agents["work"].on[method] = hear
    for device, device_class in (("toy", "fake"), ("sda", "block")):
        name = named("work", f"sys-usb:{device}", device_class)
        await world.client.call("device.attach", **name)
    await world.client.call("vm.shutdown", vm="sys-usb")
    for heard in told.values():
        assert sorted(params.get("device_class", "") for params in heard) == ["", "fake"]


def test_policy_and_prompters_have_it_out_of_the_one_table() -> None:
    rule = "device.attach.fake * work work allow"
    question = {
        "request": "0123456789abcdef",
        "source": "work",
        "service": "device.attach.fake",
        "device_class": "fake",
        "backend": "sys-usb",
        "device": "toy",
        "identity": "",
        "description": "",
        "size": None,
        "read_only": False,
        "candidates": ["work"],
        "default": None,
        "timeout_s": 60,
    }
    for known in (True, False, True):
        with registered() if known else nullcontext():
            rules, errors = parse_file("30-test.policy", rule)
            if known:
                assert (len(rules), errors) == (1, [])
                assert parse(1, question, 0.0).doing == "attach a fake device"
            else:
                assert "no device class 'fake'" in str(errors[0])
                with pytest.raises(ValueError, match="'fake' is not a device class"):
                    parse(1, question, 0.0)
