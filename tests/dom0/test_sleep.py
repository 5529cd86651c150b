"""The machine sleeps: what does not survive that is detached before it and attached again after it,
by identity, whatever fails or is killed meanwhile."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from pedos_dom0.attachments.stop_timeout import STOP_TIMEOUT
from pedos_dom0.drivers.carrier import CarriedByAgents
from pedos_dom0.tables.store import StoreError
from pedos_protocol.errors import CallError
from trio.abc import Clock

from tests.dom0.fakes import ALLOW_DOM0, FakeAgent, Params, World, fails, named

STICK, OTHER = "sys-usb:1-2", "sys-usb:1-3"
SERIAL = "0951:1666:S1:u080650"


@pytest.fixture
async def world(tmp_path: Path, nursery: trio.Nursery) -> AsyncIterator[World]:
    """sys-usb has two sticks and a disk, work and vault run."""
    world = World(tmp_path, nursery)
    world.driver.carriers = {**world.driver.carriers, "usb": CarriedByAgents()}
    usb = world.vm("sys-usb", "sda")
    usb.plug("1-2", "usb", identity=SERIAL, instance="7")
    usb.plug("1-3", "usb", identity="0951:1666:S2:u080650", instance="8")
    world.vm("work")
    world.vm("vault")
    world.dom0_agent()
    await world.start()
    yield world
    await world.kill()


async def assign(world: World, vm: str, device: str = STICK) -> None:
    more = {"identity": None, "match": "port", "mode": "auto-attach"}
    await world.client.call("device.assign", **named(vm, device, "usb"), **more)
    await trio.testing.wait_all_tasks_blocked()


def usb(world: World) -> FakeAgent:
    return world.driver.agents["sys-usb"]


async def attach(world: World, vm: str = "work", device: str = STICK) -> None:
    await world.client.call("device.attach", **named(vm, device, "usb"))


async def suspend(world: World) -> list[Any]:
    return told(await world.client.call("devices.suspend"))


async def resume(world: World) -> list[Any]:
    return told(await world.client.call("devices.resume"))


def told(answer: Params) -> list[Any]:
    """Device, VM, and the beginning of what failed, of each."""
    return [
        (
            f"{each['backend']}:{each['device']}",
            each["vm"],
            each["error"] and (each["error"]["code"], each["error"]["message"]),
            each["again"],
        )
        for each in answer["results"]
    ]


def has(world: World) -> list[tuple[str, str]]:
    return sorted((str(lease.key), lease.vm) for lease in world.state.leases)


def rows(world: World) -> list[str]:
    return [str(row.key) for row in world.state.store.suspended()]


async def test_usb_devices_are_away_in_the_sleep_and_back_after_it(
    world: World, autojump_clock: Clock
) -> None:
    await attach(world)
    await attach(world, "vault", OTHER)
    await world.client.attach("work", "sys-usb:sda")
    assert await suspend(world) == [(OTHER, "vault", None, False), (STICK, "work", None, False)]
    assert has(world) == [("sys-usb:sda", "work")]
    assert await resume(world) == [(OTHER, "vault", None, False), (STICK, "work", None, False)]
    assert has(world) == [(STICK, "work"), (OTHER, "vault"), ("sys-usb:sda", "work")]
    assert rows(world) == []
    assert [each["reason"] for each in world.audit("ended")] == [
        "the machine is going to sleep",
        "the machine is going to sleep",
    ]
    for event, outcome in (("suspend", "detached"), ("resume", "attached")):
        lines = world.audit(event)
        assert sorted((each["device"], each["vm"], each["outcome"]) for each in lines) == [
            (STICK, "work", outcome),
            (OTHER, "vault", outcome),
        ]


async def test_the_target_is_asked_first_and_may_refuse(
    world: World, autojump_clock: Clock
) -> None:
    async def refuse(params: Params) -> Params:
        assert params["may_refuse"]
        raise CallError("busy", "1-2 is in use here: its disk sda is mounted")

    await attach(world)
    await attach(world, "vault", OTHER)
    world.driver.agents["work"].on["import.stop"] = refuse
    vault, kept = await suspend(world)
    assert vault == (OTHER, "vault", None, False)
    assert kept[:2] == (STICK, "work")
    assert kept[2][0] == "busy"
    assert "its disk sda is mounted" in kept[2][1]
    assert (has(world), rows(world)) == ([(STICK, "work")], [OTHER])
    assert await resume(world) == [(OTHER, "vault", None, False)]
    assert has(world) == [(STICK, "work"), (OTHER, "vault")]


async def test_a_vm_that_is_paused_or_hangs_keeps_its_device_and_delays_no_other(
    world: World, autojump_clock: Clock
) -> None:
    async def hang(_params: Params) -> Params:
        await trio.sleep_forever()
        raise AssertionError

    await attach(world)
    await attach(world, "vault", OTHER)
    world.driver.agents["work"].on["import.stop"] = hang
    began = trio.current_time()
    with trio.move_on_after(5):  # as the unit does
        await suspend(world)
    assert has(world) == [(STICK, "work")]
    await trio.sleep(STOP_TIMEOUT)
    assert trio.current_time() - began < 2 * STOP_TIMEOUT
    assert rows(world) == [OTHER]
    del world.driver.agents["work"].on["import.stop"]
    await resume(world)
    assert has(world) == [(STICK, "work"), (OTHER, "vault")]


async def test_a_detach_that_is_not_done_when_the_machine_wakes_is_waited_for(
    world: World, autojump_clock: Clock
) -> None:
    go_on = trio.Event()

    async def late(_params: Params) -> None:
        await go_on.wait()

    await attach(world)
    world.driver.agents["work"].on["import.stop"] = late
    with trio.move_on_after(5):
        await suspend(world)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(resume, world)
        await trio.sleep(4)
        go_on.set()
    assert (has(world), rows(world)) == ([(STICK, "work")], [])
    assert len(world.audit("ended")) == 1


async def test_a_device_at_another_port_is_found_by_its_identity(
    world: World, autojump_clock: Clock
) -> None:
    await attach(world)
    await suspend(world)
    del usb(world).devices["1-2"]
    usb(world).plug("3-1", "usb", identity=SERIAL, instance="9")
    await usb(world).report()
    assert await resume(world) == [(STICK, "work", None, False)]
    assert has(world) == [("sys-usb:3-1", "work")]
    assert world.audit("resume")[0]["device"] == "sys-usb:3-1"


async def test_a_device_that_takes_its_time_is_waited_for(
    world: World, autojump_clock: Clock
) -> None:
    await attach(world)
    await suspend(world)
    stick = usb(world).devices.pop("1-2")
    await usb(world).report()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(resume, world)
        await trio.sleep(15)
        usb(world).devices["1-2"] = {**stick, "instance": "9"}
        await usb(world).report()
    assert (has(world), rows(world)) == ([(STICK, "work")], [])


async def test_another_device_in_its_port_is_not_attached(
    world: World, autojump_clock: Clock
) -> None:
    await attach(world)
    await suspend(world)
    usb(world).plug("1-2", "usb", identity="046d:c31c:none:u030101", instance="9")
    await usb(world).report()
    ((device, vm, error, again),) = await resume(world)
    assert (device, vm, again) == (STICK, "work", True)
    assert error == ("not_found", f"{STICK} ('{SERIAL}') has not come back")
    assert (has(world), rows(world)) == ([], [STICK])
    usb(world).plug("1-2", "usb", identity=SERIAL, instance="10")
    await usb(world).report()
    assert await resume(world) == [(STICK, "work", None, False)]  # by hand


async def test_of_two_devices_with_one_identity_none_is_taken_for_it(
    world: World, autojump_clock: Clock
) -> None:
    await attach(world)
    await suspend(world)
    del usb(world).devices["1-2"]
    for name in ("3-1", "3-2"):
        usb(world).plug(name, "usb", identity=SERIAL)
    await usb(world).report()
    ((_, _, error, again),) = await resume(world)
    assert error == (
        "failed",
        f"it is not at its port, and several devices had the identity '{SERIAL}':"
        " sys-usb:3-1, sys-usb:3-2",
    )
    assert (has(world), again, rows(world)) == ([], False, [])


async def test_a_source_that_could_not_look_at_all_may_have_had_a_twin(
    world: World, autojump_clock: Clock
) -> None:
    await attach(world)
    usb(world).devices["1-3"].update(identity=SERIAL, stale="Input/output error")
    await usb(world).report()
    await suspend(world)
    (row,) = world.state.store.suspended()
    assert row.had_twins


@pytest.mark.parametrize("is_lent", [True, False])
async def test_a_twin_that_was_there_before_is_not_taken_for_it(
    world: World, autojump_clock: Clock, is_lent: bool
) -> None:
    """Sticks of one kind without serial numbers: one is pulled in the sleep, the other is back at
    once; whoever had the first does not get the second."""
    twins = {"identity": "0951:1666:none:u080650"}
    for name in ("1-2", "1-3"):
        usb(world).devices[name].update(twins)
    await usb(world).report()
    await attach(world)
    if is_lent:
        await attach(world, "vault", OTHER)
    await suspend(world)
    del usb(world).devices["1-2"]
    await usb(world).report()
    others = [(OTHER, "vault", None, False)] if is_lent else []
    *done, (device, vm, error, again) = await resume(world)
    assert (device, vm, again, done) == (STICK, "work", False, others)
    assert error[1].startswith("it is not at its port, and several devices had the identity")
    assert has(world) == ([(OTHER, "vault")] if is_lent else [])


async def test_one_for_which_another_row_waits_is_a_twin_though_they_were_never_there_together(
    world: World, autojump_clock: Clock
) -> None:
    """Not even when that row is gone, as its VM has ended."""
    await attach(world)
    await suspend(world)
    del usb(world).devices["1-2"]
    usb(world).plug("1-3", "usb", identity=SERIAL, instance="9")
    await usb(world).report()
    await attach(world, "vault", OTHER)
    await suspend(world)
    assert [row.had_twins for row in world.state.store.suspended()] == [False, False]
    twin = usb(world).devices.pop("1-3")
    world.driver.die("vault")
    await usb(world).report()
    of_vault, of_work = await resume(world)
    assert (of_vault[2][0], of_work[2][0]) == ("failed", "not_found")
    assert rows(world) == [STICK]
    await world.restart()
    usb(world).devices["1-3"] = twin
    await usb(world).report()
    ((_, _, error, again),) = await resume(world)
    assert "not at its port, and several devices had the identity" in error[1]
    assert (has(world), again, rows(world)) == ([], False, [])


async def test_what_did_not_come_back_from_one_sleep_is_void_in_the_next(
    world: World, autojump_clock: Clock
) -> None:
    await attach(world)
    await suspend(world)
    stick = usb(world).devices.pop("1-2")
    await usb(world).report()
    await resume(world)
    assert rows(world) == [STICK]
    assert await suspend(world) == []
    assert rows(world) == []
    usb(world).devices["1-2"] = stick
    await usb(world).report()
    assert await resume(world) == []
    assert has(world) == []


async def test_what_was_tried_is_known_to_the_service_after_this_one(
    world: World, autojump_clock: Clock
) -> None:
    """Otherwise it would go to its VM after another sleep, days later, and until then to none."""
    await attach(world)
    await suspend(world)
    stick = usb(world).devices.pop("1-2")
    await usb(world).report()
    await resume(world)
    await world.restart()
    usb(world).devices["1-2"] = stick
    await usb(world).report()
    await assign(world, "vault")
    assert has(world) == [(STICK, "vault")]
    assert await suspend(world) == [(STICK, "vault", None, False)]
    assert [row.vm for row in world.state.store.suspended()] == ["vault"]


async def test_what_is_to_be_made_again_for_a_vm_keeps_it_from_others_until_that_ends(
    world: World, autojump_clock: Clock
) -> None:
    await attach(world)
    await suspend(world)
    await assign(world, "vault")
    assert has(world) == []
    world.driver.die("work")
    await trio.testing.wait_all_tasks_blocked()
    assert has(world) == [(STICK, "vault")]
    ((_, _, error, again),) = await resume(world)
    assert (error, again) == (("failed", "work has ended since"), False)
    assert has(world) == [(STICK, "vault")]


async def test_a_device_without_an_identity_keeps_no_other_from_its_vm(
    world: World, autojump_clock: Clock
) -> None:
    for port in ("1-2", "1-3"):
        usb(world).plug(port, "usb", identity="", instance=port)
    await usb(world).report()
    await attach(world)
    await suspend(world)
    await assign(world, "vault", OTHER)
    assert has(world) == [(OTHER, "vault")]


async def test_what_was_never_resumed_is_not_lost_by_the_next_sleep(
    world: World, autojump_clock: Clock
) -> None:
    await attach(world)
    await suspend(world)
    await world.restart()
    assert await suspend(world) == []
    assert await resume(world) == [(STICK, "work", None, False)]


async def test_policy_is_asked_again(world: World, autojump_clock: Clock) -> None:
    await attach(world)
    await suspend(world)
    world.policy.set("device.attach.usb  *  @adminvm  work  deny\n" + ALLOW_DOM0)
    ((_, _, error, again),) = await resume(world)
    assert (error[0], again, has(world), rows(world)) == ("denied", False, [], [])
    assert world.audit("decision")[-1]["verdict"] == "deny"


async def test_a_vm_that_policy_sends_it_to_by_now_does_not_get_it(
    world: World, autojump_clock: Clock
) -> None:
    await attach(world)
    await suspend(world)
    world.policy.set("device.attach.usb  *  @adminvm  work  allow target=vault\n" + ALLOW_DOM0)
    ((_, _, error, again),) = await resume(world)
    assert error == ("denied", f"policy sends {STICK} to vault, and not to work")
    assert (again, has(world)) == (False, [])


async def test_a_person_is_asked_where_a_rule_says_so(world: World, autojump_clock: Clock) -> None:
    await attach(world)
    await suspend(world)
    world.policy.set("device.attach.usb  *  @adminvm  work  ask\n" + ALLOW_DOM0)
    async with world.client.prompter({"verdict": "allow", "target": "work"}) as prompter:
        assert await resume(world) == [(STICK, "work", None, False)]
    assert len(prompter.asked) == 1


async def test_a_vm_that_has_ended_or_is_another_run_gets_nothing(
    world: World, autojump_clock: Clock
) -> None:
    await attach(world)
    await attach(world, "vault", OTHER)
    await suspend(world)
    world.driver.die("work")
    world.driver.die("vault")
    await world.client.call("vm.start", vm="vault")
    assert [each[2] for each in await resume(world)] == [
        ("failed", "vault has ended since"),
        ("failed", "work has ended since"),
    ]
    assert (has(world), rows(world)) == ([], [])


async def test_a_boot_of_the_machine_voids_what_was_before(
    world: World, autojump_clock: Clock
) -> None:
    await attach(world)
    await suspend(world)
    await world.restart()
    world.state.boot = "another"
    ((_, _, error, _),) = await resume(world)
    assert error == ("failed", "work has ended since")
    assert (has(world), rows(world)) == ([], [])


async def test_what_a_person_detaches_meanwhile_stays_detached(
    world: World, autojump_clock: Clock
) -> None:
    await attach(world)

    async def detach(step: str) -> None:
        if step == "suspend.noted":
            world.reach = nothing
            await world.client.call("device.detach", **named("work", STICK, "usb"))

    async def nothing(_step: str) -> None:
        await trio.lowlevel.checkpoint()

    world.reach = detach
    assert await suspend(world) == []
    assert rows(world) == []
    assert await resume(world) == []
    assert has(world) == []


async def test_an_attach_in_progress_is_told(world: World, autojump_clock: Clock) -> None:
    go_on = trio.Event()

    async def slow(_params: Params) -> None:
        await go_on.wait()

    usb(world).on["export.start"] = slow
    async with trio.open_nursery() as nursery:
        nursery.start_soon(attach, world)
        await trio.testing.wait_all_tasks_blocked()
        ((_, _, error, _),) = await suspend(world)
        assert error == ("busy", f"{STICK} is being attached to work")
        go_on.set()
    assert (has(world), rows(world)) == ([(STICK, "work")], [])


STEPS = (
    "suspend.noted",
    "detach.started",
    "detach.unimported",
    "detach.unexported",
    "detach.freed",
    "suspend.ended",
)


async def assert_nothing_lost(world: World) -> None:
    """The next service makes it again, once."""
    await world.restart()
    await resume(world)
    assert (has(world), rows(world)) == ([(STICK, "work")], [])
    assert len(world.driver.agents["work"].imports) == len(usb(world).exports) == 1


@pytest.mark.parametrize("step", STEPS)
async def test_a_service_that_is_killed_at_any_step_before_the_sleep_loses_nothing(
    world: World, autojump_clock: Clock, step: str
) -> None:
    await attach(world)
    killed = world.kill_at(step)
    with pytest.raises((CallError, trio.BrokenResourceError)):
        await suspend(world)
    assert killed.is_set()
    await assert_nothing_lost(world)


RESUME_STEPS = ("attach.leased", "attach.exported", "attach.imported", "attach.committed")


async def killed_in_resume(world: World, step: str = "attach.leased") -> None:
    await attach(world)
    await suspend(world)
    killed = world.kill_at(step)
    with pytest.raises((CallError, trio.BrokenResourceError)):
        await resume(world)
    assert killed.is_set()


@pytest.mark.parametrize("step", RESUME_STEPS)
async def test_what_a_killed_service_was_making_again_the_next_one_finishes_unasked(
    world: World, autojump_clock: Clock, step: str
) -> None:
    await killed_in_resume(world, step)
    await world.restart()
    await trio.sleep(60)
    assert (has(world), rows(world)) == ([(STICK, "work")], [])
    assert len(world.driver.agents["work"].imports) == len(usb(world).exports) == 1
    assert await resume(world) == []


async def test_what_cannot_be_finished_by_the_next_service_is_told_and_can_be_tried_again(
    world: World, autojump_clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    await killed_in_resume(world)
    stick = usb(world).devices.pop("1-2")
    await world.restart()
    await trio.sleep(60)
    assert f"{STICK} was not attached to work again after the sleep: " in caplog.text
    assert "has not come back; qvm-sleep resume tries again" in caplog.text
    assert rows(world) == [STICK]
    usb(world).devices["1-2"] = stick
    await usb(world).report()
    assert await resume(world) == [(STICK, "work", None, False)]


async def test_a_service_that_starts_in_the_sleep_says_what_waits_for_its_end(
    world: World, autojump_clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    await attach(world)
    await suspend(world)
    await world.restart()
    await trio.sleep(60)
    assert f"{STICK} was detached from work for the sleep of the machine" in caplog.text
    assert (has(world), rows(world)) == ([], [STICK])


async def test_a_full_disk_leaves_devices_attached(world: World, autojump_clock: Clock) -> None:
    await attach(world)
    put = world.state.store._file.suspended_put

    def full(_row: object) -> None:
        world.state.store._file.suspended_put = put  # type: ignore[method-assign]
        raise StoreError(Path("dom0.sqlite"), "no space left on device", "")

    world.state.store._file.suspended_put = full  # type: ignore[method-assign]
    ((_, _, error, _),) = await suspend(world)
    assert error[0] == "failed"
    assert (has(world), rows(world)) == ([(STICK, "work")], [])


async def test_a_vm_may_not_call_it(world: World, autojump_clock: Clock) -> None:
    for method in ("devices.suspend", "devices.resume"):
        with fails("unknown_method"):
            await world.driver.agents["work"].ask(method)
