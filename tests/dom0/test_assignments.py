"""An assignment that could never start is refused; and assignments to removed VMs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, NoReturn

import attrs
import pytest
import trio
import trio.testing
from pedos_dom0.attachments.orphans import GONE_SECONDS
from pedos_dom0.drivers.base import DomainInfo, DriverError
from pedos_dom0.drivers.xen.config import own_frontends
from pedos_dom0.tables.registry import DeviceKey
from pedos_dom0.tables.store import Assignment, StoreError
from pedos_protocol.errors import CallError
from pedos_protocol.names import frontend_names
from trio.abc import Clock

from tests.dom0.fake_carrier import FakeCarrier
from tests.dom0.fakes import World, fails

# As shipped: it names no VMs that do not exist.
POLICY = "device.*.*  *  @adminvm  @anyvm  allow\n"


@pytest.fixture
async def world(tmp_path: Path, nursery: trio.Nursery) -> AsyncIterator[World]:
    world = World(tmp_path, nursery, POLICY)
    usb = world.vm("sys-usb", "a", "b", "sda")
    usb.plug("sda1", parent="sda")
    usb.plug("sda2", parent="sda")
    world.vm("work", running=False)
    world.vm("vault")
    world.dom0_agent()
    await world.start()
    yield world
    await world.kill()


def writes_wait(world: World, monkeypatch: pytest.MonkeyPatch) -> trio.Event:
    """A write has its turn, and all others wait behind it until this is set."""
    store, go = world.state.store, trio.Event()
    real = store._in_thread

    async def slow(work: Callable[[], Any]) -> Any:
        await go.wait()
        return await real(work)

    monkeypatch.setattr(store, "_in_thread", slow)
    world.nursery.start_soon(store.start_put, "vault", 7)
    return go


async def assign(world: World, device: str, vm: str = "work", **options: str) -> None:
    options = {name.replace("_", "-"): value for name, value in options.items()}
    await world.client.attach(vm, f"sys-usb:{device}", persistent=True, options=options)


# What can never start


@pytest.mark.parametrize("vm", ["work", "vault"])
async def test_two_assignments_with_one_frontend_dev_are_not_taken(
    world: World, autojump_clock: Clock, vm: str
) -> None:
    await assign(world, "a", vm, frontend_dev="xvdi")
    with fails(
        "busy",
        f"xvdi in {vm} is the name with which sys-usb:a is assigned to it",
        f"qvm-device block detach {vm} sys-usb:a",
    ):
        await assign(world, "b", vm, frontend_dev="xvdi")
    assert [str(a.key) for a in world.state.store.assignments(vm)] == ["sys-usb:a"]
    assert {str(lease.key) for lease in world.state.leases} <= {"sys-usb:a"}
    await assign(world, "a", vm, frontend_dev="xvdj")  # its own is no other's
    await assign(world, "b", vm)


@pytest.mark.parametrize(("one", "other"), [("sda", "sda1"), ("sda2", "sda")])
async def test_a_disk_and_its_partition_are_not_assigned_to_one_vm(
    world: World, autojump_clock: Clock, one: str, other: str
) -> None:
    await assign(world, one)
    with fails(
        "busy",
        f"sys-usb:{other} shares data with sys-usb:{one}, which is assigned to work",
        f"qvm-device block detach work sys-usb:{one}",
    ):
        await assign(world, other)


async def test_two_partitions_are_assigned_and_start(world: World, autojump_clock: Clock) -> None:
    await assign(world, "sda1")
    await assign(world, "sda2")
    assert len((await world.client.call("vm.start", vm="work"))["attached"]) == 2


async def test_more_disks_than_there_are_names_for_are_not_assigned(
    world: World, autojump_clock: Clock
) -> None:
    usb = world.driver.agents["sys-usb"]
    for number in range(len(frontend_names()) + 1):
        usb.plug(f"disk{number}")
    await usb.report()
    for number in range(len(frontend_names())):
        await assign(world, f"disk{number}")
    with fails("quota", "work has 22 disks, one for each name", "qvm-device block detach work"):
        await assign(world, f"disk{len(frontend_names())}")


async def test_who_names_a_frontend_gets_it_whatever_the_others_would_take(
    world: World, autojump_clock: Clock
) -> None:
    """Like local mode's agents, which give the first free name if none is requested."""
    order: list[Any] = []

    async def note(params: dict[str, Any]) -> None:
        order.append(params["frontend"])

    await assign(world, "a")
    await assign(world, "b", frontend_dev="xvdi")
    world.driver.agents["work"].on["import.start"] = note
    await world.client.call("vm.start", vm="work")
    assert order == ["xvdi", None]


