"""Lists of thousands of assignments are made in small steps, and in the same order as ever."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio
from pedos_dom0.requests import assignments, listing
from pedos_dom0.requests.listing import STEP
from pedos_dom0.tables.assignment import Assignment
from pedos_dom0.tables.device_set import DeviceKey
from pedos_dom0.tasks.gradually import PORTION
from pedos_protocol.names import natural_key
from trio.abc import Clock, Instrument

from tests.dom0.fakes import World

VMS, EACH = 30, 60


@pytest.fixture
async def world(tmp_path: Path, nursery: trio.Nursery) -> AsyncIterator[World]:
    world = World(tmp_path, nursery)
    world.vm("sys-usb")
    world.dom0_agent()
    for number in range(VMS):
        world.driver.add(f"vm{number}", running=False)
    await world.start()
    yield world
    await world.kill()


def assign(world: World, port: str) -> None:
    """`port` may have the number of the VM in it."""
    for vm in range(VMS):
        for number in range(EACH):
            key = DeviceKey("block", "sys-usb", port.format(vm=vm, number=number))
            world.state.store._show(Assignment(f"vm{vm}", key, {}))


class Steps(Instrument):
    """The most that one step of a task has done of what is counted."""

    count = most = before = 0

    def counted(self, text: str) -> tuple[str, str]:
        self.count += 1
        return natural_key(text)

    def before_task_step(self, task: object) -> None:
        self.most = max(self.most, self.count - self.before)
        self.before = self.count


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    steps = Steps()
    for module in (listing, assignments):
        monkeypatch.setattr(module, "natural_key", steps.counted)
    return steps


async def pages(world: World, method: str, what: str, after: Any) -> list[Any]:
    found: list[Any] = []
    more = True
    while more:
        last = after(found[-1]) if found else None
        answer = await world.client.call(method, device_class="block", after=last)
        found += answer[what]
        more = answer["more"]
    return found


@pytest.mark.parametrize("port", ["d{vm}-{number}", "d{number}"])
async def test_no_step_of_a_list_sorts_all_that_is_assigned(
    world: World, autojump_clock: Clock, steps: Steps, port: str
) -> None:
    assign(world, port)
    trio.lowlevel.add_instrument(steps)
    found = await pages(world, "device.list", "devices", lambda each: f"sys-usb:{each['device']}")
    trio.lowlevel.remove_instrument(steps)
    names = [each["device"] for each in found]
    assert names == sorted(names, key=natural_key)
    assert len(names) == len(set(names)) == (EACH if port == "d{number}" else VMS * EACH)
    assert {len(each["assignments"]) for each in found} == {VMS * EACH // len(names)}
    assert steps.most <= PORTION + STEP


async def test_no_step_of_a_list_of_assignments_sorts_all(
    world: World, autojump_clock: Clock, steps: Steps
) -> None:
    assign(world, "d{number}")
    keys = ("vm", "backend", "device", "identity")
    trio.lowlevel.add_instrument(steps)
    found = await pages(
        world, "device.assignments", "assignments", lambda each: {key: each[key] for key in keys}
    )
    trio.lowlevel.remove_instrument(steps)
    places = [(natural_key(each["vm"]), natural_key(each["device"])) for each in found]
    assert places == sorted(places)
    assert len(set(places)) == VMS * EACH
    assert steps.most <= 4 * PORTION


async def test_a_step_looks_at_few_devices_that_many_vms_are_to_have(
    world: World, autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    assign(world, "d{number}")
    sizes = []
    shown_to = listing.Listing.shown_to

    def counted(self: Any, caller: Any, keys: Any, uses: Any) -> Any:
        sizes.append(sum(len(uses.assigned[key]) for key in keys))
        return shown_to(self, caller, keys, uses)

    monkeypatch.setattr(listing.Listing, "shown_to", counted)
    assert len(await world.client.list()) > 0
    assert max(sizes) <= STEP + VMS
