"""A VM starts with everything that is assigned to it, or not at all, with a reason."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio
from pedos_dom0.drivers.base import DomainInfo, DriverError
from pedos_dom0.tables.store import Store, StoreError
from pedos_protocol.errors import CallError
from pedos_protocol.words import unanswered
from trio.abc import Clock

from tests.dom0.fakes import ALLOW_DOM0, World, fails, hang


@pytest.fixture
async def world(tmp_path: Path, nursery: trio.Nursery) -> AsyncIterator[World]:
    world = World(tmp_path, nursery)
    world.vm("sys-usb", "stick", "other")
    world.vm("work", running=False)
    world.vm("vault")
    world.dom0_agent()
    await world.start()
    await world.client.attach("work", "sys-usb:stick", persistent=True, options={"read-only": "1"})
    await world.client.attach("work", "sys-usb:other", persistent=True)
    yield world
    await world.kill()


def assert_not_running(world: World) -> None:
    assert world.driver.infos["work"].domid is None
    assert world.state.leases.of_vm("work") == []


async def test_a_start_attaches_what_is_assigned(world: World, autojump_clock: Clock) -> None:
    answer = await world.client.call("vm.start", vm="work")
    assert answer["attached"] == ["sys-usb:other", "sys-usb:stick"]
    _other, stick = await world.client.list()
    (to,) = stick["attachments"]
    assert (to["vm"], to["options"]["read-only"]) == ("work", "yes")
    (lease, _) = world.state.leases.of_vm("work")
    assert lease.vm_domid == answer["domid"] == world.driver.infos["work"].domid
    with fails("failed", "work is already running"):
        await world.client.call("vm.start", vm="work")


async def test_a_missing_device_keeps_the_vm_from_starting(
    world: World, autojump_clock: Clock
) -> None:
    await world.driver.agents["sys-usb"].unplug("stick")
    with fails(
        "failed",
        "work was not started: its assigned device sys-usb:stick is missing",
        "plug it in, or qvm-device block detach work sys-usb:stick",
    ):
        await world.client.call("vm.start", vm="work")
    assert_not_running(world)


async def test_another_device_in_the_place_of_the_assigned_one_keeps_the_vm_from_starting(
    world: World, autojump_clock: Clock
) -> None:
    agent = world.driver.agents["sys-usb"]
    agent.plug("stick", identity="3333:1::")
    await agent.report()
    with fails(
        "failed",
        "its assigned device sys-usb:stick is another one than was assigned "
        "(3333:1:: instead of 046d:c52b)",
        "qvm-device block attach --persistent work sys-usb:stick to assign this one, "
        "or qvm-device block detach work sys-usb:stick",
    ):
        await world.client.call("vm.start", vm="work")
    assert_not_running(world)
    await world.client.attach("work", "sys-usb:stick", persistent=True)
    assert (await world.client.call("vm.start", vm="work"))["attached"]


@pytest.mark.parametrize("identity", ["", "::4ef6-5884"])
async def test_a_device_that_is_formatted_or_has_no_identity_is_known_by_its_id(
    world: World, autojump_clock: Clock, identity: str
) -> None:
    agent = world.driver.agents["sys-usb"]
    agent.plug("disk", identity=identity)
    await agent.report()
    await world.client.attach("work", "sys-usb:disk", persistent=True)
    agent.plug("disk", identity="::0000-0001")
    await agent.report()
    answer = await world.client.call("vm.start", vm="work")
    assert "sys-usb:disk" in answer["attached"]


async def test_a_halted_source_keeps_the_vm_from_starting(
    world: World, autojump_clock: Clock
) -> None:
    world.driver.die("sys-usb")
    await trio.testing.wait_all_tasks_blocked()
    with fails(
        "failed", "sys-usb:stick is missing, because sys-usb is halted", "qvm-start sys-usb"
    ):
        await world.client.call("vm.start", vm="work")
    assert_not_running(world)


async def test_a_taken_device_keeps_the_vm_from_starting(
    world: World, autojump_clock: Clock
) -> None:
    await world.client.attach("vault", "sys-usb:stick")
    with fails(
        "failed",
        "its assigned device sys-usb:stick is attached to vault",
        "qvm-device block detach vault sys-usb:stick",
    ):
        await world.client.call("vm.start", vm="work")
    assert_not_running(world)


async def test_a_denied_device_keeps_the_vm_from_starting(
    world: World, autojump_clock: Clock
) -> None:
    world.policy.set("device.attach.block +sys-usb:stick * * deny\n" + ALLOW_DOM0)
    with fails("failed", "sys-usb:stick is denied by policy", "explain work sys-usb:stick"):
        await world.client.call("vm.start", vm="work")
    assert_not_running(world)


async def test_of_two_vms_with_one_device_only_one_starts(
    world: World, autojump_clock: Clock
) -> None:
    world.vm("second", running=False)
    await world.client.attach("second", "sys-usb:stick", persistent=True)
    outcomes: list[str] = []

    async def start(vm: str) -> None:
        try:
            await world.client.call("vm.start", vm=vm)
            outcomes.append("started")
        except CallError as error:
            outcomes.append(error.code)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(start, "work")
        nursery.start_soon(start, "second")
    assert sorted(outcomes) == ["failed", "started"]


async def test_a_vm_whose_agent_does_not_come_is_stopped_again(
    world: World, autojump_clock: Clock
) -> None:
    world.driver.agents["work"].listens = False
    began = trio.current_time()
    with fails("failed", "work was stopped again: its agent did not connect"):
        await world.client.call("vm.start", vm="work")
    assert trio.current_time() - began == pytest.approx(30)
    assert_not_running(world)
    assert world.driver.shutdowns == [("work", False)]


@pytest.mark.parametrize("vm", ["sys-usb", "work"])
async def test_a_vm_whose_device_cannot_be_attached_is_stopped_again(
    world: World, autojump_clock: Clock, vm: str
) -> None:
    async def second_time(params: dict[str, Any]) -> None:
        if params["device"] == "stick":
            raise CallError("failed", "no")

    world.driver.agents[vm].on["export.start"] = second_time
    world.driver.agents[vm].on["import.start"] = second_time
    with fails("failed", "work was stopped again", vm):
        await world.client.call("vm.start", vm="work")
    await trio.testing.wait_all_tasks_blocked()
    assert_not_running(world)
    world.assert_nothing_left()


async def test_a_device_that_goes_while_the_vm_boots_stops_it_again(
    world: World, autojump_clock: Clock
) -> None:
    world.driver.agents["work"].listens = False
    async with trio.open_nursery() as nursery:

        async def start() -> None:
            with fails("failed", "work was stopped again", "unplugged"):
                await world.client.call("vm.start", vm="work")

        nursery.start_soon(start)
        await trio.sleep(1)
        await world.driver.agents["sys-usb"].unplug("stick")
        world.driver.agents["work"].listens = True
    assert_not_running(world)
    world.assert_nothing_left()


async def test_a_hypervisor_that_refuses_leaves_nothing(
    world: World, autojump_clock: Clock
) -> None:
    world.driver.refuse_start = DriverError("there is no memory left", hint="shut something down")
    with fails("failed", "work was not started: there is no memory left", "shut something down"):
        await world.client.call("vm.start", vm="work")
    world.assert_nothing_left()


@pytest.mark.parametrize(
    ("method", "vm", "code", "words"),
    [
        ("vm.start", "nobody", "not_found", ["no VM named 'nobody'"]),
        ("vm.start", "dom0", "failed", ["dom0 is already running"]),
        ("vm.shutdown", "nobody", "not_found", ["no VM named 'nobody'"]),
        ("vm.shutdown", "work", "failed", ["work is not running"]),
        ("vm.shutdown", "dom0", "usage", ["dom0"]),
    ],
)
async def test_wrong_starts_and_shutdowns_are_refused(
    world: World, autojump_clock: Clock, method: str, vm: str, code: str, words: list[str]
) -> None:
    with fails(code, *words):
        await world.client.call(method, vm=vm)


@pytest.mark.parametrize("vm", ["sys-usb", "vault"])
async def test_a_shutdown_detaches_first(world: World, autojump_clock: Clock, vm: str) -> None:
    await world.client.attach("vault", "sys-usb:stick")
    agent, had = world.driver.agents["vault"], []

    async def note(_params: Any) -> None:
        had.append(world.driver.infos[vm].state)

    agent.on["import.stop"] = note
    await world.client.call("vm.shutdown", vm=vm)
    assert had == ["Running"]
    assert world.driver.infos[vm].state == "Halted"
    world.assert_nothing_left()


async def test_a_shutdown_by_force_does_not_wait_for_the_vm(
    world: World, autojump_clock: Clock
) -> None:
    await world.client.attach("vault", "sys-usb:stick")
    world.driver.agents["vault"].on["import.stop"] = hang
    began = trio.current_time()
    await world.client.call("vm.shutdown", vm="vault", force=True)
    assert trio.current_time() == began
    world.assert_nothing_left()


async def test_a_vm_that_is_shut_down_gets_no_device_any_more(
    world: World, autojump_clock: Clock
) -> None:
    await world.client.attach("vault", "sys-usb:stick")
    reached = trio.Event()

    async def slow(_params: Any) -> None:
        reached.set()
        await trio.sleep(1)

    world.driver.agents["vault"].on["import.stop"] = slow
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: world.client.call("vm.shutdown", vm="vault"))
        await reached.wait()
        with fails("failed", "vault is being shut down"):
            await world.client.attach("vault", "sys-usb:other")


async def test_a_shutdown_breaks_off_an_attach_in_progress(
    world: World, autojump_clock: Clock
) -> None:
    reached = trio.Event()

    async def stuck(_params: Any) -> None:
        reached.set()
        await trio.sleep_forever()

    world.driver.agents["vault"].on["import.start"] = stuck
    async with trio.open_nursery() as nursery:

        async def attach() -> None:
            with fails("failed", "vault is shut down"):
                await world.client.attach("vault", "sys-usb:stick")

        nursery.start_soon(attach)
        await reached.wait()
        await world.client.call("vm.shutdown", vm="vault")
    world.assert_nothing_left()


# A service that is killed, and a hypervisor that does not answer

START_STEPS = ("start.reserved", "start.started", "start.agent", "start.attached")


async def killed_in_start(world: World, step: str) -> None:
    killed = world.kill_at(step)

    async def start() -> None:
        with fails("unavailable"):
            await world.client.call("vm.start", vm="work")

    world.nursery.start_soon(start)
    await killed.wait()
    await world.restart()


@pytest.mark.parametrize("step", START_STEPS)
async def test_a_start_that_was_killed_leaves_the_vm_with_all_its_devices_or_halted(
    world: World, autojump_clock: Clock, step: str
) -> None:
    await killed_in_start(world, step)
    if step == "start.attached":
        with fails("failed", "work is already running"):
            await world.client.call("vm.start", vm="work")
        assert len(world.state.leases.of_vm("work")) == 2
        assert world.driver.shutdowns == []
    else:
        answer = await world.client.call("vm.start", vm="work")
        assert answer["attached"] == ["sys-usb:other", "sys-usb:stick"]
        assert world.driver.shutdowns == ([] if step == "start.reserved" else [("work", False)])
    assert world.state.store.starts() == []


@pytest.mark.parametrize("step", ["attach.leased", "attach.exported", "attach.committed"])
async def test_a_start_that_was_killed_within_an_attach_stops_the_vm_and_says_so(
    world: World, autojump_clock: Clock, caplog: pytest.LogCaptureFixture, step: str
) -> None:
    await killed_in_start(world, step)
    await trio.testing.wait_all_tasks_blocked()
    assert_not_running(world)
    world.assert_nothing_left()
    assert "start of work was interrupted; it was stopped" in caplog.messages
    record = world.audit("start")[-1]
    assert record["outcome"] == "failed: it was interrupted, and the VM was stopped"
    assert record["missing"][-1] == "sys-usb:stick"
    assert world.state.store.starts() == []


async def test_an_interrupted_start_leaves_a_later_life_of_the_vm_alone(
    world: World, autojump_clock: Clock
) -> None:
    killed = world.kill_at("start.started")
    world.nursery.start_soon(_unavailable, world)
    await killed.wait()
    await world.kill()
    world.driver.die("work")
    domid = await world.driver.start("work")
    await world.start()
    assert world.driver.infos["work"].domid == domid
    assert world.state.store.starts() == []


async def _unavailable(world: World) -> None:
    with fails("unavailable"):
        await world.client.call("vm.start", vm="work")


async def test_a_vm_that_cannot_be_stopped_is_tried_again_by_the_next_service(
    world: World, autojump_clock: Clock
) -> None:
    world.driver.refuse_shutdown = DriverError("the hypervisor hangs")
    await killed_in_start(world, "start.agent")
    await trio.testing.wait_all_tasks_blocked()
    assert world.driver.infos["work"].domid is not None
    world.driver.refuse_shutdown = None
    await world.restart()
    assert_not_running(world)


async def test_a_hypervisor_that_starts_the_vm_without_saying_so_in_time_stops_it_again(
    world: World, autojump_clock: Clock
) -> None:
    world.driver.refuse_start = DriverError(unanswered("domain.start", 9), code="timeout")
    world.driver.starts_late = True
    with fails(
        "failed", "work was stopped again: the request to start a VM was not answered within 9 s"
    ):
        await world.client.call("vm.start", vm="work")
    assert_not_running(world)
    world.assert_nothing_left()
    assert world.state.store.starts() == []


@pytest.mark.parametrize(
    "error",
    [
        DriverError("xl create did not end within 90 s", code="timeout"),
        DriverError("xenstore is not connected", code="unavailable"),
        OSError("xenstore has broken off"),
    ],
)
async def test_a_vm_that_a_hypervisor_without_answer_may_have_started_is_the_next_services_to_stop(
    world: World, autojump_clock: Clock, error: Exception
) -> None:
    world.driver.refuse_start = error  # type: ignore[assignment]
    world.driver.starts_late = True
    world.driver.refuse_shutdown = DriverError("no")
    with fails("failed", "work runs without its devices, as it could not be stopped again"):
        await world.client.call("vm.start", vm="work")
    assert [row.vm for row in world.state.store.starts()] == ["work"]
    world.driver.refuse_shutdown = None
    await world.restart()
    assert_not_running(world)
    assert world.state.store.starts() == []


async def test_a_vm_that_could_not_be_stopped_again_is_not_called_stopped(
    world: World, autojump_clock: Clock
) -> None:
    world.driver.agents["work"].listens = False
    world.driver.refuse_shutdown = DriverError("no")
    with fails("failed", "work runs without its devices, as it could not be stopped again"):
        await world.client.call("vm.start", vm="work")


async def test_a_start_that_cannot_be_written_down_is_none(
    world: World, autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_arguments: Any, **_named: Any) -> None:
        raise StoreError(Path("dom0.sqlite"), "database or disk is full", "make room")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "start_put", full)
        with fails("failed", "work was not started", "disk is full"):
            await world.client.call("vm.start", vm="work")
    with monkeypatch.context() as patch:
        patch.setattr(Store, "start_delete", full)
        with fails("failed", "work was stopped again", "disk is full"):
            await world.client.call("vm.start", vm="work")
    assert_not_running(world)
    world.assert_nothing_left()


# Right after the end of a VM


def end_untold(world: World, vm: str) -> None:
    """The domain has ended, and nothing has been told of it yet."""
    info = world.driver.infos[vm]
    world.driver.infos[vm] = DomainInfo(vm, None, "Halted", info.uuid)


async def test_a_start_waits_for_the_end_of_what_the_vm_had_until_now(
    world: World, autojump_clock: Clock
) -> None:
    await world.client.call("vm.start", vm="work")
    world.driver.agents["work"].kill()
    end_untold(world, "work")
    assert len(world.state.leases.of_vm("work")) == 2
    answer = await world.client.call("vm.start", vm="work")
    assert answer["attached"] == ["sys-usb:other", "sys-usb:stick"]
    assert {lease.vm_domid for lease in world.state.leases} == {answer["domid"]}


@pytest.mark.parametrize("verb", ["start", "attach"])
async def test_what_another_vm_had_is_waited_for_while_its_end_is_under_way(
    world: World, autojump_clock: Clock, verb: str
) -> None:
    await world.client.attach("vault", "sys-usb:stick")

    async def slow(_params: Any) -> None:
        await trio.sleep(5)

    world.driver.agents["sys-usb"].on["export.stop"] = slow
    world.driver.die("vault")
    await trio.testing.wait_all_tasks_blocked()
    (lease,) = world.state.leases
    assert lease.state == "detaching"
    if verb == "start":
        await world.client.call("vm.start", vm="work")
    else:
        world.vm("spare")
        world.driver.tell(world.driver.infos["spare"])
        await world.client.attach("spare", "sys-usb:stick")


async def test_what_was_being_attached_to_a_vm_that_has_ended_is_waited_for(
    world: World, autojump_clock: Clock
) -> None:
    reached = trio.Event()

    async def stuck(_params: Any) -> None:
        reached.set()
        await trio.sleep_forever()

    world.driver.agents["vault"].on["import.start"] = stuck
    async with trio.open_nursery() as nursery:

        async def attach() -> None:
            with fails("failed", "vault has ended"):
                await world.client.attach("vault", "sys-usb:stick")

        nursery.start_soon(attach)
        await reached.wait()
        end_untold(world, "vault")
        assert (await world.client.call("vm.start", vm="work"))["attached"]


async def test_a_source_that_does_not_confirm_the_end_is_not_waited_for_without_end(
    world: World, autojump_clock: Clock
) -> None:
    agent = world.driver.agents["sys-usb"]
    agent.plug("third")
    await agent.report()
    world.vm("spare")
    world.driver.tell(world.driver.infos["spare"])
    await world.client.attach("spare", "sys-usb:third")  # so it is not disconnected for that
    await world.client.attach("vault", "sys-usb:stick")
    agent.on["export.stop"] = hang
    world.driver.die("vault")
    with fails("failed", "sys-usb:stick is attached to vault"):
        await world.client.call("vm.start", vm="work")
