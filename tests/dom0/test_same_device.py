"""A grant is for the device of the decision, at commit and ever after, and for no other."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio
from pedos_dom0.tables.leases import broken_by
from pedos_protocol.errors import CallError
from trio.abc import Clock

from tests.dom0.fakes import World, fails, named, yes

POLICY = """
device.attach.block  +sys-usb:*:EVIL*  *          *        deny
device.attach.block  +sys-usb:asked:*  @adminvm   *        ask
device.*.*           *                 @adminvm   @anyvm   allow
"""
GOOD, EVIL = {"identity": "GOOD::"}, {"identity": "EVIL::"}
FIRST, SECOND = {"instance": "life-1"}, {"instance": "life-2"}
# How another device under the id of the granted one may differ.
OTHERS = [(GOOD, EVIL), (GOOD | FIRST, GOOD | SECOND), (GOOD | FIRST, EVIL | FIRST)]
others = pytest.mark.parametrize(("first", "second"), OTHERS)


@pytest.fixture
async def world(tmp_path: Path, nursery: trio.Nursery) -> AsyncIterator[World]:
    world = World(tmp_path, nursery, POLICY)
    world.vm("sys-usb")
    world.vm("work")
    world.vm("vault", running=False)
    world.dom0_agent()
    await world.start()
    yield world
    await world.kill()


async def swap(world: World, device: str = "stick", **fields: Any) -> None:
    """Another device under the same id, and a source that says so."""
    agent = world.driver.agents["sys-usb"]
    agent.plug(device, **fields)
    await agent.report()


@others
async def test_a_device_that_is_swapped_while_the_source_is_asked_is_not_attached(
    world: World, autojump_clock: Clock, first: dict[str, str], second: dict[str, str]
) -> None:
    await swap(world, **first)

    async def answer_late(_params: Any) -> None:
        await swap(world, **second)

    world.driver.agents["sys-usb"].on["export.start"] = answer_late
    with fails("failed", "could not be attached to work"):
        await world.client.attach("work", "sys-usb:stick")
    assert "import.start" not in world.driver.agents["work"].calls, "it never gets there"
    world.assert_nothing_left()


@others
@pytest.mark.parametrize("step", ["attach.exported", "attach.imported", "attach.committed"])
async def test_a_device_that_is_swapped_at_any_step_does_not_stay(
    world: World,
    autojump_clock: Clock,
    first: dict[str, str],
    second: dict[str, str],
    step: str,
) -> None:
    await swap(world, **first)

    async def reach(name: str) -> None:
        if name == step:
            await swap(world, **second)

    world.reach = reach
    with fails("failed", "could not be attached to work"):
        await world.client.attach("work", "sys-usb:stick")
    world.assert_nothing_left()


@others
async def test_a_changed_identity_of_what_is_lent_ends_the_attachment(
    world: World, autojump_clock: Clock, first: dict[str, str], second: dict[str, str]
) -> None:
    await swap(world, **first)
    await world.client.attach("work", "sys-usb:stick")
    await swap(world, **first)
    assert len(world.state.leases) == 1, "another report of the same is no change"
    await swap(world, **second)
    await trio.testing.wait_all_tasks_blocked()
    world.assert_nothing_left()


@others
async def test_the_journal_keeps_which_device_was_granted_over_a_restart_of_the_service(
    world: World, autojump_clock: Clock, first: dict[str, str], second: dict[str, str]
) -> None:
    await swap(world, **first)
    await world.client.attach("work", "sys-usb:stick")
    await world.restart()
    await trio.sleep(1)
    assert len(world.state.leases) == 1
    await world.kill()
    world.driver.agents["sys-usb"].plug("stick", **second)
    await world.start()
    await trio.sleep(60)
    world.assert_nothing_left()
    (ended,) = world.audit("ended")
    assert "another" in ended["reason"]


@others
async def test_an_agent_that_comes_back_with_another_device_does_not_keep_the_attachment(
    world: World, autojump_clock: Clock, first: dict[str, str], second: dict[str, str]
) -> None:
    await swap(world, **first)
    await world.client.attach("work", "sys-usb:stick")
    agent = world.driver.agents["sys-usb"]
    assert agent.peer is not None
    agent.plug("stick", **second)
    agent.peer.close()
    await trio.sleep(60)
    world.assert_nothing_left()


async def test_an_export_of_another_device_is_not_the_journals(
    world: World, autojump_clock: Clock
) -> None:
    await swap(world, **GOOD, **FIRST)
    await world.client.attach("work", "sys-usb:stick")
    await world.kill()
    (export,) = world.driver.agents["sys-usb"].exports.values()
    export.update(SECOND)
    await world.start()
    await trio.sleep(60)
    world.assert_nothing_left()


@others
async def test_a_start_does_not_bring_up_a_device_that_was_swapped_meanwhile(
    world: World, autojump_clock: Clock, first: dict[str, str], second: dict[str, str]
) -> None:
    await swap(world, **first)
    await world.client.attach("vault", "sys-usb:stick", persistent=True)

    async def reach(name: str) -> None:
        if name == "start.started":
            await swap(world, **second)

    world.reach = reach
    with fails("failed", "vault was stopped again"):
        await world.client.call("vm.start", vm="vault")
    world.assert_nothing_left()


async def test_a_yes_is_for_the_device_that_was_asked_about_and_not_for_its_look_alike(
    world: World, autojump_clock: Clock
) -> None:
    """A file that was removed and made anew while dom0's user thought: all but one thing is as it
    was, and the source says which."""
    await swap(world, "asked", **GOOD, **FIRST)

    async def think(_params: Any) -> Any:
        await swap(world, "asked", **GOOD, **SECOND)
        return yes("work")

    async with world.client.prompter(think):
        with fails("denied", "it is another device now than the one"):
            await world.client.attach("work", "sys-usb:asked")
    world.assert_nothing_left()


async def test_the_source_is_told_which_one_was_decided_about(
    world: World, autojump_clock: Clock
) -> None:
    told = []

    async def note(params: dict[str, Any]) -> None:
        told.append(params["instance"])

    world.driver.agents["sys-usb"].on["export.start"] = note
    await swap(world, **GOOD, **FIRST)
    await world.client.attach("work", "sys-usb:stick")
    assert told == ["life-1"]


async def test_who_formats_a_borrowed_disk_keeps_it(world: World, autojump_clock: Clock) -> None:
    """The same disk has another file system's UUID then."""
    await swap(world, identity="::4ef6-5884", **FIRST)
    await world.client.attach("work", "sys-usb:stick")
    await swap(world, identity="::0000-0001", **FIRST)
    await trio.testing.wait_all_tasks_blocked()
    (lease,) = world.state.leases
    device = world.state.registry.get(lease.key)
    assert device is not None and broken_by(lease, device) is None
    # Where the source cannot tell instances apart, it may be another disk.
    await swap(world, identity="::0000-0002")
    await trio.testing.wait_all_tasks_blocked()
    world.assert_nothing_left()


