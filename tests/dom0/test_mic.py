"""A microphone may be with several VMs at once: every way that takes a device to be with one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from pedos_protocol.errors import CallError
from trio.abc import Clock

from tests.dom0.fakes import ALLOW_DOM0, Params, World, fails, named, yes

ASK_DOM0 = "device.attach.mic  *  @adminvm  @anyvm  ask\n"


@pytest.fixture
async def world(
    tmp_path: Path, nursery: trio.Nursery, autojump_clock: Clock
) -> AsyncIterator[World]:
    """dom0 has a microphone; work and vault run, spare is halted."""
    world = World(tmp_path, nursery)
    world.dom0_agent().plug("mic", "mic", identity="default", description="Built-in", size=None)
    world.vm("work")
    world.vm("vault")
    world.vm("spare", running=False)
    await world.start()
    yield world
    await world.kill()


def of(vm: str, **more: Any) -> Params:
    return {**named(vm, "dom0:mic", "mic"), **more}


async def attach(world: World, *vms: str) -> None:
    for vm in vms:
        await world.client.call("device.attach", **of(vm))


async def assign(world: World, vm: str, mode: str = "auto-attach", **more: Any) -> Params:
    asked = of(vm, identity=None, match="port", mode=mode, **more)
    return await world.client.call("device.assign", **asked)


def has(world: World) -> list[str]:
    """The VMs that have it, by all tables, which agree."""
    leases = {lease.vm: lease.attachment for lease in world.state.leases}
    assert {row.vm: row.attachment for row in world.state.store.journal()} == leases
    assert set(world.driver.agents["dom0"].exports) == set(leases.values())
    for name, agent in world.driver.agents.items():
        assert list(agent.imports) == [leases[vm] for vm in leases if vm == name]
    return sorted(leases)


async def listed(world: World) -> Params:
    (device,) = await world.client.list("mic")
    return device


async def told(world: World) -> list[str]:
    return [each["vm"] for each in (await listed(world))["attachments"]]


async def test_two_vms_have_it_and_are_listed_and_one_keeps_it(
    world: World, autojump_clock: Clock
) -> None:
    await attach(world, "work", "vault")
    assert has(world) == await told(world) == ["vault", "work"]
    assert len({each["port"] for each in world.driver.agents["dom0"].exports.values()}) == 2
    again = await world.client.call("device.attach", **of("work"))
    assert again["outcome"] == "already"
    await world.client.call("device.detach", **of("work"))
    assert has(world) == await told(world) == ["vault"]


async def test_a_vm_sees_that_it_has_it_and_nothing_of_others(
    world: World, autojump_clock: Clock
) -> None:
    world.policy.set("device.list.mic * @anyvm @anyvm allow\n" + ALLOW_DOM0)
    await attach(world, "work", "vault")
    answer = await world.driver.agents["work"].ask("device.list", device_class="mic")
    (device,) = answer["devices"]
    assert [each["vm"] for each in device["attachments"]] == ["work"]


async def test_all_of_a_vms_are_detached_and_no_others(world: World, autojump_clock: Clock) -> None:
    await attach(world, "work", "vault")
    answer = await world.client.call("device.detach", device_class="mic", vm="vault")
    assert [each["detached"] for each in answer["results"]] == [True]
    assert has(world) == ["work"]


async def test_both_are_kept_by_a_restart_of_the_service(
    world: World, autojump_clock: Clock
) -> None:
    await attach(world, "work", "vault")
    await world.restart()
    assert has(world) == ["vault", "work"]
    world.driver.die("work")
    await trio.testing.wait_all_tasks_blocked()
    assert has(world) == ["vault"]


async def test_all_end_when_it_is_unplugged(world: World, autojump_clock: Clock) -> None:
    await attach(world, "work", "vault")
    await world.driver.agents["dom0"].unplug("mic")
    await trio.testing.wait_all_tasks_blocked()
    world.assert_nothing_left()


async def test_one_that_nobody_can_record_is_not_called_used(
    world: World, autojump_clock: Clock
) -> None:
    dom0 = world.driver.agents["dom0"]
    dom0.plug("mic", "mic", identity="default", busy="nobody is logged in")
    await dom0.report()
    with fails("busy", "dom0:mic cannot be recorded in dom0: nobody is logged in"):
        await attach(world, "work")


async def test_one_that_is_left_over_keeps_it_from_no_other_vm(
    world: World, autojump_clock: Clock
) -> None:
    await attach(world, "work", "vault")
    await world.client.call("vm.start", vm="spare")

    async def refuse(_params: Params) -> None:
        raise CallError("failed", "it hangs")

    dom0 = world.driver.agents["dom0"]
    dom0.on["export.stop"] = refuse
    with fails("failed", "does not say that it has ended its part"):
        await world.client.call("device.detach", **of("work"))
    await attach(world, "spare")
    by_vm = {each["vm"]: each["left_over"] for each in (await listed(world))["attachments"]}
    assert (
        by_vm["vault"] is by_vm["spare"] is None
        and "dom0 does not confirm the end" in by_vm["work"]
    )


async def test_every_vm_that_it_is_assigned_to_gets_it_by_itself(
    world: World, autojump_clock: Clock
) -> None:
    await assign(world, "work")
    answer = await assign(world, "vault", dry_run=True)
    assert answer["now"]["conflicts"] == [] and answer["now"]["held_by"] is None
    await assign(world, "vault")
    await trio.testing.wait_all_tasks_blocked()
    assert has(world) == ["vault", "work"]
    assert (await listed(world))["conflict"] is None
    answer = await world.client.call("device.assignments", device_class="mic")
    assert [each["conflict"] for each in answer["assignments"]] == [None, None]


async def test_each_gets_it_when_it_appears_and_when_its_vm_starts(
    world: World, autojump_clock: Clock
) -> None:
    for vm in ("work", "vault", "spare"):
        await assign(world, vm)
    await trio.testing.wait_all_tasks_blocked()
    dom0 = world.driver.agents["dom0"]
    await dom0.unplug("mic")
    await trio.testing.wait_all_tasks_blocked()
    assert has(world) == []
    dom0.plug("mic", "mic", identity="default")
    await dom0.report()
    await trio.sleep(1)
    assert has(world) == ["vault", "work"]
    await world.client.call("vm.start", vm="spare")
    await trio.sleep(1)
    assert has(world) == ["spare", "vault", "work"]


async def test_a_vm_starts_with_what_others_have(world: World, autojump_clock: Clock) -> None:
    await attach(world, "work")
    for vm in ("spare", "vault"):
        await assign(world, vm, "required")
    await trio.testing.wait_all_tasks_blocked()
    assert has(world) == ["vault", "work"]
    answer = await world.client.call("vm.start", vm="spare")
    assert answer["attached"] == ["dom0:mic"]
    assert has(world) == ["spare", "vault", "work"]


async def test_a_detach_keeps_it_from_that_vm_alone(world: World, autojump_clock: Clock) -> None:
    for vm in ("work", "vault"):
        await assign(world, vm)
    await trio.testing.wait_all_tasks_blocked()
    (lease,) = [lease for lease in world.state.leases if lease.vm == "work"]
    await world.driver.agents["dom0"].ended(lease.attachment, "export")
    await trio.sleep(2)
    assert has(world) == ["vault", "work"], "it came back, as nobody wanted the end"
    await world.client.call("device.detach", **of("work"))
    await assign(world, "vault")
    row = world.state.store.held_back(await _key(world))
    assert row is None or "vault" not in row.runs
    (lease,) = [lease for lease in world.state.leases if lease.vm == "vault"]
    await world.driver.agents["dom0"].ended(lease.attachment, "export")
    await trio.sleep(10)
    assert has(world) == ["vault"]


async def _key(world: World) -> Any:
    return next(key for key, _ in world.state.registry.items("mic"))


async def test_two_questions_about_it_are_two_questions(
    world: World, autojump_clock: Clock
) -> None:
    world.policy.set(ASK_DOM0 + ALLOW_DOM0)

    async def answer(params: Params) -> Params:
        return yes(params["candidates"][0])

    async with world.client.prompter(answer) as prompter:
        for vm in ("work", "vault"):
            await assign(world, vm, "ask")
        await trio.sleep(1)
    assert sorted(each["candidates"][0] for each in prompter.asked) == ["vault", "work"]
    assert has(world) == ["vault", "work"]


async def test_a_no_for_one_vm_is_no_no_for_another(world: World, autojump_clock: Clock) -> None:
    async def answer(params: Params) -> Params:
        vm = params["candidates"][0]
        return yes(vm) if vm == "vault" else {"verdict": "deny", "target": None}

    async with world.client.prompter(answer) as prompter:
        for vm in ("work", "vault"):
            await assign(world, vm, "ask")
            await trio.sleep(1)
    assert len(prompter.asked) == 2
    assert has(world) == ["vault"]


async def test_what_is_asked_about_one_vm_ends_when_that_has_it_and_for_no_other(
    world: World,
    autojump_clock: Clock,
) -> None:
    async with world.client.prompter() as prompter:  # who does not answer
        await assign(world, "work", "ask")
        await assign(world, "vault", "ask")
        await trio.testing.wait_all_tasks_blocked()
        await attach(world, "work")
        await trio.testing.wait_all_tasks_blocked()
        assert len(prompter.asked) == 2 and len(prompter.cancelled) == 1
    assert has(world) == ["work"]


@pytest.mark.parametrize("step", ["attach.leased", "attach.exported", "attach.imported"])
async def test_a_kill_during_the_second_attach_leaves_the_first(
    world: World, autojump_clock: Clock, step: str
) -> None:
    await attach(world, "work")
    killed = world.kill_at(step)
    async with trio.open_nursery() as nursery:

        async def second() -> None:
            with pytest.raises(CallError):
                await attach(world, "vault")

        nursery.start_soon(second)
        await killed.wait()
    await world.restart()
    await trio.sleep(1)
    assert has(world) == ["work"]
