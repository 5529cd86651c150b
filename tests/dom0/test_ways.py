"""Every way that ends an attachment obeys the rule of detach: a VM keeps what it uses."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import trio
from pedos_dom0.attachments import vm_stop
from pedos_dom0.attachments.ways import WAYS
from pedos_dom0.drivers.base import DriverError
from pedos_dom0.tables.store import Store, StoreError
from pedos_protocol.errors import CallError
from trio.abc import Clock

from tests.dom0.fake_carrier import FakeCarrier, mounted
from tests.dom0.fakes import World, fails, hang, named
from tests.dom0.test_xen_driver_attach import assign


@pytest.fixture
def world(carried: World) -> World:
    return carried


def note_shutdowns(world: World, carrier: FakeCarrier) -> None:
    real = world.driver.shutdown

    async def shutdown(name: str, force: bool) -> None:
        carrier.did.append(f"shutdown {name}{' by force' if force else ''}")
        await real(name, force)

    world.driver.shutdown = shutdown  # type: ignore[method-assign]


def states(world: World) -> list[str]:
    return [lease.state for lease in world.state.leases]


# Shutdown


async def test_a_guest_is_asked_first_and_its_disks_are_freed_with_its_end(
    world: World, carrier: FakeCarrier, autojump_clock: Clock
) -> None:
    await world.client.attach("work", "sys-usb:sda")
    world.driver.agents["work"].on["import.stop"] = mounted
    note_shutdowns(world, carrier)
    await world.client.call("vm.shutdown", vm="work")
    assert carrier.did == ["attach xvdi", "shutdown work", "detach xvdi by force"]
    world.assert_nothing_left()


async def test_a_guest_that_does_not_shut_down_keeps_its_disks(
    world: World, carrier: FakeCarrier, autojump_clock: Clock
) -> None:
    await world.client.attach("work", "sys-usb:sda")
    world.driver.refuse_shutdown = DriverError("work still runs 60 s after it was told to")
    with fails("failed", "work still runs"):
        await world.client.call("vm.shutdown", vm="work")
    assert carrier.did == ["attach xvdi"]
    assert states(world) == ["attached"]


async def test_a_source_that_lends_what_is_in_use_is_not_shut_down_and_says_who_uses_what(
    world: World, carrier: FakeCarrier, autojump_clock: Clock
) -> None:
    await world.client.attach("work", "sys-usb:sda")
    world.driver.agents["work"].on["import.stop"] = mounted
    with fails(
        "busy",
        "sys-usb was not shut down, as what it lends is in use: "
        "sys-usb:sda: it stays attached to work: xvdi is mounted at /mnt",
        "unmount it in work and try again; qvm-shutdown --force sys-usb",
    ):
        await world.client.call("vm.shutdown", vm="sys-usb")
    assert carrier.did == ["attach xvdi"]
    assert states(world) == ["attached"]
    assert world.driver.shutdowns == []
    await world.client.call("vm.shutdown", vm="sys-usb", force=True)
    assert carrier.attached == {}
    assert list(world.state.leases) == []


async def test_a_refused_shutdown_says_for_each_vm_what_can_be_done_there(
    world: World, carrier: FakeCarrier, autojump_clock: Clock
) -> None:
    await world.client.attach("work", "sys-usb:sda")
    world.driver.agents["work"].on["import.check"] = hang
    with fails("busy", "whose agent does not say", "look after work and try again"):
        await world.client.call("vm.shutdown", vm="sys-usb")


async def test_a_shutdown_that_is_refused_takes_nothing_that_is_idle_either(
    world: World, carrier: FakeCarrier, autojump_clock: Clock
) -> None:
    await refused_for_one_of_two(world)
    assert carrier.did == ["attach xvdi", "attach xvdj"]


async def test_in_local_mode_too_a_refused_shutdown_takes_nothing_that_is_idle(
    local: World, autojump_clock: Clock
) -> None:
    await refused_for_one_of_two(local)


async def refused_for_one_of_two(world: World) -> None:
    async def in_use(params: dict[str, Any]) -> None:
        if params["frontend"] == "xvdi":
            await mounted(params)

    agent = world.driver.agents["work"]
    agent.on["import.check"] = in_use
    await world.client.attach("work", "sys-usb:sda")
    await world.client.attach("work", "sys-usb:sdb")
    with fails("busy", "sys-usb was not shut down", "work: xvdi is mounted at /mnt"):
        await world.client.call("vm.shutdown", vm="sys-usb")
    assert states(world) == ["attached", "attached"]
    assert "import.stop" not in agent.calls


async def test_a_vm_that_does_not_say_whether_it_uses_what_it_borrows_keeps_its_source_running(
    world: World, carrier: FakeCarrier, autojump_clock: Clock
) -> None:
    await world.client.attach("work", "sys-usb:sda")
    world.driver.agents["work"].on["import.check"] = hang
    with fails("busy", "whose agent does not say whether it is used"):
        await world.client.call("vm.shutdown", vm="sys-usb")
    assert carrier.did == ["attach xvdi"]


async def test_a_source_that_lends_what_is_not_used_is_shut_down(
    world: World, carrier: FakeCarrier, autojump_clock: Clock
) -> None:
    await world.client.attach("work", "sys-usb:sda")
    await world.client.call("vm.shutdown", vm="sys-usb")
    assert carrier.did == ["attach xvdi", "detach xvdi"]
    world.assert_nothing_left()


@pytest.mark.parametrize("vm", ["sys-usb", "work"])
async def test_in_local_mode_too_what_is_in_use_is_not_taken_by_a_shutdown_nor_by_a_detach(
    local: World, autojump_clock: Clock, vm: str
) -> None:
    await local.client.attach("work", "sys-usb:sda")
    agent, asked = local.driver.agents["work"], []

    async def in_use(params: dict[str, Any]) -> None:
        asked.append(params["may_refuse"])
        if params["may_refuse"]:
            raise CallError("busy", "xvdi is in use: loop0 has it open")

    agent.on["import.stop"] = in_use
    with fails("busy", f"{vm} was not shut down", "work: xvdi is in use: loop0 has it open"):
        await local.client.call("vm.shutdown", vm=vm)
    with fails("busy", "it stays attached to work: xvdi is in use"):
        await local.client.detach("work", "sys-usb:sda")
    assert states(local) == ["attached"]
    assert local.driver.shutdowns == []
    assert asked == [True, True]
    await local.driver.agents["sys-usb"].unplug("sda")
    await trio.testing.wait_all_tasks_blocked()
    assert asked[2:] == [False], "there is nothing that it could still write to"
    local.assert_nothing_left()


async def test_what_vms_use_is_told_and_nothing_is_ended_for_it(
    local: World, autojump_clock: Clock
) -> None:
    await local.client.attach("work", "sys-usb:sda")
    await local.client.attach("work", "sys-usb:sdb")
    assert (await local.client.call("vm.used"))["used"] == []

    async def in_use(params: dict[str, Any]) -> None:
        if params["frontend"] == "xvdi":
            await mounted(params)

    local.driver.agents["work"].on["import.check"] = in_use
    (said,) = (await local.client.call("vm.used"))["used"]
    assert said == "sys-usb:sda: it stays attached to work: xvdi is mounted at /mnt"
    assert states(local) == ["attached", "attached"]


async def test_of_what_more_vms_use_than_an_answer_holds_the_number_is_told(
    local: World, autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    await local.client.attach("work", "sys-usb:sda")
    await local.client.attach("work", "sys-usb:sdb")
    local.driver.agents["work"].on["import.check"] = mounted
    monkeypatch.setattr(vm_stop, "ATTACHMENTS_MAX", 1)
    assert (await local.client.call("vm.used"))["used"] == ["and 2 more that are in use"]


# Agents that hang in local mode, where what they carry works again when they do


@pytest.mark.parametrize("vm", ["sys-usb", "work"])
async def test_in_local_mode_too_what_a_target_may_use_that_does_not_answer_is_not_taken(
    local: World, autojump_clock: Clock, vm: str
) -> None:
    await local.client.attach("work", "sys-usb:sda")
    agent = local.driver.agents["work"]
    agent.on["import.check"] = agent.on["import.stop"] = hang
    with fails("busy", "work, whose agent does not say whether it is used", "--force"):
        await local.client.detach("work", "sys-usb:sda")
    with fails("busy", f"{vm} was not shut down", "does not say whether it is used"):
        await local.client.call("vm.shutdown", vm=vm)
    assert states(local) == ["attached"]
    assert [row.state for row in local.state.store.journal()] == ["attached"]
    assert local.driver.shutdowns == [] and local.audit("disconnected") == []
    agent.on.clear()
    await local.client.detach("work", "sys-usb:sda")
    local.assert_nothing_left()


async def test_in_local_mode_what_a_hanging_target_never_confirmed_to_have_is_undone(
    local: World, autojump_clock: Clock
) -> None:
    agent = local.driver.agents["work"]
    agent.on["import.start"] = agent.on["import.stop"] = hang
    with fails("failed", "work did not answer"):
        await local.client.attach("work", "sys-usb:sda")
    assert list(local.state.leases) == []
    assert local.driver.agents["sys-usb"].exports == {}


@pytest.mark.parametrize("how", ["undone", "by force", "unplugged"])
async def test_the_end_of_one_disk_of_a_hanging_target_takes_no_other_from_it(
    local: World, autojump_clock: Clock, how: str
) -> None:
    await local.client.attach("work", "sys-usb:sda")
    agent, source = local.driver.agents["work"], local.driver.agents["sys-usb"]
    if how != "undone":
        await local.client.attach("work", "sys-usb:sdb")
    agent.on["import.start"] = agent.on["import.stop"] = hang
    if how == "undone":
        with fails("failed", "work did not answer"):
            await local.client.attach("work", "sys-usb:sdb")
    elif how == "by force":
        await local.client.call("device.detach", **named("work", "sys-usb:sdb"), force=True)
    else:
        await source.unplug("sdb")
    await trio.sleep(60)
    assert [str(lease.key) for lease in local.state.leases] == ["sys-usb:sda"]
    assert len(source.exports) == 1


# Undoing


async def test_an_attach_that_fails_does_not_take_what_the_guest_mounted_at_once(
    world: World, carrier: FakeCarrier, autojump_clock: Clock
) -> None:
    agent = world.driver.agents["work"]
    agent.on["import.start"] = hang
    agent.on["import.stop"] = mounted
    with fails("busy", "work did not answer", "it stays attached to work", "detach"):
        await world.client.attach("work", "sys-usb:sda")
    assert carrier.did == ["attach xvdi"]
    assert states(world) == ["attached"]
    assert [row.state for row in world.state.store.journal()] == ["attached"]
    agent.on.clear()
    await world.client.detach("work", "sys-usb:sda")
    world.assert_nothing_left()


async def test_an_attach_that_cannot_be_assigned_does_not_take_what_is_used_already(
    world: World, carrier: FakeCarrier, autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(*_arguments: Any, **_more: Any) -> bool:
        raise StoreError(Path("dom0.sqlite"), "the disk is full", "make room")

    monkeypatch.setattr(Store, "assign", full)
    world.driver.agents["work"].on["import.stop"] = mounted
    with fails("busy", "it could not be assigned", "the disk is full", "it stays attached to work"):
        await world.client.attach("work", "sys-usb:sda", persistent=True)
    assert carrier.did == ["attach xvdi"]
    assert states(world) == ["attached"]


async def test_a_start_that_fails_stops_the_vm_before_its_disks_are_taken(
    world: World, carrier: FakeCarrier, autojump_clock: Clock
) -> None:
    await assign(world)
    world.driver.agents["vault"].listens = False
    note_shutdowns(world, carrier)
    with fails("failed", "vault was stopped again: its agent did not connect"):
        await world.client.call("vm.start", vm="vault")
    assert carrier.did == ["attach xvdi", "resume vault", "shutdown vault", "detach xvdi by force"]
    world.assert_nothing_left()


async def test_a_start_that_fails_does_not_destroy_a_vm_that_uses_what_it_got(
    world: World, carrier: FakeCarrier, autojump_clock: Clock
) -> None:
    await world.client.attach("vault", "sys-usb:sda", persistent=True)
    await world.client.attach("vault", "sys-usb:sdb", persistent=True)
    vault = world.driver.agents["vault"]

    async def fails_for_one(params: dict[str, Any]) -> None:
        if params["device"] == "sdb":
            raise CallError("failed", "xvdj did not appear")

    async def mounted_one(params: dict[str, Any]) -> None:
        if params["frontend"] == "xvdi":
            await mounted(params)

    vault.on.update({"import.start": fails_for_one, "import.stop": mounted_one})
    world.driver.refuse_shutdown = DriverError("it hangs")
    with fails("failed", "vault runs with what it uses (sys-usb:sda: it stays attached", "xvdj"):
        await world.client.call("vm.start", vm="vault")
    assert world.driver.shutdowns == [("vault", False)]
    assert [str(lease.key) for lease in world.state.leases] == ["sys-usb:sda"]
    assert states(world) == ["attached"]


async def lends_while_it_starts(world: World) -> None:
    """vault is being started, and its device is lent and mounted meanwhile."""
    await world.client.attach("vault", "sys-usb:sda", persistent=True)
    vault, work = world.driver.agents["vault"], world.driver.agents["work"]
    vault.plug("sdv")
    work.on["import.stop"] = work.on["import.check"] = mounted
    vault.on["import.start"] = hang


async def test_a_start_that_fails_does_not_destroy_a_vm_that_lends_what_is_in_use(
    world: World, carrier: FakeCarrier, autojump_clock: Clock
) -> None:
    await lends_while_it_starts(world)

    async def start() -> None:
        with fails("failed", "vault runs without its devices", "in use: vault:sdv", "not answer"):
            await world.client.call("vm.start", vm="vault")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(start)
        await trio.sleep(5)
        await world.client.attach("work", "vault:sdv")
    assert world.driver.shutdowns == []
    assert [str(lease.key) for lease in world.state.leases] == ["vault:sdv"]
    assert states(world) == ["attached"]


async def test_an_interrupted_start_does_not_destroy_a_vm_that_lends_what_is_in_use(
    world: World, carrier: FakeCarrier, autojump_clock: Clock
) -> None:
    await lends_while_it_starts(world)
    world.nursery.start_soon(_start_in_vain, world)
    await trio.sleep(5)
    await world.client.attach("work", "vault:sdv")
    await world.kill()
    await world.start()
    await trio.sleep(200)
    assert world.driver.shutdowns == []
    assert "vault:sdv" in [str(lease.key) for lease in world.state.leases]


async def test_an_interrupted_start_does_not_destroy_a_vm_that_may_have_mounted_its_disks(
    world: World, carrier: FakeCarrier, autojump_clock: Clock
) -> None:
    """It was unpaused, and its agent is not there to report a use."""
    await assign(world)
    world.driver.agents["vault"].listens = False
    killed = world.kill_at("start.agent")
    world.nursery.start_soon(_start_in_vain, world)
    await trio.sleep(20)
    assert carrier.did[-1] == "resume vault"
    await world.kill()
    assert not killed.is_set()
    world.driver.refuse_shutdown = DriverError("it hangs")
    await world.start()
    await trio.sleep(100)
    assert {force for _, force in world.driver.shutdowns} == {False}
    assert len(carrier.attached) == 1
    world.driver.refuse_shutdown = None
    await trio.sleep(100)
    assert carrier.attached == {}
    world.assert_nothing_left()


async def _start_in_vain(world: World) -> None:
    with pytest.raises((CallError, trio.BrokenResourceError)):
        await world.client.call("vm.start", vm="vault")


# Agents that end while their VMs run: an upgrade, a crash, a shutdown that is going on


@pytest.mark.parametrize("vm", ["work", "sys-usb"])
async def test_an_agent_that_is_started_anew_does_not_cost_a_vm_what_it_uses(
    world: World, carrier: FakeCarrier, autojump_clock: Clock, vm: str
) -> None:
    await world.client.attach("work", "sys-usb:sda")
    world.driver.agents["work"].on["import.stop"] = mounted
    world.driver.agents[vm].kill()
    await trio.sleep(10)
    assert carrier.did == ["attach xvdi"]
    assert states(world) == ["attached"]
    (kept,) = world.audit("kept")
    assert "xvdi is mounted" in kept["reason"]
    # Both know of it again, so that it outlives the service too, and is detached as ever.
    assert len(world.driver.agents["work"].imports) == 1
    assert len(world.driver.agents["sys-usb"].exports) == 1
    await world.restart()
    await trio.sleep(60)
    assert states(world) == ["attached"]
    del world.driver.agents["work"].on["import.stop"]
    await world.client.detach("work", "sys-usb:sda")
    world.assert_nothing_left()


@pytest.mark.parametrize("vm", ["work", "sys-usb"])
async def test_an_agent_that_is_started_anew_takes_along_what_is_not_used(
    world: World, carrier: FakeCarrier, autojump_clock: Clock, vm: str
) -> None:
    await world.client.attach("work", "sys-usb:sda")
    world.driver.agents[vm].kill()
    await trio.sleep(10)
    assert carrier.attached == {}
    world.assert_nothing_left()


@pytest.mark.parametrize("vm", ["work", "sys-usb"])
async def test_a_vm_that_goes_down_by_itself_puts_away_what_it_has_before_it_is_taken(
    world: World, carrier: FakeCarrier, autojump_clock: Clock, vm: str
) -> None:
    """A reboot from within: its agent ends first, and the domain some time later."""
    await world.client.attach("work", "sys-usb:sda")
    world.driver.agents[vm].listens = False
    world.driver.agents[vm].kill()
    await trio.sleep(30)
    assert carrier.did == ["attach xvdi"]
    assert states(world) == ["attached"]
    world.driver.change(vm, None, "Halted")
    await trio.sleep(1)
    assert carrier.did == ["attach xvdi", "detach xvdi by force"]
    world.assert_nothing_left()


async def test_what_a_vm_may_use_whose_agent_is_not_there_is_not_detached(
    world: World, carrier: FakeCarrier, autojump_clock: Clock
) -> None:
    await world.client.attach("work", "sys-usb:sda")
    world.driver.agents["work"].listens = False
    world.driver.agents["work"].kill()
    await trio.sleep(1)
    with fails("busy", "whose agent does not say whether it is used", "it is not connected"):
        await world.client.detach("work", "sys-usb:sda")
    assert carrier.did == ["attach xvdi"]


@pytest.mark.parametrize("vm", ["work", "sys-usb"])
async def test_after_a_restart_an_agent_that_does_not_come_back_costs_a_vm_nothing(
    world: World, carrier: FakeCarrier, autojump_clock: Clock, vm: str
) -> None:
    await world.client.attach("work", "sys-usb:sda")
    world.driver.agents["work"].on["import.stop"] = mounted
    agent = world.driver.agents[vm]
    agent.listens = False
    await world.restart()
    await trio.sleep(100)
    assert carrier.did == ["attach xvdi"]
    assert states(world) == ["attached"]
    agent.listens = True
    await trio.sleep(10)
    assert states(world) == ["attached"]
    assert carrier.did == ["attach xvdi"]


async def test_after_a_restart_a_source_s_agent_that_goes_again_unplugs_nothing(
    world: World, carrier: FakeCarrier, autojump_clock: Clock
) -> None:
    await world.client.attach("work", "sys-usb:sda")
    source, target = world.driver.agents["sys-usb"], world.driver.agents["work"]
    target.on["import.stop"] = mounted
    target.listens = False
    await world.restart()
    await trio.sleep(5)
    source.listens = False
    source.kill()
    target.listens = True  # only now both were there
    await trio.sleep(100)
    assert carrier.did == ["attach xvdi"]
    assert states(world) == ["attached"]


# The table


def test_only_force_and_what_leaves_nothing_to_save_take_away_what_is_in_use() -> None:
    unrefusable = {name for name, way in WAYS.items() if way.may_refuse == "no"}
    assert unrefusable == {"FORCED", "GONE", "RELEASED", "CONTRADICTED"}


def test_the_documentation_has_every_way() -> None:
    page = (Path(__file__).parents[2] / "ARCHITECTURE.md").read_text()
    for name, way in WAYS.items():
        (row,) = (line for line in page.splitlines() if line.startswith(f"| `{name}` |"))
        said = [cell.strip() for cell in row.split("|")]
        assert said[3:5] == [way.may_refuse, "yes" if way.by_force else "no"]


async def test_a_breach_of_a_source_costs_its_borrower_nothing_that_others_lend_it(
    world_with_a_stick: World, autojump_clock: Clock
) -> None:
    world = world_with_a_stick
    source, other = world.driver.agents["sys-usb"], world.driver.agents["vault"]
    other.plug("own")
    await other.report()
    for vm, device in (("work", "sys-usb:stick"), ("work", "vault:own")):
        await world.client.attach(vm, device)
    source.invent_exports(64)
    with contextlib.suppress(CallError):
        await source.report()
    await trio.testing.wait_all_tasks_blocked()
    assert [line["vm"] for line in world.audit("disconnected")] == ["sys-usb"]
    assert [str(lease.key) for lease in world.state.leases] == ["vault:own"]
    assert len(world.driver.agents["work"].imports) == 1