async def test_no_grant_ends_because_its_source_cannot_tell_just_now_what_the_device_is(
    world: World, autojump_clock: Clock
) -> None:
    await swap(world, **GOOD, **FIRST)
    await world.client.attach("work", "sys-usb:stick")
    for unclear in ({"identity": ""} | FIRST, {"identity": "", "instance": ""}):
        await swap(world, **unclear, stale="I/O error")
        await trio.testing.wait_all_tasks_blocked()
        (lease,) = world.state.leases
        device = world.state.registry.get(lease.key)
        assert device is not None and broken_by(lease, device) is None
    await swap(world, **GOOD, **FIRST)
    await trio.testing.wait_all_tasks_blocked()
    assert len(list(world.state.leases)) == 1


@pytest.mark.parametrize("then", [GOOD | SECOND | {"stale": "I/O error"}, EVIL | FIRST])
async def test_a_grant_ends_as_soon_as_its_source_says_that_it_is_another_device(
    world: World, autojump_clock: Clock, then: dict[str, str]
) -> None:
    await swap(world, **GOOD, **FIRST)
    await world.client.attach("work", "sys-usb:stick")
    await swap(world, identity="", stale="I/O error", **FIRST)
    await swap(world, **then)
    await trio.testing.wait_all_tasks_blocked()
    world.assert_nothing_left()


async def test_what_was_clicked_is_what_is_attached(world: World, autojump_clock: Clock) -> None:
    """Who chose a device in a list names the identity that it had there."""
    await swap(world, **GOOD)
    attach, vm = world.client.attach, world.driver.agents["work"]
    assert (await attach("work", "sys-usb:stick", identity="GOOD::"))["outcome"] == "attached"
    # The answer is about the named device and not about what the VM has under that name.
    with fails("not_found", "sys-usb:stick is 'GOOD::' by now, and not 'OTHER::'", "list sys-usb"):
        await attach("work", "sys-usb:stick", identity="OTHER::")
    await world.client.detach("work", "sys-usb:stick")
    await swap(world, identity="OTHER::")
    with fails("not_found", "'OTHER::' by now, and not 'GOOD::'"):
        await attach("work", "sys-usb:stick", identity="GOOD::")
    await swap(world, identity="")
    with fails("not_found", "is a device without an identity by now, and not 'GOOD::'"):
        await attach("work", "sys-usb:stick", identity="GOOD::")
    assert (await attach("work", "sys-usb:stick", identity=""))["outcome"] == "attached"
    await world.client.detach("work", "sys-usb:stick")
    # For a VM that guesses it is as if there were no device.
    world.policy.set("device.attach.block  *  work  work  allow")
    denied = []
    for device in ("sys-usb:stick", "sys-usb:nothing"):
        with pytest.raises(CallError) as refused:
            await vm.ask("device.attach", **named("work", device), identity="GUESS::")
        denied.append((refused.value.code, refused.value.message.replace(device, "DEVICE")))
    assert denied[0][0] == "denied"
    assert len({message.split(" (")[0] for _, message in denied}) == 1


