"""USB devices on Xen: the hypervisor has no part, and the agents' kernels carry them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
import trio.testing
from pedos_dom0.drivers.xen.driver import XenDriver
from pedos_protocol.errors import CallError
from trio.abc import Clock

from tests.dom0.fakes import FakeAgent, Params, World, fails, named

STICK = "sys-usb:1-2"
HANDOVER = "65538 5"
STEPS = ("attach.leased", "attach.exported", "attach.imported", "attach.committed")


@pytest.fixture
async def world(
    tmp_path: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[World]:
    """sys-usb has a stick with one disk; work runs and vault does not."""
    world = World(tmp_path, nursery)
    on_xen = XenDriver(config_dirs=(), dom0_agent=Path("/nonexistent"))
    world.driver.carriers = {**world.driver.carriers, "usb": on_xen.carriers["usb"]}
    world.driver.starts_paused = on_xen.starts_paused
    usb = world.vm("sys-usb")
    usb.plug("1-2", "usb")
    usb.plug("sda", parent="1-2", parent_class="usb")
    lend(usb)
    world.vm("work")
    world.vm("vault", running=False)
    world.dom0_agent()
    await world.start()
    yield world
    await world.kill()


def lend(usb: FakeAgent) -> None:
    """As usbip-host does: while it has the device, that has no disk here."""

    async def start(params: Params) -> Params:
        usb.devices.pop("sda", None)
        return {"handover": HANDOVER}

    usb.on["export.start"] = start


def noted(world: World, *names: str) -> list[tuple[str, str, Params]]:
    """What agents are told from now on, beside what they do already."""
    told: list[tuple[str, str, Params]] = []

    def note(agent: FakeAgent, method: str) -> None:
        before = agent.on.get(method)

        async def noting(params: Params) -> Params | None:
            told.append((agent.name, method, params))
            return await before(params) if before else None

        agent.on[method] = noting

    for name in names:
        for method in ("export.start", "import.start", "import.stop", "export.stop"):
            note(world.driver.agents[name], method)
    return told


async def attach(world: World, vm: str = "work", device: str = STICK) -> Params:
    return await world.client.call("device.attach", **named(vm, device, "usb"))


async def test_the_target_is_told_what_the_source_says_of_the_device(
    world: World, autojump_clock: Clock
) -> None:
    told = noted(world, "sys-usb", "work")
    assert (await attach(world))["options"] == {}
    await world.client.call("device.detach", **named("work", STICK, "usb"))
    assert [(name, method) for name, method, _ in told] == [
        ("sys-usb", "export.start"),
        ("work", "import.start"),
        ("work", "import.stop"),
        ("sys-usb", "export.stop"),
    ]
    export, taken = told[0][2], told[1][2]
    assert taken["handover"] == HANDOVER
    assert export["port"] == taken["port"]
    assert (export["device_class"], export["device"]) == ("usb", "1-2")
    world.assert_nothing_left()


async def test_a_stick_and_its_disk_are_lent_to_one_vm_alone(
    world: World, autojump_clock: Clock
) -> None:
    world.vm("other")
    await world.restart()
    usb = world.driver.agents["sys-usb"]
    await world.client.attach("work", "sys-usb:sda")
    with fails("busy", "work"):
        await attach(world, "other")
    await world.client.detach("work", "sys-usb:sda")
    await attach(world)
    usb.plug("sda", parent="1-2", parent_class="usb")  # as a source that lies might say
    await usb.report()
    with fails("busy", "work"):
        await world.client.attach("other", "sys-usb:sda")


async def test_what_a_kernel_refuses_is_told_in_its_agents_words(
    world: World, autojump_clock: Clock
) -> None:
    async def refuse(_params: Params) -> Params:
        raise CallError("failed", "the kernel of this VM has no module vhci-hcd")

    world.driver.agents["work"].on["import.start"] = refuse
    with fails("failed", "work could not do it: the kernel of this VM has no module vhci-hcd"):
        await attach(world)
    world.assert_nothing_left()


async def test_a_disk_that_is_mounted_in_the_target_keeps_the_stick_there(
    world: World, autojump_clock: Clock
) -> None:
    async def refuse(_params: Params) -> Params:
        raise CallError("busy", "17-1 is in use here: its disk sda is mounted")

    await attach(world)
    work = world.driver.agents["work"]
    work.on["import.stop"] = work.on["import.check"] = refuse
    with fails("busy", "sda is mounted"):
        await world.client.call("device.detach", **named("work", STICK, "usb"))
    assert len(world.state.leases.of_vm("work")) == 1
    await world.driver.agents["sys-usb"].unplug("1-2")
    await trio.testing.wait_all_tasks_blocked()
    assert world.state.leases.of_vm("work") == [], "what is pulled out cannot be kept"


async def test_an_assigned_stick_comes_when_the_vms_agent_is_there(
    world: World, autojump_clock: Clock
) -> None:
    """vhci-hcd is in the VM's own kernel, so nothing can be attached before that runs."""
    attached = named("vault", STICK, "usb")
    await world.client.call("device.attach", **attached, persistent=True)
    told = noted(world, "sys-usb", "vault")
    resumed: list[int] = []

    async def resume(name: str, domid: int) -> None:
        await trio.lowlevel.checkpoint()
        resumed.append(len(told))

    world.driver.resume = resume  # type: ignore[method-assign]
    answer = await world.client.call("vm.start", vm="vault")
    assert answer["attached"] == [STICK]
    assert resumed == [0]
    assert [method for _, method, _ in told] == ["export.start", "import.start"]


@pytest.mark.parametrize("step", STEPS)
async def test_a_service_that_is_killed_at_a_step_leaves_all_or_nothing(
    world: World, autojump_clock: Clock, step: str
) -> None:
    killed = world.kill_at(step)
    with pytest.raises(CallError):
        await attach(world)
    assert killed.is_set()
    await world.restart()
    if step == "attach.committed":
        (lease,) = world.state.leases.of_vm("work")
        assert str(lease.key) == STICK
        await world.client.call("device.detach", **named("work", STICK, "usb"))
    world.assert_nothing_left()
    await attach(world)


@pytest.mark.parametrize(
    ("identity", "why"),
    [
        ("046d:c52b", "the device was plugged in again, or has reset itself"),
        ("046d:ffff", "the device was replaced by another one"),
    ],
)
async def test_a_device_that_comes_back_is_free_and_its_end_is_told(
    world: World, autojump_clock: Clock, identity: str, why: str
) -> None:
    usb = world.driver.agents["sys-usb"]
    usb.plug("1-2", "usb", instance="7")
    await usb.report()
    await attach(world)
    usb.plug("1-2", "usb", instance="8", identity=identity)
    await usb.report()
    await trio.testing.wait_all_tasks_blocked()
    world.assert_nothing_left()
    (ended,) = world.audit("ended")
    assert (ended["device"], ended["vm"], ended["reason"]) == (STICK, "work", why)
    (listed,) = await world.client.list("usb")
    assert (listed["identity"], listed["attachments"]) == (identity, [])
    await attach(world)  # and it can be attached again


async def test_what_the_target_says_of_the_device_is_told_to_dom0s_user(
    world: World, autojump_clock: Clock
) -> None:
    async def say(_params: Params) -> Params:
        return {
            "frontend": None,
            "note": "no driver here has this part of it: smart card (u0b0000)",
        }

    world.driver.agents["work"].on["import.start"] = say
    answer = await attach(world)
    said = "work says: no driver here has this part of it: smart card (u0b0000)"
    assert (answer["outcome"], answer["note"]) == ("attached", said)
    assert (await attach(world))["note"] is None  # already
