"""watch.next: everything, then each change once; folded, it is always what a list shows."""

from __future__ import annotations

import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from pedos_cli.device_watch import TIMEOUT_S
from pedos_dom0.requests import view, watch
from pedos_dom0.tables.store import Store
from pedos_protocol.errors import CallError
from pedos_vchan.calling import TIMEOUT_MAX
from trio.abc import Clock

from tests.dom0.fakes import ALLOW_DOM0, World, fails
from tests.dom0.watcher import Watcher, told

RULES = """
device.attach.block  *  work     work     allow
device.detach.block  *  work     work     allow
device.list.block    *  work     work     allow
device.list.block    *  sys-usb  sys-usb  allow
"""
# Half of what the command line waits for an answer.
QUIET_S = TIMEOUT_S / 2
SECRET = "device.list.block  +sys-usb:free2  *  *  deny\n"


@pytest.fixture
async def world(tmp_path: Path, nursery: trio.Nursery) -> AsyncIterator[World]:
    world = World(tmp_path, nursery, RULES + ALLOW_DOM0)
    world.vm("sys-usb", "free1", "free2")
    world.vm("work", "own")
    world.vm("vault")
    world.vm("halted", running=False)
    world.dom0_agent()
    await world.start()
    yield world
    await world.kill()


async def test_everything_comes_first_and_then_each_change(
    world: World, autojump_clock: Clock
) -> None:
    watcher = Watcher(world)
    *before, ready = await watcher.next()
    assert told(before) == [
        *(("vm.present", vm) for vm in ("dom0", "halted", "sys-usb", "vault", "work")),
        ("device.present", "sys-usb:free1"),
        ("device.present", "sys-usb:free2"),
        ("device.present", "work:own"),
    ]
    assert ready["event"] == "ready"
    agent = world.driver.agents["sys-usb"]
    agent.plug("new")
    await agent.report()
    (added,) = await watcher.next()
    assert told([added]) == [("device.added", "sys-usb:new")]
    assert added["number"] == ready["number"] + 1
    await world.client.attach("work", "sys-usb:new")
    changed = await watcher.all()
    assert told(changed)[-1] == ("device.changed", "sys-usb:new")
    assert [to["vm"] for to in changed[-1]["device"]["attachments"]] == ["work"]
    await agent.unplug("new")
    assert told(await watcher.all())[-1] == ("device.removed", "sys-usb:new")


async def test_a_request_waits_for_the_next_change(world: World, autojump_clock: Clock) -> None:
    watcher = Watcher(world)
    await watcher.next()
    events: list[dict[str, Any]] = []

    async def wait() -> None:
        events.extend(await watcher.next())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.sleep(QUIET_S / 2)
        await world.driver.agents["sys-usb"].unplug("free1")
    assert told(events) == [("device.removed", "sys-usb:free1")]


@pytest.mark.parametrize("patience_s", [TIMEOUT_S, TIMEOUT_MAX])
@pytest.mark.parametrize("vm", [None, "work"])
async def test_a_quiet_system_says_so_in_half_the_time_that_the_caller_waits(
    world: World, autojump_clock: Clock, vm: str | None, patience_s: float
) -> None:
    watcher = Watcher(world, vm)
    watcher.patience_s = patience_s
    await watcher.next()
    before = trio.current_time()
    assert await watcher.next() == []
    assert trio.current_time() - before == pytest.approx(patience_s / 2)


async def test_vms_are_seen_to_start_to_stop_and_to_lose_their_agents(
    world: World, autojump_clock: Clock
) -> None:
    watcher = Watcher(world)
    await watcher.all()
    await world.client.call("vm.start", vm="halted")
    assert ("started", "halted") in told(await watcher.all())
    world.driver.agents["vault"].kill()
    world.driver.agents["vault"].listens = False
    assert ("agent lost", "vault") in told(await watcher.all())
    world.driver.agents["vault"].listens = True
    assert ("agent connected", "vault") in told(await watcher.all())
    world.driver.die("work")
    assert ("stopped", "work") in told(await watcher.all())
    del world.driver.infos["halted"]
    world.driver.tell(world.driver.infos["vault"])
    assert ("vm.removed", "halted") in told(await watcher.all())


