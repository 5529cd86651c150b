"""A service that is killed and started again knows what to keep and what to undo."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from pedos_dom0.attachments.stop_timeout import STOP_TIMEOUT
from trio.abc import Clock

from tests.dom0.fakes import World, fails, hang, named

ATTACH_STEPS = ("attach.leased", "attach.exported", "attach.imported", "attach.committed")
DETACH_STEPS = ("detach.started", "detach.unimported", "detach.unexported", "detach.freed")


@pytest.fixture
async def world(tmp_path: Path, nursery: trio.Nursery) -> AsyncIterator[World]:
    world = World(tmp_path, nursery)
    world.vm("sys-usb", "stick", "other")
    world.vm("work")
    world.vm("vault")
    world.dom0_agent()
    await world.start()
    yield world
    await world.kill()


async def killed_in(world: World, step: str, operation: Any) -> None:
    """Starts `operation` and kills the service when it reaches `step`."""
    killed = world.kill_at(step)
    world.nursery.start_soon(_ignoring_the_end, operation)
    await killed.wait()
    await world.kill()


async def _ignoring_the_end(operation: Any) -> None:
    with fails("unavailable"):
        await operation("work", "sys-usb:stick")


@pytest.mark.parametrize("step", ATTACH_STEPS)
async def test_an_attach_that_was_killed_is_undone_or_stands(
    world: World, autojump_clock: Clock, step: str
) -> None:
    await killed_in(world, step, world.client.attach)
    await world.restart()
    if step == "attach.committed":
        assert (await world.client.attach("work", "sys-usb:stick"))["outcome"] == "already"
        await world.client.detach("work", "sys-usb:stick")
    world.assert_nothing_left()
    assert (await world.client.attach("work", "sys-usb:stick"))["outcome"] == "attached"


@pytest.mark.parametrize("step", DETACH_STEPS)
async def test_a_detach_that_was_killed_is_finished(
    world: World, autojump_clock: Clock, step: str
) -> None:
    await world.client.attach("work", "sys-usb:stick")
    await killed_in(world, step, world.client.detach)
    await world.restart()
    world.assert_nothing_left()
    assert (await world.client.attach("vault", "sys-usb:stick"))["outcome"] == "attached"


async def test_a_restart_keeps_a_live_attachment_untouched(
    world: World, autojump_clock: Clock
) -> None:
    first = await world.client.attach("work", "sys-usb:stick", persistent=True)
    for agent in world.driver.agents.values():
        agent.calls.clear()
    await world.restart()
    again = await world.client.attach("work", "sys-usb:stick")
    assert (again["outcome"], again["options"]) == ("already", first["options"])
    assert [agent.calls for agent in world.driver.agents.values()] == [[], [], [], []]
    _other, stick = await world.client.list()
    (to,) = stick["attachments"]
    assert (to["vm"], to["options"], to["left_over"]) == ("work", first["options"], None)
    assert len(world.audit("kept")) == 1


async def test_who_asks_right_after_a_restart_waits_for_the_journal(
    world: World, autojump_clock: Clock
) -> None:
    await world.client.attach("work", "sys-usb:stick")
    await world.kill()
    await world.nursery.start(world._run)
    # No agent is connected yet.
    assert (await world.client.attach("work", "sys-usb:stick"))["outcome"] == "already"


@pytest.mark.parametrize("vm", ["sys-usb", "work"])
@pytest.mark.parametrize("what", ["agent", "domain"])
async def test_what_died_meanwhile_is_ended(
    world: World, autojump_clock: Clock, vm: str, what: str
) -> None:
    await world.client.attach("work", "sys-usb:stick")
    await world.kill()
    if what == "agent":
        world.driver.agents[vm].kill()
    else:
        world.driver.die(vm)
        await world.driver.start(vm)
    await world.start()
    world.assert_nothing_left()
    assert (await world.client.attach("work", "sys-usb:stick"))["outcome"] == "attached"


async def test_a_device_that_was_unplugged_meanwhile_is_detached(
    world: World, autojump_clock: Clock
) -> None:
    await world.client.attach("work", "sys-usb:stick")
    await world.kill()
    del world.driver.agents["sys-usb"].devices["stick"]
    await world.start()
    world.assert_nothing_left()


@pytest.mark.parametrize("field", ["port", "peer", "device"])
async def test_an_export_that_is_not_the_journal_s_is_ended(
    world: World, autojump_clock: Clock, field: str
) -> None:
    await world.client.attach("work", "sys-usb:stick")
    await world.kill()
    (export,) = world.driver.agents["sys-usb"].exports.values()
    export[field] = "other" if field == "device" else export[field] + 1
    await world.start()
    world.assert_nothing_left()


@pytest.mark.parametrize("name", ["work", "sys-usb"])
async def test_an_agent_that_hangs_loses_nothing_by_a_restart_until_its_vm_has_ended(
    world: World, autojump_clock: Clock, name: str
) -> None:
    await world.client.attach("work", "sys-usb:stick")
    await world.kill()
    agent = world.driver.agents[name]
    agent.listens = False
    await world.start()
    began = trio.current_time()
    if name == "work":
        with fails("busy", "attached to work"):
            await world.client.attach("vault", "sys-usb:stick")
        with fails("busy", "whose agent does not say whether it is used"):
            await world.client.detach("work", "sys-usb:stick")
        assert trio.current_time() - began <= 31
    await trio.sleep(60)
    agent.listens = True
    await trio.sleep(10)
    assert [each.state for each in world.state.leases] == ["attached"]
    assert world.audit("ended") == []
    await world.kill()
    agent.listens = False
    await world.start()
    await trio.sleep(60)
    world.driver.change(name, None, "Halted")
    await trio.sleep(1)
    assert list(world.state.leases) == []


async def test_a_hanging_agent_gives_back_by_force_what_it_had_before_a_restart(
    world: World, autojump_clock: Clock
) -> None:
    await world.client.attach("work", "sys-usb:stick")
    await world.kill()
    world.driver.agents["work"].listens = False
    await world.start()
    await world.client.call("device.detach", **named("work", "sys-usb:stick"), force=True)
    assert (await world.client.attach("vault", "sys-usb:stick"))["outcome"] == "attached"
    world.driver.agents["work"].listens = True
    await trio.sleep(10)
    assert world.driver.agents["work"].imports == {}


@pytest.mark.parametrize("after", [1, 60])
async def test_what_is_unplugged_ends_although_its_target_hangs_since_before_a_restart(
    world: World, autojump_clock: Clock, after: float
) -> None:
    await world.client.attach("work", "sys-usb:stick")
    await world.kill()
    world.driver.agents["work"].listens = False
    await world.start()
    await trio.sleep(after)
    await world.driver.agents["sys-usb"].unplug("stick")
    await trio.sleep(60 if after < 30 else 1)
    assert list(world.state.leases) == []
    assert world.driver.agents["sys-usb"].exports == {}


async def test_other_vms_do_not_wait_for_one_that_does_not_come_back(
    world: World, autojump_clock: Clock
) -> None:
    world.vm("camera", "disk")
    await world.client.attach("work", "sys-usb:stick")
    await world.kill()
    world.driver.agents["work"].listens = False
    await world.start()
    began = trio.current_time()
    assert (await world.client.attach("vault", "camera:disk"))["outcome"] == "attached"
    assert trio.current_time() == began


async def test_leftovers_that_the_journal_does_not_know_are_stopped(
    world: World, autojump_clock: Clock
) -> None:
    await world.kill()
    attachment = "0123456789abcdef"
    common = {"attachment": attachment, "device_class": "block", "device": "stick"}
    common |= {"peer": 77, "port": 99, "read_only": False}
    world.driver.agents["sys-usb"].exports[attachment] = dict(common)
    imported = common | {"backend": "sys-usb", "frontend": "xvdi"}
    world.driver.agents["work"].imports[attachment] = imported
    await world.start()
    world.assert_nothing_left()
    assert world.driver.agents["sys-usb"].calls == ["export.stop"]


async def test_devices_are_shown_only_when_their_leftovers_are_gone(
    world: World, autojump_clock: Clock
) -> None:
    await world.kill()
    source = world.driver.agents["sys-usb"]
    attachment = "0123456789abcdef"
    source.exports[attachment] = {
        "attachment": attachment,
        "device_class": "block",
        "device": "stick",
        "peer": 77,
        "port": 99,
        "read_only": False,
    }
    source.on["export.stop"] = hang
    await world.start()
    assert world.state.agents.get("sys-usb") is None
    assert world.state.registry.items() == []
    # It does not release it, so it is disconnected, and may try again.
    await trio.sleep(STOP_TIMEOUT + 0.5)
    assert "leftover" in world.audit("disconnected")[0]["reason"]
    source.on.clear()
    await trio.sleep(2)
    world.assert_nothing_left()
    assert (await world.client.attach("work", "sys-usb:stick"))["outcome"] == "attached"


async def test_assignments_survive_a_restart(world: World, autojump_clock: Clock) -> None:
    await world.client.attach("work", "sys-usb:stick", persistent=True)
    await world.restart()
    _other, stick = await world.client.list()
    assert [to["vm"] for to in stick["assignments"]] == ["work"]


async def test_every_row_of_the_journal_can_be_loaded(world: World, autojump_clock: Clock) -> None:
    """Whatever state it has, and also if two rows claim one device."""
    await world.client.attach("work", "sys-usb:stick")
    (lease,) = world.state.leases
    store = world.state.store
    for digit, state in enumerate(("pending", "attached", "detaching")):
        await store.journal_put(attrs.evolve(lease, attachment=f"{digit:016x}", state=state))
    await world.restart()
    await trio.testing.wait_all_tasks_blocked()
    world.assert_nothing_left()