async def test_the_name_of_a_vms_own_disk_is_not_assigned(
    carrier: FakeCarrier, world: World, autojump_clock: Clock
) -> None:
    carrier.own = {"work": frozenset({"xvde"})}
    with fails("busy", "xvde is a disk of work's own", "name another, or leave it out"):
        await assign(world, "a", frontend_dev="xvde")
    assert world.state.store.assignments() == []
    await assign(world, "a", frontend_dev="xvdf")
    await assign(world, "b", "vault", frontend_dev="xvde")


async def test_an_assignment_is_refused_while_the_vms_own_disks_cannot_be_read(
    carrier: FakeCarrier, world: World, autojump_clock: Clock
) -> None:
    carrier.own = dict.fromkeys(("work", "vault"), DriverError("work.cfg cannot be read: too bad"))
    for vm in ("work", "vault"):
        with fails(
            "failed",
            f"which disks {vm} has of its own could not be looked at: work.cfg cannot be read",
        ):
            await assign(world, "a", vm, frontend_dev="xvde")
    assert world.state.store.assignments() == list(world.state.leases) == []
    await assign(world, "a")  # for which they do not matter


def test_the_disks_of_a_vms_own_are_known_by_its_configuration(tmp_path: Path) -> None:
    config = tmp_path / "work.cfg"
    config.write_text(
        'name = "work"\n'
        'disk = [ "phy:/dev/vg/root,xvda,w",\n'
        '  "format=raw,vdev=xvde,access=rw,target=/dev/xvdp" ]\n'
        'extra = "xvdk"\n'
    )
    assert own_frontends(config) == {"xvda", "xvde"}
    commented = """disk = [ 'phy:/dev/vg/a#1,xvda,w',  # not xvdb
    # 'phy:/dev/vg/c,xvdc,w',
    'phy:/dev/vg/d,xvdd,w' ]  # nor xvde
"""
    config.write_text(commented)
    assert own_frontends(config) == {"xvda", "xvdd"}


# One device and very many VMs


async def test_a_device_that_is_assigned_to_very_many_vms_is_listed_with_all_of_them(
    world: World, autojump_clock: Clock
) -> None:
    key = DeviceKey("block", "sys-usb", "a")
    vms = [f"vm{number:02}" for number in range(70)]
    for vm in vms:
        await world.state.store.assign(vm, key, {})
    (a, *_) = await world.client.list()
    assert [each["vm"] for each in a["assignments"]] == vms
    assert a["assignments_left_out"] == 0
    assert [a] == await world.client.list(vms=["vm69"])