async def test_of_a_class_means_of_devices_and_not_of_vms(
    world: World, autojump_clock: Clock
) -> None:
    watcher = Watcher(world, of="usb")
    assert {name for _, name in told(await watcher.next())} == {
        "dom0", "halted", "sys-usb", "vault", "work", "",
    }  # fmt: skip
    agent = world.driver.agents["sys-usb"]
    agent.plug("disk")
    agent.plug("1-2", device_class="usb")
    await agent.report()
    assert told(await watcher.next()) == [("device.added", "sys-usb:1-2")]
    with fails("usage", "not a device class"):
        await Watcher(world, of="floppy").next()


async def test_after_a_restart_of_the_service_the_numbers_are_new_ones(
    world: World, autojump_clock: Clock
) -> None:
    watcher = Watcher(world)
    await watcher.all()
    await world.kill()
    agent = world.driver.agents["sys-usb"]
    del agent.devices["free1"]
    agent.plug("new")
    await world.start()
    gap, *changes, ready = await watcher.next()
    assert (gap["event"], gap["reason"]) == ("gap", watch.NEW_NUMBERS)
    assert told(changes) == [("device.removed", "sys-usb:free1"), ("device.added", "sys-usb:new")]
    assert ready["event"] == "ready"


async def test_agents_that_are_not_back_yet_have_not_lost_their_devices(
    world: World, autojump_clock: Clock
) -> None:
    watcher, agent = Watcher(world), world.driver.agents["sys-usb"]
    await watcher.all()
    await world.kill()
    agent.listens = False
    await world.start()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_expect, watcher.next, [("gap", ""), ("ready", "")])
        await trio.sleep(1)
        agent.listens = True


async def test_an_assignment_to_a_vm_that_was_removed_is_shown_as_one_at_once(
    world: World, autojump_clock: Clock
) -> None:
    await world.client.attach("halted", "sys-usb:free1", persistent=True)
    watcher = Watcher(world)
    await watcher.all()
    del world.driver.infos["halted"]
    world.driver.tell(world.driver.infos["vault"])
    devices = [event["device"] for event in await watcher.next() if "device" in event]
    assert [each["orphans"] for each in devices] == [["halted"]]


async def test_who_does_not_ask_misses_nothing_that_is_still_there(
    world: World, autojump_clock: Clock
) -> None:
    watcher, agent = Watcher(world), world.driver.agents["sys-usb"]
    await watcher.all()
    for round_ in range(40):
        for number in range(100):
            agent.plug(f"disk{number}", description="x" * 128, size=round_)
        await agent.report()
    events = await watcher.all()
    assert sorted(told(events)) == sorted(
        ("device.added", f"sys-usb:disk{number}") for number in range(100)
    )


