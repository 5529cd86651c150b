"""A target keeps what it does not release: it is attached then, until another reason ends it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio
from pedos_dom0.attachments.teardown import Teardown
from pedos_dom0.attachments.ways import AGENT_LOST, GONE, WAYS, Way
from pedos_dom0.drivers.base import DriverError
from pedos_protocol.errors import CallError
from trio.abc import Clock

from tests.dom0.fake_carrier import FakeCarrier, let_carry, mounted
from tests.dom0.fakes import World, fails, hang, named
from tests.dom0.test_ways import note_shutdowns, states
from tests.dom0.test_xen_driver_attach import assign


@pytest.fixture(params=["carried", "local"])
async def either(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    nursery: trio.Nursery,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[World]:
    """Both: the hypervisor carries the device, or the agents do."""
    if request.param == "carried":
        let_carry(FakeCarrier(), monkeypatch)
    world = World(tmp_path, nursery)
    world.vm("sys-usb", "sda", "sdb")
    world.vm("work")
    world.dom0_agent()
    await world.start()
    yield world
    await world.kill()


def teardown(world: World) -> Teardown:
    return world.api._detach._teardown


async def used(params: dict[str, Any]) -> None:
    """As `mounted`, for a VM that releases it when it must."""
    if params["may_refuse"]:
        await mounted(params)


async def refuse(_params: dict[str, Any]) -> None:
    raise CallError("failed", "xvdi did not appear")


async def attach_in_vain(world: World) -> None:
    with pytest.raises((CallError, trio.BrokenResourceError)):
        await world.client.attach("work", "sys-usb:sda")


# A start that is undone


@pytest.mark.parametrize("name", WAYS)
async def test_an_undone_start_asks_the_guest_before_it_takes_a_disk_in_every_way_that_has_to_ask(
    carried: World, carrier: FakeCarrier, autojump_clock: Clock, name: str
) -> None:
    way = WAYS[name]
    await assign(carried)
    note_shutdowns(carried, carrier)
    carried.driver.agents["vault"].on["import.stop"] = mounted

    async def reach(step: str) -> None:
        if step == "start.agent":
            (lease,) = carried.state.leases
            teardown(carried).end_soon(lease.attachment, "something is wrong", way)

    carried.reach = reach
    with fails("failed", "vault was stopped again", "something is wrong"):
        await carried.client.call("vm.start", vm="vault")
    last = ["shutdown vault", "detach xvdi by force"]
    if way.may_refuse == "no":
        last.reverse()
    assert carrier.did == ["attach xvdi", "resume vault", *last]
    carried.assert_nothing_left()


@pytest.mark.parametrize("whose", ["sys-usb", "vault"])
async def test_an_agent_that_ends_while_a_vm_starts_does_not_cost_the_guest_what_it_mounted(
    carried: World, carrier: FakeCarrier, autojump_clock: Clock, whose: str
) -> None:
    await assign(carried)
    note_shutdowns(carried, carrier)
    carried.driver.agents["vault"].on["import.stop"] = mounted

    async def reach(step: str) -> None:
        if step == "start.agent":
            carried.driver.agents[whose].listens = False
            carried.driver.agents[whose].kill()
            await trio.sleep(1)

    carried.reach = reach
    carried.driver.refuse_shutdown = DriverError("it hangs")
    with fails("failed", "vault runs with what it uses (sys-usb:sda: it stays attached to vault"):
        await carried.client.call("vm.start", vm="vault")
    assert carrier.did == ["attach xvdi", "resume vault", "shutdown vault"]
    assert states(carried) == ["attached"]
    carried.driver.refuse_shutdown = None
    await carried.client.call("vm.shutdown", vm="vault")
    carried.assert_nothing_left()


async def test_a_vm_that_has_not_begun_to_run_is_not_asked_what_it_uses(
    carried: World, carrier: FakeCarrier, autojump_clock: Clock
) -> None:
    await assign(carried)
    note_shutdowns(carried, carrier)

    async def reach(step: str) -> None:
        if step == "attach.carried":
            carried.driver.agents["sys-usb"].kill()
            await trio.sleep(1)

    carried.driver.agents["vault"].listens = False
    carried.reach = reach
    with fails("failed", "vault was stopped again"):
        await carried.client.call("vm.start", vm="vault")
    assert carrier.did == ["attach xvdi", "detach xvdi by force", "shutdown vault by force"]
    carried.assert_nothing_left()


# After a restart


async def test_what_a_vm_keeps_of_an_interrupted_attach_is_attached_and_can_be_detached(
    either: World, autojump_clock: Clock
) -> None:
    world = either
    killed = world.kill_at("attach.imported")
    world.nursery.start_soon(attach_in_vain, world)
    await killed.wait()
    work = world.driver.agents["work"]
    work.on["import.stop"] = used
    await world.restart()
    await trio.sleep(100)
    assert states(world) == ["attached"]
    assert [row.state for row in world.state.store.journal()] == ["attached"]
    (sda, _) = await world.client.list(vms=["sys-usb"], exclude=[])
    assert [each["vm"] for each in sda["attachments"]] == ["work"]
    with fails("busy", "it stays attached to work: xvdi is mounted at /mnt"):
        await world.client.detach("work", "sys-usb:sda")
    await world.restart()
    await trio.sleep(100)
    assert states(world) == ["attached"], "both ends confirm it"
    await world.client.call("device.detach", **named("work", "sys-usb:sda"), force=True)
    world.assert_nothing_left()


async def test_what_a_vm_keeps_of_an_interrupted_detach_is_attached_and_the_next_start_keeps_it(
    either: World, autojump_clock: Clock
) -> None:
    world = either
    await world.client.attach("work", "sys-usb:sda")
    killed = world.kill_at("detach.unimported")

    async def detach() -> None:
        with pytest.raises((CallError, trio.BrokenResourceError)):
            await world.client.detach("work", "sys-usb:sda")

    work = world.driver.agents["work"]
    imports = dict(work.imports)
    world.nursery.start_soon(detach)
    await killed.wait()
    work.imports.update(imports)  # it had not released it after all
    work.on["import.stop"] = used
    for _ in range(2):
        await world.restart()
        await trio.sleep(100)
        assert states(world) == ["attached"]
        answer = await world.client.attach("work", "sys-usb:sda")
        assert answer["outcome"] == "already"
    del work.on["import.stop"]
    await world.client.detach("work", "sys-usb:sda")
    world.assert_nothing_left()


# Events during a refused end


async def test_a_source_that_ends_while_an_undo_is_refused_ends_the_attachment(
    local: World, autojump_clock: Clock
) -> None:
    work = local.driver.agents["work"]

    async def stop(params: dict[str, Any]) -> None:
        if params["may_refuse"]:
            local.driver.die("sys-usb")
            await trio.sleep(1)
            await mounted(params)

    work.on.update({"import.start": refuse, "import.stop": stop})
    with fails("busy", "xvdi did not appear", "it stays attached"):
        await local.client.attach("work", "sys-usb:sda")
    await trio.sleep(60)
    local.assert_nothing_left()


async def test_another_device_that_comes_while_an_undo_is_refused_ends_the_attachment(
    carried: World, carrier: FakeCarrier, autojump_clock: Clock
) -> None:
    work, usb = carried.driver.agents["work"], carried.driver.agents["sys-usb"]

    async def stop(params: dict[str, Any]) -> None:
        usb.plug("sda", identity="1111:2222", instance="another")
        await usb.report()
        await trio.sleep(1)
        await mounted(params)

    work.on.update({"import.start": refuse, "import.stop": stop})
    with fails("busy", "xvdi did not appear", "it stays attached"):
        await carried.client.attach("work", "sys-usb:sda")
    await trio.sleep(60)
    assert carrier.did == ["attach xvdi", "detach xvdi by force"]
    assert list(carried.state.leases) == []


async def test_an_unplug_while_a_row_that_is_being_settled_is_refused_ends_the_attachment(
    carried: World, carrier: FakeCarrier, autojump_clock: Clock
) -> None:
    work, usb = carried.driver.agents["work"], carried.driver.agents["sys-usb"]
    killed = carried.kill_at("attach.imported")
    carried.nursery.start_soon(attach_in_vain, carried)
    await killed.wait()

    async def stop(params: dict[str, Any]) -> None:
        if "sda" in usb.devices:
            await usb.unplug("sda")
            await trio.sleep(1)
        await mounted(params)

    work.on["import.stop"] = stop
    await carried.restart()
    await trio.sleep(100)
    assert carrier.did == ["attach xvdi", "detach xvdi by force"]
    assert list(carried.state.leases) == []


@pytest.mark.parametrize(("first", "then"), [(AGENT_LOST, GONE), (GONE, AGENT_LOST)])
async def test_of_two_reasons_to_break_off_an_attach_the_one_that_may_not_be_refused_counts(
    carried: World, carrier: FakeCarrier, autojump_clock: Clock, first: Way, then: Way
) -> None:
    work = carried.driver.agents["work"]
    work.on.update({"import.start": hang, "import.stop": mounted})

    async def reach(step: str) -> None:
        if step == "attach.carried":
            (lease,) = carried.state.leases
            for way in (first, then):
                teardown(carried).end_soon(lease.attachment, "something is wrong", way)

    carried.reach = reach
    with fails("failed", "something is wrong"):
        await carried.client.attach("work", "sys-usb:sda")
    assert carrier.did == ["attach xvdi", "detach xvdi by force"]
    assert list(carried.state.leases) == []


async def test_a_source_whose_agent_ended_during_a_refused_undo_is_told_of_what_stays(
    carried: World, carrier: FakeCarrier, autojump_clock: Clock
) -> None:
    work, usb = carried.driver.agents["work"], carried.driver.agents["sys-usb"]

    async def start(_params: dict[str, Any]) -> None:
        usb.kill()
        await trio.sleep_forever()

    work.on.update({"import.start": start, "import.stop": mounted})
    with fails("busy", "it stays attached to work"):
        await carried.client.attach("work", "sys-usb:sda")
    del work.on["import.start"]
    await trio.sleep(60)
    assert carrier.did == ["attach xvdi"]
    assert states(carried) == ["attached"]
    assert len(usb.exports) == len(work.imports) == 1
    carried.driver.die("sys-usb")
    await trio.sleep(1)
    assert list(carried.state.leases) == []


# Waiting for agents


async def test_a_target_that_reconnects_a_hundred_times_adds_no_task_and_few_lines(
    carried: World, carrier: FakeCarrier, autojump_clock: Clock
) -> None:
    await carried.client.attach("work", "sys-usb:sda")
    work, usb = carried.driver.agents["work"], carried.driver.agents["sys-usb"]
    work.on["import.stop"] = mounted
    usb.listens = False
    usb.kill()
    await trio.sleep(1)
    tasks = len(carried.service_nursery.child_tasks)
    for _ in range(100):
        assert work.peer is not None
        work.peer.close()
        await trio.sleep(5)
    assert work.connections > 100
    assert len(carried.service_nursery.child_tasks) <= tasks
    assert carried.audit("kept") == []
    usb.listens = True
    await trio.sleep(60)
    assert len(carried.service_nursery.child_tasks) < tasks
    assert len(carried.audit("kept")) == 1
    assert states(carried) == ["attached"]


async def test_what_waits_for_an_agent_ends_with_the_attachment(
    carried: World, autojump_clock: Clock
) -> None:
    await carried.client.attach("work", "sys-usb:sda")
    await trio.sleep(1)
    tasks = len(carried.service_nursery.child_tasks)
    usb = carried.driver.agents["sys-usb"]
    usb.listens = False
    usb.kill()
    await trio.sleep(1)
    assert len(carried.service_nursery.child_tasks) == tasks + 1
    await carried.client.detach("work", "sys-usb:sda")
    await trio.sleep(1)
    assert len(carried.service_nursery.child_tasks) == tasks


@pytest.mark.parametrize("vm", ["work", "sys-usb"])
async def test_a_domain_that_ends_while_both_agents_are_away_ends_the_attachment(
    carried: World, carrier: FakeCarrier, autojump_clock: Clock, vm: str
) -> None:
    await carried.client.attach("work", "sys-usb:sda")
    carried.driver.agents["work"].on["import.stop"] = mounted
    for agent in (carried.driver.agents["sys-usb"], carried.driver.agents["work"]):
        agent.listens = False
        agent.kill()
        await trio.sleep(1)
    assert carrier.did == ["attach xvdi"]
    carried.driver.change(vm, None, "Halted")
    await trio.sleep(1)
    assert carrier.did == ["attach xvdi", "detach xvdi by force"]
    assert list(carried.state.leases) == []


async def test_an_attach_to_a_vm_that_is_being_stopped_after_a_failed_start_is_refused(
    carried: World, carrier: FakeCarrier, autojump_clock: Clock
) -> None:
    await assign(carried)
    carried.driver.agents["vault"].on["import.start"] = refuse
    real = carried.driver.shutdown

    async def shutdown(name: str, force: bool) -> None:
        with fails("failed", "vault is being shut down"):
            await carried.client.attach("vault", "sys-usb:sdb")
        await real(name, force)

    carried.driver.shutdown = shutdown  # type: ignore[method-assign]
    with fails("failed", "vault was stopped again"):
        await carried.client.call("vm.start", vm="vault")
    carried.assert_nothing_left()
