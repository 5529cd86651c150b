"""Devices that a VM gets when it is made: the steps of its start, and of what may go wrong then."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from pedos_dom0.drivers.base import NO_DOMAIN, DriverError
from pedos_dom0.tables.leases import Lease
from pedos_protocol.errors import CallError
from trio.abc import Clock

from tests.dom0.fake_carrier import FakeCarrier
from tests.dom0.fakes import FakeDriver, Params, World, fails, named

CONTROLLER, SOUND = "dom0:00_14.0", "dom0:00_1f.3"
IDENTITY = "8086:a36d::p0c0330"
STEPS = (
    "attach.leased",
    "attach.ready",
    "start.ready",
    "start.started",
    "attach.exported",
    "attach.carried",
    "start.carried",
    "start.agent",
    "attach.imported",
    "attach.committed",
    "start.attached",
)


class FakePci(FakeCarrier):
    """Gives devices as Xen does: with `xl create`, or to a VM that runs with one already."""

    at_creation = True
    outlives_agents = True

    def __init__(self) -> None:
        super().__init__()
        self.ready: dict[str, Lease] = {}
        self.refuse_prepare: DriverError | None = None
        self.gives_live = True
        self.astray: Mapping[str, str] | DriverError = {}

    def name_in_target(self, domid: int, asked: str | None, taken: object) -> None:  # type: ignore[override]
        return None

    async def prepare(self, lease: Lease) -> None:
        await trio.lowlevel.checkpoint()
        self.did.append(f"prepare {lease.key.device}")
        assert lease.vm_domid == NO_DOMAIN
        if self.refuse_prepare is not None:
            raise self.refuse_prepare
        self.ready[lease.attachment] = lease

    def make(self, domid: int, devices: Sequence[Lease]) -> None:
        for lease in devices:
            del self.ready[lease.attachment]
            self.attached[lease.attachment] = attrs.evolve(lease, vm_domid=domid)

    def can_give_live(self, domid: int) -> bool:
        return self.gives_live

    def strays(self) -> Mapping[str, str]:
        if isinstance(self.astray, DriverError):
            raise self.astray
        return self.astray

    def given_name(self, lease: Lease) -> str | None:
        return "00_00.0" if lease.attachment in self.attached else None

    async def attach(self, lease: Lease) -> None:
        await trio.lowlevel.checkpoint()
        known = self.attached.get(lease.attachment)
        self.did.append(f"{'live ' if known is None else ''}attach {lease.key.device}")
        if self.refuse_attach is not None:
            raise self.refuse_attach
        assert known is None or known.vm_domid == lease.vm_domid
        self.attached[lease.attachment] = lease

    async def detach(self, lease: Lease, *, force: bool) -> None:
        self.ready.pop(lease.attachment, None)
        await super().detach(lease, force=force)


@pytest.fixture
def carrier(monkeypatch: pytest.MonkeyPatch) -> FakePci:
    carrier = FakePci()
    monkeypatch.setattr(FakeDriver, "carriers", {**FakeDriver.carriers, "pci": carrier})
    for name in ("starts_paused", "boot_timeout", "resume"):
        monkeypatch.setattr(FakeDriver, name, getattr(carrier, name))
    plain = FakeDriver.start

    async def start(self: FakeDriver, name: str, devices: Sequence[Lease] = ()) -> int:
        carrier.did.append(f"create {name} with {' '.join(each.key.device for each in devices)}")
        domid = await plain(self, name, devices)
        carrier.make(domid, devices)
        return domid

    monkeypatch.setattr(FakeDriver, "start", start)
    return carrier


@pytest.fixture
async def world(tmp_path: Path, nursery: trio.Nursery, carrier: FakePci) -> AsyncIterator[World]:
    """dom0 has two controllers; sys-usb is halted, and work runs."""
    world = World(tmp_path, nursery)
    dom0 = world.dom0_agent()
    for device in (CONTROLLER, SOUND):
        dom0.plug(device.removeprefix("dom0:"), "pci")
        dom0.devices[device.removeprefix("dom0:")]["identity"] = IDENTITY
    dom0.plug("00_1c.0", "pci")
    dom0.devices["00_1c.0"]["identity"] = "8086:a338::p060400"
    world.vm("sys-usb", running=False)
    world.vm("work")
    await world.start()
    yield world
    await world.kill()


async def attach(world: World, vm: str, device: str = CONTROLLER, **more: Any) -> Params:
    return await world.client.call("device.attach", **named(vm, device, "pci"), **more)


async def detach(world: World, vm: str, device: str = CONTROLLER, **more: Any) -> Params:
    return await world.client.call("device.detach", **named(vm, device, "pci"), **more)


async def start(world: World, vm: str = "sys-usb") -> Params:
    return await world.client.call("vm.start", vm=vm)


async def test_a_device_is_ready_before_the_vm_is_made_with_it(
    world: World, carrier: FakePci, autojump_clock: Clock
) -> None:
    await attach(world, "sys-usb", persistent=True)
    answer = await start(world)
    assert answer["attached"] == [CONTROLLER]
    assert carrier.did == [
        "prepare 00_14.0",
        "create sys-usb with 00_14.0",
        "attach 00_14.0",
        "resume sys-usb",
    ]
    (lease,) = world.state.leases.of_vm("sys-usb")
    assert (lease.frontend, lease.vm_domid) == ("00_00.0", answer["domid"])
    assert world.state.store.journal() == [lease]
    agent = world.driver.agents["sys-usb"]
    assert [each["frontend"] for each in agent.imports.values()] == ["00_00.0"]
    (export,) = world.driver.agents["dom0"].exports.values()
    assert export["peer"] == answer["domid"]


async def test_what_cannot_be_made_ready_fails_the_start_and_all_is_as_it_was(
    world: World, carrier: FakePci, autojump_clock: Clock
) -> None:
    for device in (CONTROLLER, SOUND):
        await attach(world, "sys-usb", device, persistent=True)
    carrier.refuse_prepare = DriverError("it is in use in dom0", code="busy", hint="unmount it")
    with fails("busy", "sys-usb was not started: it is in use in dom0", "unmount it"):
        await start(world)
    assert not any(each.startswith("create") for each in carrier.did)
    world.assert_nothing_left()
    carrier.refuse_prepare = None
    assert len((await start(world))["attached"]) == 2


async def test_a_vm_that_is_not_made_gives_all_back(
    world: World, carrier: FakePci, autojump_clock: Clock
) -> None:
    await attach(world, "sys-usb", persistent=True)
    world.driver.refuse_start = DriverError("there is no sys-usb.cfg")
    with fails("failed", "sys-usb was not started: there is no sys-usb.cfg"):
        await start(world)
    assert (carrier.ready, carrier.attached) == ({}, {})
    assert world.state.store.starts() == []
    world.assert_nothing_left()


async def test_what_a_made_vm_turns_out_not_to_have_as_asked_stops_it(
    world: World, carrier: FakePci, autojump_clock: Clock
) -> None:
    await attach(world, "sys-usb", persistent=True)
    carrier.refuse_attach = DriverError("permissive=yes did not take effect")
    with fails("failed", "permissive=yes did not take effect"):
        await start(world)
    assert world.driver.infos["sys-usb"].state == "Halted"
    assert "resume sys-usb" not in carrier.did
    # Not from the paused VM, which cannot let go of it: from what is left of it.
    assert world.driver.shutdowns == [("sys-usb", True)]
    assert carrier.did[-2:] == ["attach 00_14.0", "detach None by force"]
    world.assert_nothing_left()


@pytest.mark.parametrize("step", STEPS)
async def test_a_service_that_is_killed_at_a_step_leaves_a_vm_with_all_or_none(
    world: World, carrier: FakePci, autojump_clock: Clock, step: str
) -> None:
    await attach(world, "sys-usb", persistent=True)
    killed = world.kill_at(step)
    with pytest.raises(CallError):
        await start(world)
    assert killed.is_set()
    await world.restart()
    await trio.sleep(200)
    running = world.driver.infos["sys-usb"].state == "Running"
    assert running == (len(world.state.leases.of_vm("sys-usb")) == 1)
    assert running == (len(carrier.attached) == 1)
    assert world.state.store.starts() == []
    if not running:
        world.assert_nothing_left()
        await start(world)
    (lease,) = world.state.leases.of_vm("sys-usb")
    assert (lease.state, str(lease.key)) == ("attached", CONTROLLER)


async def test_a_vm_that_runs_is_given_one_if_xen_can(
    world: World, carrier: FakePci, autojump_clock: Clock
) -> None:
    assert (await attach(world, "work"))["outcome"] == "attached"
    await detach(world, "work")
    assert carrier.did == ["live attach 00_14.0", "detach 00_00.0"]
    world.assert_nothing_left()


async def test_one_that_a_running_vm_could_not_be_given_is_as_it_was(
    world: World, carrier: FakePci, autojump_clock: Clock
) -> None:
    carrier.refuse_attach = DriverError("no: xl says so", hint="look at it")
    with fails("failed", "no: xl says so", "look at it"):
        await attach(world, "work")
    assert [each.split()[0] for each in carrier.did] == ["live", "detach"]
    world.assert_nothing_left()
    assert [line["reason"] for line in world.audit("undone")] == [
        "the attach failed: no: xl says so"
    ]
    carrier.refuse_attach = None
    await attach(world, "work")


@pytest.mark.parametrize("is_stuck", [False, True])
async def test_what_an_interrupted_xl_has_given_all_the_same_is_taken_away_or_kept_from_others(
    world: World,
    carrier: FakePci,
    autojump_clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    is_stuck: bool,
) -> None:
    async def half(lease: Lease) -> None:
        carrier.attached[lease.attachment] = lease
        raise DriverError("xl was killed")

    plain = carrier.attach
    monkeypatch.setattr(carrier, "attach", half)
    if is_stuck:
        carrier.refuse_detach = carrier.refuse_force = DriverError("it is still there")
    with fails(*(("busy", "and it is still there") if is_stuck else ("failed", "was killed"))):
        await attach(world, "work")
    monkeypatch.setattr(carrier, "attach", plain)
    if is_stuck:
        world.vm("vault")
        await world.restart()
        with fails("busy", "work"):
            await attach(world, "vault")
        carrier.refuse_detach = carrier.refuse_force = None
        await detach(world, "work")
    assert carrier.attached == {}
    world.assert_nothing_left()


async def test_one_that_cannot_be_given_now_is_assigned_for_the_next_start(
    world: World, carrier: FakePci, autojump_clock: Clock
) -> None:
    carrier.gives_live = False
    answer = await attach(world, "work", persistent=True)
    assert answer["outcome"] == "assigned"
    assert carrier.did == []
    assert [str(each.key) for each in world.state.store.assignments("work")] == [CONTROLLER]


async def test_what_can_never_be_given_is_not_even_assigned(
    world: World, carrier: FakePci, autojump_clock: Clock
) -> None:
    for vm, persistent in (("sys-usb", True), ("work", False)):
        with fails("failed", "dom0:00_1c.0 cannot be given to a VM: it is a bridge"):
            await attach(world, vm, "dom0:00_1c.0", persistent=persistent)
    world.driver.agents["work"].plug("00_00.0", "pci")
    await world.driver.agents["work"].report()
    with fails("failed", "only dom0's PCI devices"):
        await attach(world, "sys-usb", "work:00_00.0", persistent=True)
    assert world.state.store.assignments() == []


@pytest.mark.parametrize("who", ["dom0", "sys-usb"])
async def test_an_agent_that_is_restarted_takes_nothing_from_a_vm(
    world: World, carrier: FakePci, autojump_clock: Clock, who: str
) -> None:
    """sys-usb needs its controller to work at all: an upgrade of a package must not take it."""
    await attach(world, "sys-usb", persistent=True)
    await start(world)
    agent = world.driver.agents[who]
    agent.kill()
    agent.exports.clear()
    agent.imports.clear()
    await trio.sleep(60)
    (lease,) = world.state.leases.of_vm("sys-usb")
    assert lease.state == "attached"
    assert not any(each.startswith("detach") for each in carrier.did)
    assert len(agent.exports) + len(agent.imports) == 1, "it was told again"


async def test_a_service_and_agents_that_are_all_restarted_take_nothing_either(
    world: World, carrier: FakePci, autojump_clock: Clock
) -> None:
    await attach(world, "sys-usb", persistent=True)
    await start(world)
    await world.kill()
    for name in ("dom0", "sys-usb"):
        world.driver.agents[name].exports.clear()
        world.driver.agents[name].imports.clear()
    await world.start()
    await trio.sleep(60)
    (lease,) = world.state.leases.of_vm("sys-usb")
    assert (lease.state, lease.frontend) == ("attached", "00_00.0")
    assert not any(each.startswith("detach") for each in carrier.did)
    assert len(world.driver.agents["sys-usb"].imports) == 1


async def test_an_assignment_of_a_device_that_is_gone_is_listed_and_removed(
    world: World, carrier: FakePci, autojump_clock: Clock
) -> None:
    await attach(world, "sys-usb", persistent=True)
    await world.driver.agents["dom0"].unplug("00_14.0")
    (listed,) = [each for each in await world.client.list("pci") if each["device"] == "00_14.0"]
    assert not listed["present"]
    with fails("failed", "its assigned device dom0:00_14.0 is missing"):
        await start(world)
    answer = await detach(world, "sys-usb")
    assert answer["results"][0]["unassigned"]
    assert world.state.store.assignments() == []


async def test_what_a_vm_has_without_an_attachment_is_listed_as_in_use(
    world: World, carrier: FakePci, autojump_clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    await attach(world, "sys-usb", persistent=True)

    async def busy() -> dict[str, str | None]:
        return {each["device"]: each["busy"] for each in await world.client.list("pci")}

    assert set((await busy()).values()) == {None}
    carrier.astray = {"00_14.0": "sys-usb"}  # it has rebooted from inside
    shown = await busy()
    told = shown.pop("00_14.0")
    assert told is not None and told.startswith("sys-usb has it, ")
    assert set(shown.values()) == {None}
    await start(world)  # it has an attachment then, which says more
    assert set((await busy()).values()) == {None}
    carrier.astray = DriverError("xenstore does not answer")
    assert len(await world.client.list("pci")) == len(shown) + 1
    assert "which VMs have pci devices is not known: xenstore does not answer" in caplog.text


async def test_what_a_vm_has_without_an_attachment_is_offered_to_no_other_one(
    world: World, carrier: FakePci, autojump_clock: Clock
) -> None:
    which = {"device_class": "pci", "backend": "dom0", "device": "00_14.0"}
    carrier.astray = {"00_14.0": "sys-usb"}
    for why in ("sys-usb has it, from the toolstack", "which VM has dom0:00_14.0 cannot be told"):
        for method in ("device.info", "device.targets"):
            (unfit,) = (await world.client.call(method, **which))["unfit"]
            assert why in unfit
        targets = (await world.client.call("device.targets", **which))["targets"]
        assert {each["vm"]: each["verdict"] for each in targets}["work"] == "deny"
        assert why in {each["vm"]: each["reason"] for each in targets}["work"]
        with fails("busy" if "has it" in why else "failed", why):
            await attach(world, "work")
        carrier.astray = DriverError("xenstore does not answer")
    carrier.astray = {}
    assert (await world.client.call("device.info", **which))["unfit"] == []
    await attach(world, "work")


async def test_a_device_stays_taken_until_nothing_is_left_of_the_vm(
    world: World, carrier: FakePci, autojump_clock: Clock
) -> None:
    await attach(world, "sys-usb", persistent=True)
    await start(world)
    carrier.refuse_force = DriverError("the domain is still there")
    world.driver.die("sys-usb")
    await trio.sleep(30)
    with fails("busy", "sys-usb"):
        await attach(world, "work")
    carrier.refuse_force = None
    await trio.sleep(120)
    world.assert_nothing_left()
    await attach(world, "work")


async def test_who_assigns_is_told_what_would_keep_the_vm_from_starting(
    world: World, carrier: FakePci, autojump_clock: Clock
) -> None:
    carrier.unfit = "it cannot be reset"
    answer = await world.client.call(
        "device.assign",
        **named("sys-usb", CONTROLLER, "pci"),
        identity=None,
        match="port",
        mode="required",
        options={},
    )
    assert answer["outcome"] == "assigned"
    assert answer["now"]["unfit"] == "it cannot be reset"


@pytest.mark.parametrize("option", ["no-strict-reset", "permissive", "give-back"])
async def test_a_vm_cannot_ask_for_less_protection_than_dom0s_user_gives(
    world: World, carrier: FakePci, autojump_clock: Clock, option: str
) -> None:
    world.policy.set("device.*.*  *  *  *  allow\n")
    work, wanted = world.driver.agents["work"], named("work", CONTROLLER, "pci")
    for value in ("yes", "on"):
        with fails("usage", f"only dom0's user can ask for {option}"):
            await work.ask("device.attach", **wanted, options={option: value})
    more = {"identity": None, "match": "port", "mode": "required", "options": {option: "yes"}}
    with fails("usage", f"only dom0's user can ask for {option}"):
        await work.ask("device.assign", **wanted, **more)
    assert carrier.did == []
    await work.ask("device.attach", **wanted, options={option: "no"})
    assert carrier.did == ["live attach 00_14.0"]