async def test_what_does_not_fit_into_an_answer_of_a_device_s_assignments_is_counted(
    world: World, autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pedos_dom0.requests.listing.ASSIGNED_MAX", 1024)
    key = DeviceKey("block", "sys-usb", "a")
    for number in range(70):
        await world.state.store.assign(f"vm{number:02}", key, {})
    (a, *_) = await world.client.list()
    assert 1 < len(a["assignments"]) < 70
    assert len(a["assignments"]) + a["assignments_left_out"] == 70


@pytest.mark.parametrize("length", [2, 31])
async def test_a_device_that_is_assigned_to_all_vms_that_there_can_be_fits_into_a_frame(
    world: World, autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    letters = "abcdefghijklmnopqrstuvwxyz"
    vms = [f"{one}{other}".ljust(length, "x") for one in letters for other in letters]
    many = [
        attrs.evolve(Assignment(vm, DeviceKey("block", "sys-usb", device), {}), orphaned=True)
        for device in ("a", "b", "sda")
        for vm in vms
    ]
    monkeypatch.setattr(world.state.store, "all_assignments", lambda: many)
    listed: list[Any] = []
    more = True
    while more:
        after = f"sys-usb:{listed[-1]['device']}" if listed else None
        answer = await world.client.call("device.list", device_class="block", after=after)
        listed += answer["devices"]
        more = answer["more"]
    assert [each["device"] for each in listed] == ["a", "b", "sda", "sda1", "sda2"]
    for each in listed[:3]:
        assert len(each["assignments"]) + each["assignments_left_out"] == len(vms)
        assert each["orphans"] == [assigned["vm"] for assigned in each["assignments"]]


# VMs that are gone


def remove(world: World, vm: str) -> None:
    del world.driver.infos[vm]
    del world.driver.agents[vm]


async def removed(world: World, vm: str = "work") -> None:
    """While no service runs."""
    await world.kill()
    remove(world, vm)
    await world.start()


async def test_an_assignment_to_a_vm_that_is_gone_is_listed_as_such_and_can_be_removed(
    world: World, autojump_clock: Clock
) -> None:
    await assign(world, "a")
    await assign(world, "b")
    await removed(world)
    for listed in (await world.client.list(), await world.client.list(vms=["work"])):
        a, b, *_ = listed
        assert a["orphans"] == b["orphans"] == ["work"]
    answer = await world.client.detach("work", "sys-usb:a")
    assert answer["results"][0]["unassigned"]
    all_of_it = {"device_class": "block", "vm": "work", "backend": None, "device": None}
    answer = await world.client.call("device.detach", **all_of_it)
    assert [item["unassigned"] for item in answer["results"]] == [True]
    assert world.state.store.assignments() == []


async def test_dom0s_user_removes_what_is_only_assigned_without_a_rule_and_takes_no_disk_so(
    world: World, autojump_clock: Clock
) -> None:
    await assign(world, "a")
    await assign(world, "b", "vault")
    world.policy.set("device.list.*  *  *  *  allow\n")
    assert (await world.client.detach("work", "sys-usb:a"))["results"][0]["unassigned"]
    with fails("denied"):
        await world.client.detach("vault", "sys-usb:b")
    assert len(world.state.leases) == 1


async def test_a_rule_that_denies_it_holds_for_vms_that_there_are_alone(
    world: World, autojump_clock: Clock
) -> None:
    await assign(world, "a")
    world.policy.set("device.detach.*  *  *  *  deny\n" + POLICY)
    with fails("denied"):
        await world.client.detach("work", "sys-usb:a")
    await removed(world)
    assert (await world.client.detach("work", "sys-usb:a"))["results"][0]["unassigned"]


@pytest.mark.parametrize("how", ["while it runs", "while no service runs"])
async def test_a_new_vm_of_the_name_does_not_inherit_what_was_assigned(
    world: World, autojump_clock: Clock, how: str
) -> None:
    await assign(world, "a")
    if how == "while it runs":
        world.driver.change("work", None, "Halted")
        remove(world, "work")
        await trio.sleep(60)
    else:
        await removed(world)
        await trio.sleep(60)
    (noted,) = world.audit("orphaned")
    assert noted["devices"] == ["sys-usb:a"]
    world.vm("work", running=False)
    (a, *_) = await world.client.list()
    assert a["orphans"] == ["work"]
    with fails(
        "failed",
        "sys-usb:a was assigned to a VM of that name that was removed since",
        "qvm-device block attach --persistent work sys-usb:a if this one is to have it, "
        "or qvm-device block detach work sys-usb:a",
    ):
        await world.client.call("vm.start", vm="work")
    await world.restart()
    with fails("failed", "was assigned to a VM of that name"):
        await world.client.call("vm.start", vm="work")
    await assign(world, "a")
    assert (await world.client.call("vm.start", vm="work"))["attached"] == ["sys-usb:a"]


async def test_a_vm_whose_configuration_is_written_anew_is_the_same(
    world: World, autojump_clock: Clock
) -> None:
    await assign(world, "a")
    info = world.driver.infos.pop("work")
    world.driver.tell(info)
    await trio.sleep(1)
    world.driver.infos["work"] = info
    await trio.sleep(60)
    assert (await world.client.call("vm.start", vm="work"))["attached"] == ["sys-usb:a"]


async def test_a_vm_that_is_back_when_its_mark_would_be_written_keeps_what_it_has(
    world: World, autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its turn comes after a write that takes long."""
    await assign(world, "a")
    go = writes_wait(world, monkeypatch)
    info = world.driver.infos.pop("work")
    world.driver.tell(info)
    await trio.sleep(60)
    world.driver.infos["work"] = info
    go.set()
    await trio.sleep(60)
    assert not world.state.store.assignments("work")[0].orphaned
    assert not world.audit("orphaned")


async def test_a_vm_that_is_not_there_yet_when_the_service_starts_keeps_what_it_has(
    world: World, autojump_clock: Clock
) -> None:
    """The folder of its configuration is mounted a moment later."""
    await assign(world, "a")
    await world.kill()
    info = world.driver.infos.pop("work")
    await world.start()
    await trio.sleep(GONE_SECONDS / 2)
    world.driver.infos["work"] = info
    world.driver.tell(info)
    await trio.sleep(60)
    assert not world.state.store.assignments("work")[0].orphaned


async def test_a_vm_is_gone_only_when_all_that_could_know_it_was_looked_at(
    world: World, autojump_clock: Clock
) -> None:
    await assign(world, "a")
    world.driver.complete = False
    info = world.driver.infos.pop("work")
    world.driver.tell(info)
    await trio.sleep(1000)
    assert not world.audit("orphaned")
    (a, *_) = await world.client.list()
    assert a["orphans"] == []
    world.driver.complete = True
    await trio.sleep(GONE_SECONDS + 1)
    assert world.state.store.assignments("work")[0].orphaned


async def test_a_vm_that_goes_twice_has_as_long_to_come_back_each_time(
    world: World, autojump_clock: Clock
) -> None:
    await assign(world, "a")
    info = world.driver.infos["work"]
    for _ in range(3):
        del world.driver.infos["work"]
        world.driver.tell(info)
        await trio.sleep(GONE_SECONDS * 0.6)
        world.driver.infos["work"] = info
        world.driver.tell(info)
        await trio.sleep(0.1)
    assert not world.state.store.assignments("work")[0].orphaned


@pytest.mark.parametrize("given", ["two", "one", "the same"])
async def test_a_vm_that_is_removed_and_made_again_at_once_is_told_apart_by_its_uuid(
    world: World, autojump_clock: Clock, given: str
) -> None:
    """Within the time in which it does not count as removed."""
    world.vm("new", running=False)
    old = world.driver.infos["new"] = attrs.evolve(world.driver.infos["new"], uuid="0-1")
    world.driver.tell(old)
    await assign(world, "a", "new")
    del world.driver.infos["new"]
    world.driver.tell(old)
    await trio.sleep(1)
    uuid = {"two": "0-2", "one": None, "the same": "0-1"}[given]
    world.driver.infos["new"] = attrs.evolve(old, uuid=uuid)
    world.driver.tell(world.driver.infos["new"])
    await trio.sleep(60)
    # A VM without a UUID may be the old one, with a rewritten configuration.
    assert world.state.store.assignments("new")[0].orphaned == (given == "two")
    await assign(world, "a", "new")
    await trio.sleep(60)
    assert not world.state.store.assignments("new")[0].orphaned


def has_uuid(world: World, uuid: str | None, vm: str = "work") -> None:
    """The VM of that name is one with that UUID now."""
    world.driver.infos[vm] = attrs.evolve(world.driver.infos[vm], uuid=uuid)
    world.driver.tell(world.driver.infos[vm])


@pytest.mark.parametrize("known", ["when it was assigned", "later"])
async def test_a_vm_that_was_replaced_while_no_service_ran_does_not_inherit(
    world: World, autojump_clock: Clock, known: str
) -> None:
    if known == "later":
        await assign(world, "a")
    has_uuid(world, "0-1")
    await trio.testing.wait_all_tasks_blocked()
    if known != "later":
        await assign(world, "a")
    await world.kill()
    has_uuid(world, "0-2")
    await world.start()
    (noted,) = world.audit("orphaned")
    assert (noted["vm"], noted["devices"]) == ("work", ["sys-usb:a"])
    (a, *_) = await world.client.list()
    assert a["orphans"] == ["work"]
    with fails("failed", "sys-usb:a was assigned to a VM of that name that was removed since"):
        await world.client.call("vm.start", vm="work")
    await assign(world, "a")
    await world.restart()
    assert (await world.client.call("vm.start", vm="work"))["attached"] == ["sys-usb:a"]


@pytest.mark.parametrize("uuid", ["0-1", None])
async def test_a_vm_that_is_the_same_after_a_restart_of_the_service_has_what_it_had(
    world: World, autojump_clock: Clock, uuid: str | None
) -> None:
    """One whose UUID is not known now may be the same."""
    has_uuid(world, "0-1")
    await assign(world, "a")
    await world.kill()
    has_uuid(world, uuid)
    await world.start()
    await trio.sleep(60)
    assert (await world.client.call("vm.start", vm="work"))["attached"] == ["sys-usb:a"]
    assert not world.audit("orphaned")


async def test_another_vm_does_not_start_with_it_though_that_could_not_be_noted(
    world: World, autojump_clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    has_uuid(world, "0-1")
    await assign(world, "a")
    real = world.disk

    async def full(_work: Callable[[], Any]) -> NoReturn:
        raise StoreError(world.folder, "the disk is full", "make room")

    world.disk = full
    has_uuid(world, "0-2")
    await trio.testing.wait_all_tasks_blocked()
    assert "it cannot be noted whether what is assigned to work is its own still" in caplog.text
    (a, *_) = await world.client.list()
    assert a["orphans"] == ["work"]
    with fails("failed", "sys-usb:a was assigned to a VM of that name"):
        await world.client.call("vm.start", vm="work")
    world.disk = real
    await world.restart()
    assert world.state.store.assignments("work")[0].orphaned


async def test_a_vm_that_goes_while_another_folder_cannot_be_read_is_marked_in_the_end(
    world: World, autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when that happens while the mark waits for its turn."""
    await assign(world, "a")
    go = writes_wait(world, monkeypatch)
    world.driver.tell(world.driver.infos.pop("work"))
    await trio.sleep(60)
    world.driver.complete = False
    go.set()
    await trio.sleep(60)
    assert not world.state.store.assignments("work")[0].orphaned
    world.driver.complete = True
    await trio.sleep(60)
    assert world.state.store.assignments("work")[0].orphaned


async def test_a_new_vm_of_the_name_neither_sees_nor_undoes_what_the_old_one_was_assigned(
    world: World, autojump_clock: Clock
) -> None:
    await assign(world, "a")
    world.policy.set("device.*.*  *  @anyvm  @anyvm  allow\n" + POLICY)
    remove(world, "work")
    world.driver.tell(DomainInfo("work", None, "Halted"))
    await trio.sleep(60)
    new = world.vm("work", running=False)
    world.driver.change("work", 77, "Running")
    await trio.sleep(10)
    assert (await new.ask("device.list", device_class="block", vms=None, exclude=[]))[
        "devices"
    ] == []
    everything = {"device_class": "block", "vm": "work", "backend": None, "device": None}
    assert (await new.ask("device.detach", **everything))["results"] == []
    item = {**everything, "backend": "sys-usb", "device": "a"}
    with pytest.raises(CallError):
        await new.ask("device.detach", **item)
    (kept,) = world.state.store.assignments("work")
    assert kept.orphaned
    await assign(world, "a")
    (listed,) = (await new.ask("device.list", device_class="block", vms=None, exclude=[]))[
        "devices"
    ]
    assert listed["device"] == "a"
    (undone,) = (await new.ask("device.detach", **everything))["results"]
    assert undone["unassigned"]


# What explain says of a detach


async def explain_detach(world: World, **changes: str) -> tuple[str, str | None, str]:
    question = {"device_class": "block", "vm": "work", "backend": "sys-usb", "device": "a"}
    question |= {"verb": "detach", "source": "dom0", **changes}
    answer = await world.client.call("device.explain", **question)
    return answer["verdict"], answer["rule"], answer["reason"]


async def test_explain_allows_what_is_only_assigned_as_a_detach_does(
    world: World, autojump_clock: Clock
) -> None:
    await assign(world, "a")
    world.policy.set("device.detach.*  *  @adminvm  @anyvm  deny\n")
    assert (await explain_detach(world))[0] == "deny"
    with fails("denied"):
        await world.client.detach("work", "sys-usb:a")
    world.policy.set("")
    verdict, rule, reason = await explain_detach(world)
    assert (verdict, rule) == ("allow", None) and "only assigned" in reason
    assert (await explain_detach(world, source="vault"))[0] == "deny"
    assert (await explain_detach(world, verb="attach"))[0] == "deny"
    await world.client.detach("work", "sys-usb:a")
    assert (await explain_detach(world))[0] == "deny"  # nothing is assigned any more


async def test_explain_speaks_of_an_attached_device_as_the_rules_do(
    world: World, autojump_clock: Clock
) -> None:
    await assign(world, "a", "vault")
    world.policy.set("")
    assert (await explain_detach(world, vm="vault"))[0] == "deny"
    with fails("denied"):
        await world.client.detach("vault", "sys-usb:a")


async def test_explain_knows_what_is_assigned_to_a_removed_vm(
    world: World, autojump_clock: Clock
) -> None:
    await assign(world, "a")
    world.policy.set("device.*.*  *  @adminvm  @anyvm  deny\n")
    remove(world, "work")
    assert (await explain_detach(world))[0] == "allow"
    with fails("not_found", "no VM named 'work'"):
        await explain_detach(world, device="b")
    await world.client.detach("work", "sys-usb:a")


async def test_explain_denies_a_detach_that_a_rule_sends_elsewhere(
    world: World, autojump_clock: Clock
) -> None:
    await assign(world, "a", "vault")
    world.policy.set("device.detach.*  *  @adminvm  @anyvm  allow target=work\n")
    verdict, rule, reason = await explain_detach(world, vm="vault")
    assert verdict == "deny" and rule is not None and "sends it to work" in reason
    with fails("denied", "sends it to work"):
        await world.client.detach("vault", "sys-usb:a")
