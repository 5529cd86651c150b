"""What watch.next costs dom0's service when a VM changes many devices at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import trio
from pedos_dom0.access.callers import Caller
from pedos_dom0.requests.listing import STEP, Listing
from pedos_dom0.tables.device_set import DeviceKey
from pedos_protocol.fields import PAGE_DEVICES_MAX
from trio.abc import Clock, Instrument

from tests.dom0.fakes import ALLOW_DOM0, World
from tests.dom0.watcher import Watcher, told

VMS = [f"vm{number}" for number in range(8)]
DEVICES = [f"disk{number}" for number in range(100)]
RULES = "".join(f"device.list.block  *  {vm}  {vm}  allow\n" for vm in VMS)


@pytest.fixture
async def world(tmp_path: Path, nursery: trio.Nursery) -> AsyncIterator[World]:
    world = World(tmp_path, nursery, RULES + ALLOW_DOM0)
    world.vm("sys-usb", *DEVICES)
    for vm in VMS:
        world.vm(vm)
    world.dom0_agent()
    await world.start()
    yield world
    await world.kill()


async def test_who_is_concerned_by_a_change_is_found_once_however_many_vms_watch(
    world: World, autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.client.attach(VMS[0], f"sys-usb:{DEVICES[0]}", persistent=True)
    watchers = {vm: Watcher(world, vm) for vm in VMS}
    for watcher in watchers.values():
        await watcher.all()
    asked: Counter[DeviceKey] = Counter()
    assignments_of = world.state.store.assignments_of

    def counted(key: DeviceKey, identity: str = "") -> object:
        asked[key] += 1
        return assignments_of(key, identity)

    monkeypatch.setattr(world.state.store, "assignments_of", counted)
    agent = world.driver.agents["sys-usb"]
    for device in DEVICES:
        agent.plug(device, description="another")
    await agent.report()
    # Once for all that watch, once for what is attached by itself, and if anything is, once more.
    assert len(asked) == len(DEVICES) and max(asked.values()) <= 3 < len(VMS)
    assert told(await watchers[VMS[0]].next()) == [("device.changed", f"sys-usb:{DEVICES[0]}")]
    assert await watchers[VMS[1]].next() == []


async def test_devices_are_not_sorted_when_all_are_looked_at(
    world: World, autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared = 0
    is_less = DeviceKey.__lt__

    def counted(one: DeviceKey, other: DeviceKey) -> bool:
        nonlocal compared
        compared += 1
        return is_less(one, other)

    monkeypatch.setattr(DeviceKey, "__lt__", counted)
    assert len(await Watcher(world).next()) > len(DEVICES)
    assert compared == 0


async def test_all_devices_are_not_gathered_in_one_step(
    world: World, autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither at the first look nor at another one, which finds what was shown unchanged."""
    gathered: list[DeviceKey] = []
    keys_for = Listing.keys_for

    def counted(listing: Listing, caller: Caller) -> Iterator[DeviceKey]:
        for key in keys_for(listing, caller):
            gathered.append(key)
            yield key

    class Steps(Instrument):
        most = before = 0

        def before_task_step(self, task: object) -> None:
            self.most = max(self.most, len(gathered) - self.before)
            self.before = len(gathered)

    monkeypatch.setattr(Listing, "keys_for", counted)
    for number in range(4 * STEP):
        world.driver.agents["sys-usb"].plug(f"more{number}")
    await world.driver.agents["sys-usb"].report()
    watcher = Watcher(world)
    steps = Steps()
    trio.lowlevel.add_instrument(steps)
    await watcher.all()
    world.vm("another")  # so the facts are others, and everything is looked at again
    await watcher.all()
    trio.lowlevel.remove_instrument(steps)
    assert len(gathered) > 8 * STEP
    assert steps.most <= 2 * STEP


async def test_an_answer_has_no_more_devices_than_a_page_of_a_list(
    world: World, autojump_clock: Clock
) -> None:
    agent = world.driver.agents["sys-usb"]
    for number in range(2 * PAGE_DEVICES_MAX):
        agent.plug(f"more{number}")
    await agent.report()
    watcher = Watcher(world)
    answers = [await watcher.ask()]
    watcher.model.take(answers[0])
    while not answers[-1]["complete"]:
        answers.append(await watcher.ask())
        watcher.model.take(answers[-1])
    sizes = [len(answer["devices"]) + len(answer["vms"]) for answer in answers]
    assert max(sizes) == PAGE_DEVICES_MAX
    assert len(watcher.model.known) == sum(sizes)