async def test_what_was_clicked_is_what_is_detached(world: World, autojump_clock: Clock) -> None:
    async def detach(identity: str, **more: Any) -> dict[str, Any]:
        of = {**named("work", "sys-usb:stick"), **more}
        return await world.client.call("device.detach", **of, identity=identity)

    await swap(world, **GOOD)
    await world.client.attach("work", "sys-usb:stick")
    for other in ("OTHER::", ""):
        with fails("not_found", f"sys-usb:stick is 'GOOD::' by now, and not '{other}'"):
            await detach(other)
        with fails("not_found", "by now"):
            await detach(other, force=True)
    assert len(world.state.leases.of_vm("work")) == 1
    assert world.audit("detach")[-1]["outcome"].startswith("not_found: sys-usb:stick is 'GOOD::'")
    assert (await detach("GOOD::"))["results"][0]["detached"]
    world.assert_nothing_left()
    with fails("usage", "an identity is that of one device"):
        await detach("GOOD::", backend=None, device=None)


async def test_a_disk_that_was_formatted_meanwhile_is_what_was_clicked(
    world: World, autojump_clock: Clock
) -> None:
    before, after, stick = "::OLD", "::NEW", named("work", "sys-usb:stick")
    for clicked in (before, after):
        await swap(world, identity=before, **FIRST)
        await world.client.attach("work", "sys-usb:stick")
        await swap(world, identity=after, **FIRST)
        with fails("not_found", "and not '::OTHER'"):
            await world.client.call("device.detach", **stick, identity="::OTHER")
        answer = await world.client.call("device.detach", **stick, identity=clicked)
        assert answer["results"][0]["detached"]


async def test_what_is_only_assigned_is_taken_away_if_no_other_device_is_there(
    world: World, autojump_clock: Clock
) -> None:
    stick = named("vault", "sys-usb:stick")
    for there, expected in ((EVIL, "not_found"), (GOOD, None), (None, None)):
        await swap(world, **GOOD)
        await world.client.attach("vault", "sys-usb:stick", persistent=True)
        if there is None:
            await world.driver.agents["sys-usb"].unplug("stick")
        else:
            await swap(world, **there)
        if expected is not None:
            with fails(expected, "is 'EVIL::' by now, and not 'GOOD::'"):
                await world.client.call("device.detach", **stick, **GOOD)
            continue
        answer = await world.client.call("device.detach", **stick, **GOOD)
        assert answer["results"][0]["unassigned"]
        assert world.state.store.assignments("vault") == []


async def test_a_vm_that_guesses_what_another_vm_has_learns_nothing(
    world: World, autojump_clock: Clock
) -> None:
    world.vm("spy")
    await world.restart()
    world.policy.set("device.detach.block  *  @anyvm  @anyvm  allow\n" + POLICY)
    await swap(world, **GOOD)
    await world.client.attach("work", "sys-usb:stick")
    refusals = []
    for device in ("sys-usb:stick", "sys-usb:nothing"):
        with pytest.raises(CallError) as refused:
            await world.driver.agents["spy"].ask(
                "device.detach", **named("work", device), identity="GUESS::"
            )
        refusals.append((refused.value.code, refused.value.message.replace(device, "DEVICE")))
    assert refusals[0] == refusals[1]
    with fails("not_found", "is 'GOOD::' by now"):  # the VM that has it may know what it has
        await world.driver.agents["work"].ask(
            "device.detach", **named("work", "sys-usb:stick"), identity="GUESS::"
        )
    assert len(world.state.leases.of_vm("work")) == 1


async def test_a_device_that_is_swapped_while_dom0s_user_thinks_is_not_what_was_clicked(
    world: World, autojump_clock: Clock
) -> None:
    async def answer_late(_params: Any) -> dict[str, Any]:
        await swap(world, "asked", identity="OTHER::")
        return yes("work")

    await swap(world, "asked", **GOOD)
    async with world.client.prompter(answer_late):
        with fails("not_found", "is 'OTHER::' by now, and not 'GOOD::'"):
            await world.client.attach("work", "sys-usb:asked", identity="GOOD::")
    world.assert_nothing_left()