async def test_more_that_has_gone_than_is_remembered_is_one_gap(
    world: World, autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(view, "GONE_MAX", 3)
    slow, quick, agent = Watcher(world), Watcher(world), world.driver.agents["sys-usb"]
    for number in range(5):
        agent.plug(f"disk{number}")
    await agent.report()
    await slow.all()
    await quick.all()
    for number in range(5):
        await agent.unplug(f"disk{number}")
        assert told(await quick.next()) == [("device.removed", f"sys-usb:disk{number}")]
    events = await slow.all()
    assert [event["event"] for event in events] == ["gap", *["device.removed"] * 5, "ready"]
    assert events[0]["reason"] == watch.TOO_LATE
    assert slow.model.known == quick.model.known


async def test_more_that_goes_at_once_than_is_remembered_is_a_gap_also_for_who_waits(
    world: World, autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(view, "GONE_MAX", 3)
    watcher, agent = Watcher(world), world.driver.agents["sys-usb"]
    names = [f"disk{number}" for number in range(5)]
    for name in names:
        agent.plug(name)
    await agent.report()
    await watcher.all()
    gone = [("device.removed", f"sys-usb:{name}") for name in names]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_expect, watcher.next, [("gap", ""), *gone, ("ready", "")])
        await trio.testing.wait_all_tasks_blocked()
        for name in names:
            del agent.devices[name]
        await agent.report()


async def test_everything_is_told_to_the_end_however_much_has_gone_before(
    world: World, autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(view, "GONE_MAX", 1)
    agent = world.driver.agents["sys-usb"]
    for number in range(300):
        agent.plug(f"disk{number}", description="x" * 128, identity="y" * 128)
    await agent.report()
    other = Watcher(world)
    await other.all()
    for number in range(290, 300):
        await agent.unplug(f"disk{number}")
    await other.all()
    watcher = Watcher(world)
    answers = 0
    while not (events := await watcher.next()):
        answers += 1
        if answers == 1:
            await agent.unplug("disk1")  # it has been told of this one already
    assert answers > 1 and "gap" not in [event["event"] for event in events]
    await watcher.all()
    await other.all()
    assert watcher.model.known == other.model.known


async def test_a_vm_is_told_of_what_its_list_has_and_of_nothing_else(
    world: World, autojump_clock: Clock
) -> None:
    watcher = Watcher(world, "work")
    assert told(await watcher.next()) == [("device.present", "work:own"), ("ready", "")]
    number = watcher.model.question(None)["number"]
    agent = world.driver.agents["sys-usb"]
    agent.plug("new")
    await agent.report()
    await world.client.call("vm.start", vm="halted")
    assert await watcher.next() == []
    assert watcher.model.question(None)["number"] == number
    await world.client.attach("work", "sys-usb:free1")
    assert told(await watcher.all()) == [("device.added", "sys-usb:free1")]
    await world.client.detach("work", "sys-usb:free1")
    assert told(await watcher.all())[-1] == ("device.removed", "sys-usb:free1")
    source = Watcher(world, "sys-usb")
    await source.all()
    await world.client.attach("work", "sys-usb:free2")
    assert await source.all() == []  # nor to whom its own are lent


async def test_what_a_policy_hides_meanwhile_is_gone_for_those_it_hides_it_from(
    world: World, autojump_clock: Clock
) -> None:
    dom0, vm = Watcher(world), Watcher(world, "sys-usb")
    for watcher in (dom0, vm):
        await watcher.all()
    world.policy.set(SECRET + RULES + ALLOW_DOM0)
    for watcher in (dom0, vm):
        assert told(await watcher.next()) == [("device.removed", "sys-usb:free2")]
    agent = world.driver.agents["sys-usb"]
    agent.plug("free2", size=1)
    await agent.report()
    for watcher in (dom0, vm):
        assert await watcher.next() == []
    world.policy.set(RULES + ALLOW_DOM0)
    for watcher in (dom0, vm):
        assert told(await watcher.next()) == [("device.added", "sys-usb:free2")]


async def test_a_policy_that_changes_wakes_those_that_wait(
    world: World, autojump_clock: Clock
) -> None:
    watcher = Watcher(world, "sys-usb")
    await watcher.all()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_expect, watcher.next, [("device.removed", "sys-usb:free2")])
        await trio.testing.wait_all_tasks_blocked()
        began = trio.current_time()
        world.policy.set(SECRET + RULES + ALLOW_DOM0)
    assert trio.current_time() - began < 1


async def _expect(
    ask: Callable[[], Awaitable[list[dict[str, Any]]]], events: list[tuple[str, str]]
) -> None:
    assert told(await ask()) == events


async def test_a_vm_that_floods_costs_the_watchers_of_others_nothing(
    world: World, autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(view, "GONE_MAX", 3)
    monkeypatch.setattr(view, "UNSEEN_MAX", 3)
    watcher, everything = Watcher(world, "work"), Watcher(world)
    await watcher.all()
    await everything.all()
    before = watcher.model.question(None)
    looks = 0
    real = view.View._look_again

    async def counting(self: view.View) -> None:
        nonlocal looks
        looks += not self.sees_all
        await real(self)

    monkeypatch.setattr(view.View, "_look_again", counting)
    agent = world.driver.agents["sys-usb"]
    for round_ in range(20):
        for number in range(10):
            agent.plug(f"{round_}-{number}")
        await agent.report()
        agent.devices.clear()
        await agent.report()
    assert await watcher.next() == [] and looks == 0
    assert watcher.model.question(None) == before
    await everything.all()
    assert {name for name in everything.model.known if len(name) > 1} == {("block", "work", "own")}


async def test_the_watchers_of_a_vm_of_all_vms_and_of_dom0_are_bounded(
    world: World, autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "DOM0_WATCHERS_MAX", 1)
    monkeypatch.setattr(watch, "VM_WATCHERS_MAX", 2)
    monkeypatch.setattr(watch, "VMS_WATCHERS_MAX", 3)

    async def refused(vm: str | None) -> CallError:
        with pytest.raises(CallError) as caught:
            await Watcher(world, vm).next()
        return caught.value

    async with trio.open_nursery() as nursery:
        for vm in (None, "work", "work"):
            nursery.start_soon(Watcher(world, vm).all)
        await Watcher(world, "vault").next()  # which keeps its place for its next request
        await trio.testing.wait_all_tasks_blocked()
        assert (await refused(None)).message == "1 programs of dom0 watch already"
        error = await refused("work")
        assert (error.code, error.message) == ("quota", "2 programs of work watch already")
        error = await refused("sys-usb")  # is not told what other VMs do
        assert error.code == "failed" and "watch" not in error.message
        await Watcher(world, "vault").next()
        nursery.cancel_scope.cancel()
    await trio.testing.wait_all_tasks_blocked()
    await trio.sleep(watch.KEEP_SECONDS + 1)
    for vm in (None, "work", "sys-usb"):
        await Watcher(world, vm).next()


async def test_what_nobody_watches_is_forgotten_after_a_while(
    world: World, autojump_clock: Clock
) -> None:
    watcher, agent = Watcher(world), world.driver.agents["sys-usb"]
    await watcher.all()
    await trio.sleep(watch.KEEP_SECONDS / 2)
    await agent.unplug("free1")
    assert told(await watcher.next()) == [("device.removed", "sys-usb:free1")]
    await trio.sleep(watch.KEEP_SECONDS + 1)
    await agent.unplug("free2")
    assert told(await watcher.next()) == [
        ("gap", ""), ("device.removed", "sys-usb:free2"), ("ready", ""),
    ]  # fmt: skip


async def test_a_look_that_was_cut_off_is_made_again(
    world: World, autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(view, "STEP", 1)
    watcher, agent = Watcher(world, "work"), world.driver.agents["work"]
    for number in range(200):
        agent.plug(f"disk{number}")
    await agent.report()
    with trio.move_on_after(0.5) as scope:  # it takes the VM's turn for each
        await watcher.next()
    assert scope.cancelled_caught
    await watcher.all()
    assert len(watcher.model.known) == 201


async def test_a_change_looks_up_the_users_of_its_own_device_alone(
    world: World, autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def all_of_them(*_arguments: Any) -> Any:
        raise AssertionError("all assignments are read for one change")

    watcher = Watcher(world)
    await watcher.all()
    await world.client.attach("halted", "sys-usb:free1", persistent=True)
    monkeypatch.setattr(Store, "all_assignments", all_of_them)
    (changed,) = await watcher.next()
    assert [to["vm"] for to in changed["device"]["assignments"]] == ["halted"]


@pytest.mark.parametrize("seed", range(12))
async def test_folded_it_is_what_a_list_shows(
    world: World, autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    chance = random.Random(seed)
    monkeypatch.setattr(view, "GONE_MAX", chance.choice([1, 5, 256]))
    monkeypatch.setattr(view, "UNSEEN_MAX", chance.choice([1, 5, 4096]))
    monkeypatch.setattr(view, "STALE_MAX", chance.choice([0, 256]))
    monkeypatch.setattr(view, "ENVELOPE_MAX", chance.choice([1024, 64_500]))
    watchers: dict[str | None, Watcher] = {
        vm: Watcher(world, vm) for vm in (None, "work", "sys-usb")
    }

    async def check(vm: str | None) -> None:
        watcher = watchers[vm]
        await watcher.all()
        if vm is None:
            listed = await world.client.list()
            vms = (await world.client.call("vm.list"))["vms"]
        else:
            answer = await world.driver.agents[vm].ask("device.list", device_class="block")
            listed, vms = answer["devices"], []
        expected = {("block", each["backend"], each["device"]): each for each in listed}
        expected |= {(each["name"],): each for each in vms}
        assert watcher.model.known == expected

    for _ in range(25):
        await HISTORY[chance.choice(list(HISTORY))](world, chance)
        await trio.testing.wait_all_tasks_blocked()
        if chance.random() < 0.3:
            vm = chance.choice(list(watchers))
            if vm is None or world.driver.infos[vm].state == "Running":
                await check(vm)
    await check(None)


async def _plug(world: World, chance: random.Random) -> None:
    agent = world.driver.agents[chance.choice(["sys-usb", "work"])]
    for _ in range(chance.randint(1, 4)):
        agent.plug(f"sd{chance.randint(0, 9)}", size=chance.randint(1, 3))
    await _report(agent)


async def _unplug(world: World, chance: random.Random) -> None:
    agent = world.driver.agents[chance.choice(["sys-usb", "work"])]
    for name in chance.sample(list(agent.devices), min(len(agent.devices), 3)):
        del agent.devices[name]
    await _report(agent)


async def _report(agent: Any) -> None:
    if agent.peer is not None:
        await agent.report()


async def _attach(world: World, chance: random.Random) -> None:
    vm = chance.choice(["work", "vault", "halted"])
    device = chance.choice(["free1", "free2", "sd1", "sd2"])
    persistent = vm == "halted" or chance.random() < 0.3
    with contextlib.suppress(CallError):  # it is not there, or in use
        await world.client.attach(vm, f"sys-usb:{device}", persistent=persistent)


async def _detach(world: World, chance: random.Random) -> None:
    vm = chance.choice(["work", "vault", "halted"])
    with contextlib.suppress(CallError):  # it has none
        await world.client.call("device.detach", device_class="block", vm=vm)


async def _die(world: World, chance: random.Random) -> None:
    vm = chance.choice(["sys-usb", "work", "vault"])
    if world.driver.infos[vm].state == "Running":
        world.driver.die(vm)


async def _start(world: World, chance: random.Random) -> None:
    for vm in ("sys-usb", "work", "vault"):
        if world.driver.infos[vm].state == "Halted":
            with contextlib.suppress(CallError):  # a device that is assigned to it is not there
                await world.client.call("vm.start", vm=vm)


async def _policy(world: World, chance: random.Random) -> None:
    world.policy.set(chance.choice(["", SECRET]) + chance.choice(["", RULES]) + ALLOW_DOM0)


async def _restart(world: World, _chance: random.Random) -> None:
    await world.restart()


HISTORY: dict[str, Callable[[World, random.Random], Awaitable[None]]] = {
    "plug": _plug,
    "unplug": _unplug,
    "attach": _attach,
    "detach": _detach,
    "die": _die,
    "start": _start,
    "policy": _policy,
    "restart": _restart,
}
