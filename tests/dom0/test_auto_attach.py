"""Assigned devices attach by themselves: when they appear, when their VM starts, and never where
policy, a person or another assignment stands against it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from pedos_dom0.access.questions import COOL_DOWN
from pedos_dom0.drivers.base import RETRY_SECONDS
from pedos_dom0.drivers.carrier import CarriedByAgents
from pedos_dom0.requests.auto_attach import (
    ASKED_AT_ONCE,
    AT_ONCE,
    BURST,
    HELD_BACK,
    PAUSES,
    RETURNED,
    RETURNS_MAX,
    STABLE_SECONDS,
)
from pedos_dom0.tables.device_set import DeviceKey
from pedos_protocol.errors import CallError
from trio.abc import Clock

from tests.dom0.failing_store import FULL, full
from tests.dom0.fakes import ALLOW_DOM0, NO, WITH_FAKE, World, fails, named, yes

STICK = "0951:1666:E0D5:u080650"
KEY = "1050:0407::u030101"


@pytest.fixture
async def world(
    tmp_path: Path, nursery: trio.Nursery, autojump_clock: Clock
) -> AsyncIterator[World]:
    """work and vault run, spare is halted; sys-usb has an empty port or two."""
    world = World(tmp_path, nursery)
    world.driver.carriers = {**WITH_FAKE, "usb": CarriedByAgents()}
    world.vm("sys-usb")
    world.vm("work")
    world.vm("vault")
    world.vm("spare", running=False)
    world.dom0_agent()
    await world.start()
    yield world
    await world.kill()


async def assign(
    world: World,
    vm: str,
    port: str | None = "1-1",
    identity: str | None = None,
    mode: str = "auto-attach",
    match: str = "port",
    **more: Any,
) -> dict[str, Any]:
    return await world.client.call(
        "device.assign",
        device_class="usb",
        vm=vm,
        backend="sys-usb",
        device=port,
        identity=identity,
        match=match,
        mode=mode,
        **more,
    )


async def plug(world: World, port: str = "1-1", identity: str = STICK, **fields: Any) -> None:
    agent = world.driver.agents["sys-usb"]
    agent.plug(port, "usb", identity=identity, **fields)
    await agent.report()
    await trio.testing.wait_all_tasks_blocked()


async def pull(world: World, port: str = "1-1") -> None:
    await world.driver.agents["sys-usb"].unplug(port)
    await trio.testing.wait_all_tasks_blocked()


def has(world: World) -> dict[str, str]:
    """Which VM has the device at each port."""
    leases = world.state.leases
    return {lease.key.device: lease.vm for lease in leases if lease.state == "attached"}


async def listed(world: World, vm: str | None = None) -> list[dict[str, Any]]:
    vms = None if vm is None else [vm]
    answer = await world.client.call("device.assignments", device_class="usb", vms=vms)
    return answer["assignments"]  # type: ignore[no-any-return]


# It appears, and its VM starts


async def test_a_device_is_attached_when_it_appears_and_comes_back_at_its_port(
    world: World, autojump_clock: Clock
) -> None:
    await assign(world, "work")
    for _ in range(2):
        await plug(world)
        assert has(world) == {"1-1": "work"}
        await pull(world)
        world.assert_nothing_left()
    done = [line for line in world.audit("attach") if line["outcome"] == "attached"]
    assert [(line["caller"], line["mode"], line["vm"]) for line in done] == [
        ("auto-attach", "auto-attach", "work")
    ] * 2
    decisions = world.audit("decision")
    asked = [line for line in decisions if line["request"] == done[0]["request"]]
    assert [(line["caller"], line["source"], line["verdict"]) for line in asked] == [
        ("auto-attach", "dom0", "allow")
    ]


async def test_a_device_that_is_assigned_by_identity_comes_back_at_another_port(
    world: World, autojump_clock: Clock
) -> None:
    await assign(world, "work", None, STICK, match="device")
    await plug(world, "1-1")
    assert has(world) == {"1-1": "work"}
    await pull(world, "1-1")
    await plug(world, "1-4.2")
    assert has(world) == {"1-4.2": "work"}
    await plug(world, "1-2", KEY)
    assert has(world) == {"1-4.2": "work"}, "another one does not go there"


async def test_a_device_that_is_assigned_by_both_goes_only_where_both_are_true(
    world: World, autojump_clock: Clock
) -> None:
    await assign(world, "work", "1-1", STICK, match="both")
    await plug(world, "1-2", STICK)
    await plug(world, "1-1", KEY)
    assert has(world) == {}
    (one,) = await listed(world)
    assert one["conflict"] == f"sys-usb:1-1 is '{KEY}', and not '{STICK}'"
    await pull(world, "1-2")
    await pull(world, "1-1")
    await plug(world, "1-1", STICK)
    assert has(world) == {"1-1": "work"}


@pytest.mark.parametrize("mode", ["auto-attach", "required"])
async def test_what_a_vm_is_to_have_is_attached_at_its_start_if_it_is_there(
    world: World, mode: str, autojump_clock: Clock
) -> None:
    await plug(world)
    await assign(world, "spare", mode=mode)
    answer = await world.client.call("vm.start", vm="spare")
    await trio.testing.wait_all_tasks_blocked()
    assert answer["attached"] == (["sys-usb:1-1"] if mode == "required" else [])
    assert has(world) == {"1-1": "spare"}


async def test_a_vm_starts_without_what_is_not_required(
    world: World, autojump_clock: Clock
) -> None:
    await assign(world, "spare")
    await assign(world, "spare", "1-2", mode="ask")
    assert (await world.client.call("vm.start", vm="spare"))["attached"] == []
    await plug(world)
    assert has(world) == {"1-1": "spare"}


async def test_a_required_device_comes_back_while_its_vm_runs(
    world: World, autojump_clock: Clock
) -> None:
    await plug(world)
    await assign(world, "spare", None, STICK, "required", "device")
    await world.client.call("vm.start", vm="spare")
    assert has(world) == {"1-1": "spare"}
    await pull(world)
    await plug(world, "1-3")
    assert has(world) == {"1-3": "spare"}


async def test_a_device_that_is_assigned_while_it_is_there_and_its_vm_runs_is_attached(
    world: World, autojump_clock: Clock
) -> None:
    await plug(world)
    answer = await assign(world, "work")
    assert answer["outcome"] == "assigned" and answer["now"]["matches"] == ["1-1"]
    await trio.testing.wait_all_tasks_blocked()
    assert has(world) == {"1-1": "work"}


async def test_a_device_goes_to_its_vm_when_another_one_has_ended_that_had_it(
    world: World, autojump_clock: Clock
) -> None:
    await assign(world, "work", mode="ask")  # and there is no prompter
    await plug(world)
    await world.client.call("device.attach", **named("vault", "sys-usb:1-1", "usb"))
    await assign(world, "work")
    await trio.testing.wait_all_tasks_blocked()
    assert has(world) == {"1-1": "vault"}, "what is lent is not taken away"
    world.driver.die("vault")
    await trio.sleep(5)
    assert has(world) == {"1-1": "work"}


async def test_what_shares_data_with_what_is_lent_waits_for_its_end(
    world: World, autojump_clock: Clock
) -> None:
    """A stick and its disk."""
    await plug(world, "1-9")
    usb = world.driver.agents["sys-usb"]
    usb.plug("sda", parent="1-1", parent_class="usb")
    usb.plug("1-1", "usb", identity=STICK)
    await usb.report()
    await world.client.attach("vault", "sys-usb:sda")
    await assign(world, "work")
    await trio.testing.wait_all_tasks_blocked()
    assert has(world) == {"sda": "vault"}
    await world.client.detach("vault", "sys-usb:sda")
    await trio.testing.wait_all_tasks_blocked()
    assert has(world) == {"1-1": "work"}


# Which VM


async def test_the_most_specific_assignment_wins_also_if_its_vm_does_not_run(
    world: World, autojump_clock: Clock
) -> None:
    await assign(world, "work", "1-1")
    await assign(world, "vault", None, STICK, match="device")
    await plug(world)
    assert has(world) == {"1-1": "vault"}
    await pull(world)
    await assign(world, "spare", "1-1", STICK, match="both")
    await plug(world)
    assert has(world) == {}, "it is meant for spare, which is halted"
    (one,) = await listed(world, "work")
    assert one["conflict"] == (
        "the assignment to spare is more specific, so sys-usb:1-1 is for that VM"
    )
    await world.client.call("vm.start", vm="spare")
    await trio.testing.wait_all_tasks_blocked()
    assert has(world) == {"1-1": "spare"}


async def test_a_device_that_two_vms_claim_equally_goes_nowhere_and_both_are_told_of(
    world: World, caplog: pytest.LogCaptureFixture, autojump_clock: Clock
) -> None:
    await assign(world, "work")
    await assign(world, "vault")
    await plug(world)
    assert has(world) == {}
    why = "the assignments of sys-usb:1-1 to vault and work are equally specific"
    assert f"sys-usb:1-1 is not attached by itself: {why}" in caplog.text
    (line,) = world.audit("not_attached")
    assert (line["vms"], line["reason"]) == (["vault", "work"], why)
    assert [each["conflict"] for each in await listed(world)] == [why, why]
    (device,) = await world.client.list("usb")
    assert device["conflict"] == why
    assert [each["mode"] for each in device["assignments"]] == ["auto-attach"] * 2
    # What changes elsewhere is no reason to say it again.
    await plug(world, "1-2", KEY)
    assert len(world.audit("not_attached")) == 1
    # A person decides.
    await world.client.call(
        "device.unassign", device_class="usb", vm="vault", backend="sys-usb", device="1-1"
    )
    await trio.testing.wait_all_tasks_blocked()
    assert has(world) == {"1-1": "work"}


async def test_of_two_devices_with_one_identity_none_goes_anywhere(
    world: World, caplog: pytest.LogCaptureFixture, autojump_clock: Clock
) -> None:
    await assign(world, "work", None, STICK, match="device")
    await plug(world, "1-1")
    await plug(world, "1-2")
    assert has(world) == {"1-1": "work"}, "what is attached stays so"
    why = f"sys-usb:1-1 and sys-usb:1-2 have the identity {STICK}"
    (line,) = world.audit("not_attached")
    assert (line["device"], line["reason"]) == ("sys-usb:1-2", why)
    await pull(world, "1-1")
    assert has(world) == {"1-2": "work"}, "it is the only one now"


async def test_a_less_specific_assignment_does_not_start_its_vm_with_anothers_device(
    world: World, autojump_clock: Clock
) -> None:
    await plug(world)
    await assign(world, "spare", mode="required")
    await assign(world, "vault", "1-1", STICK, "ask", "both")
    with fails("failed", "its assigned device sys-usb:1-1 is for vault, more specifically"):
        await world.client.call("vm.start", vm="spare")


async def test_several_vms_may_require_a_device_and_the_first_that_starts_has_it(
    world: World, autojump_clock: Clock
) -> None:
    world.vm("other", running=False)
    await plug(world)
    for vm in ("spare", "other"):
        await assign(world, vm, "1-1", mode="required", match="both")
    assert [each["conflict"] for each in await listed(world)] == [None, None]
    assert (await world.client.list("usb"))[0]["conflict"] is None
    await world.client.call("vm.start", vm="spare")
    assert has(world) == {"1-1": "spare"}
    with fails("failed", "is attached to spare"):
        await world.client.call("vm.start", vm="other")
    await pull(world)
    await plug(world)
    assert has(world) == {}, "and not what is plugged in later, which may be for the other one"
    other, spare = await listed(world)
    assert (other["conflict"], spare["conflict"]) == (
        None,
        "the assignments of sys-usb:1-1 to other and spare are equally specific",
    )


async def test_a_vm_does_not_start_with_one_of_two_devices_of_the_identity_that_it_requires(
    world: World, autojump_clock: Clock
) -> None:
    await assign(world, "spare", None, STICK, "required", "device")
    with fails("failed", f"its assigned device sys-usb:*:{STICK} is missing", "unassign spare"):
        await world.client.call("vm.start", vm="spare")
    await plug(world, "1-1")
    await plug(world, "1-2")
    with fails("failed", "is ambiguous: sys-usb:1-1 and sys-usb:1-2 have it"):
        await world.client.call("vm.start", vm="spare")
    await pull(world, "1-1")
    answer = await world.client.call("vm.start", vm="spare")
    assert answer["attached"] == ["sys-usb:1-2"]


# No permission


async def test_policy_decides_at_each_attach_and_a_denial_is_audited_once(
    world: World, autojump_clock: Clock
) -> None:
    world.policy.set("device.attach.usb  +*:*:*:u08*  *  *  deny\n" + ALLOW_DOM0)
    await assign(world, "work")
    await plug(world)
    assert has(world) == {}
    (denied,) = [line for line in world.audit("decision") if line["verdict"] == "deny"]
    assert (denied["caller"], denied["source"], denied["vm"]) == ("auto-attach", "dom0", "work")
    (line,) = world.audit("attach")
    assert line["outcome"].startswith("denied: sys-usb:1-1")
    (one,) = await listed(world)
    assert one["conflict"] == "denied (30-test.policy:1)"
    for _ in range(3):
        await plug(world, "1-2", KEY)
        await pull(world, "1-2")
    assert len(world.audit("attach")) == 1
    await pull(world)
    await plug(world, identity=KEY)
    assert has(world) == {"1-1": "work"}, "of other interfaces it is allowed"


async def test_a_rule_that_sends_it_elsewhere_does_not_send_what_is_assigned(
    world: World, autojump_clock: Clock
) -> None:
    world.policy.set("device.attach.usb * @adminvm work allow target=vault\n" + ALLOW_DOM0)
    await assign(world, "work")
    await plug(world)
    assert has(world) == {}
    (line,) = world.audit("attach")
    assert line["outcome"] == "denied: policy sends sys-usb:1-1 to vault, and not to work"


@pytest.mark.parametrize("mode", ["ask", "auto-attach"])
async def test_dom0s_user_is_asked_once_if_mode_or_policy_says_so(
    world: World, mode: str, autojump_clock: Clock
) -> None:
    world.policy.set("device.attach.usb  *  @adminvm  work  ask\n" + ALLOW_DOM0)
    await assign(world, "work", mode=mode)
    async with world.client.prompter(yes("work")) as prompter:
        await plug(world)
        assert has(world) == {"1-1": "work"}
        (question,) = prompter.asked
        assert (question["candidates"], question["assigned"]) == (["work"], mode)
        explained = await world.client.call(
            "device.explain", verb="attach", source="dom0", **named("work", "sys-usb:1-1", "usb")
        )
        assert explained["assigned"] == mode
    assert [line["caller"] for line in world.audit("asked")] == ["auto-attach"]


async def test_a_question_of_a_command_is_of_no_assignment_and_a_mode_is_that_of_the_vm(
    world: World, autojump_clock: Clock
) -> None:
    world.policy.set("device.attach.usb  *  @adminvm  work  ask\n" + ALLOW_DOM0)
    await assign(world, "spare", None, STICK, match="device", mode="ask")
    await assign(world, "spare", "1-1", mode="required")
    async with world.client.prompter(yes("work")) as prompter:
        await plug(world)
        await world.client.call("device.attach", **named("work", "sys-usb:1-1", "usb"))
        (question,) = prompter.asked
    assert question["assigned"] is None

    async def mode(vm: str, verb: str = "attach", port: str = "1-1") -> Any:
        names = named(vm, f"sys-usb:{port}", "usb")
        answer = await world.client.call("device.explain", verb=verb, source="dom0", **names)
        return answer["assigned"]

    assert [await mode("work"), await mode("spare"), await mode("spare", "detach")] == [
        None,
        "ask",  # the more specific one
        "ask",
    ]
    assert await mode("spare", port="1-2") is None


async def test_mode_ask_asks_where_policy_allows_and_not_where_it_denies(
    world: World, autojump_clock: Clock
) -> None:
    await assign(world, "work", mode="ask")
    async with world.client.prompter(yes("work")) as prompter:
        world.policy.set("device.attach.usb  *  @adminvm  work  deny\n" + ALLOW_DOM0)
        await plug(world)
        assert (prompter.asked, has(world)) == ([], {})
        await pull(world)
        world.policy.set(ALLOW_DOM0)
        await plug(world)
        assert (len(prompter.asked), has(world)) == (1, {"1-1": "work"})


async def test_a_no_is_kept_for_a_while_however_often_it_is_plugged(
    world: World, autojump_clock: Clock
) -> None:
    await assign(world, "work", mode="ask")
    async with world.client.prompter(NO) as prompter:
        for _ in range(3):
            await plug(world)
            await pull(world)
        assert len(prompter.asked) == 1
        await trio.sleep(COOL_DOWN)
        await plug(world)
        assert (len(prompter.asked), has(world)) == (2, {})
    (one,) = await listed(world)
    assert one["conflict"] == "denied (dom0's user said no)"


async def test_a_no_about_an_identity_counts_at_every_port(
    world: World, autojump_clock: Clock
) -> None:
    """Its source can let it appear under any number of names."""
    await assign(world, "work", None, STICK, match="device", mode="ask")
    async with world.client.prompter(NO) as prompter:
        for number in range(4):
            await plug(world, f"1-{number}")
            await pull(world, f"1-{number}")
        assert len(prompter.asked) == 1
        await trio.sleep(COOL_DOWN)
        await plug(world, "1-9")
        assert len(prompter.asked) == 2


async def test_a_yes_counts_for_all_tries_to_attach_what_is_busy(
    world: World, autojump_clock: Clock
) -> None:
    async def busy(_params: Any) -> Any:
        raise CallError("busy", "it is being probed")

    on = world.driver.agents["sys-usb"].on
    on["export.start"] = busy
    await assign(world, "work", mode="ask")
    async with world.client.prompter(yes("work")) as prompter:
        await plug(world)
        await trio.sleep(PAUSES[1] + PAUSES[2] / 2)
        assert (len(prompter.asked), has(world)) == (1, {})
        del on["export.start"]
        await trio.sleep(sum(PAUSES))
        assert (len(prompter.asked), has(world)) == (1, {"1-1": "work"})


async def test_a_question_is_withdrawn_when_the_device_is_pulled(
    world: World, autojump_clock: Clock
) -> None:
    await assign(world, "work", mode="ask")
    async with world.client.prompter() as prompter:
        await plug(world)
        assert len(prompter.asked) == 1
        await pull(world)
        assert len(prompter.cancelled) == 1
    world.assert_nothing_left()


async def test_a_question_is_withdrawn_when_the_device_is_lent_and_asked_again_after_that(
    world: World, autojump_clock: Clock
) -> None:
    await assign(world, "work", mode="ask")
    async with world.client.prompter() as prompter:
        await plug(world)
        await world.client.call("device.attach", **named("vault", "sys-usb:1-1", "usb"))
        await trio.testing.wait_all_tasks_blocked()
        assert (len(prompter.asked), len(prompter.cancelled)) == (1, 1)
        await trio.sleep(600)
        world.driver.die("vault")
        await trio.testing.wait_all_tasks_blocked()
        assert (len(prompter.asked), len(prompter.cancelled)) == (2, 1)


async def test_the_answer_counts_for_the_device_that_was_asked_about(
    world: World, autojump_clock: Clock
) -> None:
    async def swap(params: Any) -> Any:
        if params["identity"] == STICK:
            world.driver.agents["sys-usb"].plug("1-1", "usb", identity=KEY)
            await world.driver.agents["sys-usb"].report()
            return yes("work")
        return NO

    await assign(world, "work", mode="ask")
    async with world.client.prompter(swap):
        await plug(world)
        assert has(world) == {}


async def test_what_could_not_be_asked_is_asked_when_a_prompter_comes(
    world: World, autojump_clock: Clock
) -> None:
    """The devices of the VMs that start with dom0, before its user has logged in."""
    await assign(world, "work", mode="ask")
    await plug(world)
    (one,) = await listed(world)
    assert "no prompter" in one["conflict"]
    async with world.client.prompter(yes("work")):
        await trio.testing.wait_all_tasks_blocked()
        assert has(world) == {"1-1": "work"}


async def test_a_question_keeps_no_vm_from_starting(world: World, autojump_clock: Clock) -> None:
    await plug(world)
    await assign(world, "spare", mode="ask")
    async with world.client.prompter() as prompter:
        await world.client.call("vm.start", vm="spare")
        await trio.testing.wait_all_tasks_blocked()
        assert len(prompter.asked) == 1


async def test_questions_come_a_few_at_a_time_and_leave_room_for_a_command(
    world: World, autojump_clock: Clock
) -> None:
    async with world.client.prompter() as prompter:
        for number in range(6):
            await plug(world, f"1-{number}")
            await assign(world, "work", f"1-{number}", mode="ask")
        await trio.testing.wait_all_tasks_blocked()
        assert len(prompter.asked) == ASKED_AT_ONCE


# A person's detach


async def test_what_a_person_detached_is_not_attached_again_until_it_is_plugged_anew(
    world: World, autojump_clock: Clock
) -> None:
    await assign(world, "work", "1-1", STICK, match="both")
    await assign(world, "vault", None, STICK, match="device")
    await plug(world, instance="one")
    assert has(world) == {"1-1": "work"}
    answer = await world.client.call("device.detach", **named("work", "sys-usb:1-1", "usb"))
    assert answer["results"][0]["unassigned"], "as ever"
    await trio.testing.wait_all_tasks_blocked()
    assert has(world) == {}
    (one,) = await listed(world)
    assert (one["vm"], one["conflict"]) == ("vault", HELD_BACK)
    await world.restart()
    await world.driver.agents["sys-usb"].report()
    await trio.testing.wait_all_tasks_blocked()
    assert has(world) == {}, "nor by the next service"
    await pull(world)
    await plug(world, instance="two")
    assert has(world) == {"1-1": "vault"}
    assert world.state.store.all_held_back() == []


async def test_what_a_person_detached_is_attached_again_when_the_vm_restarts(
    world: World, autojump_clock: Clock
) -> None:
    await assign(world, "work", "1-1", STICK, match="both")
    await assign(world, "vault", None, STICK, match="device")
    await plug(world)
    await world.client.call("device.detach", **named("work", "sys-usb:1-1", "usb"))
    await world.client.call("vm.shutdown", vm="vault")
    await world.client.call("vm.start", vm="vault")
    await trio.testing.wait_all_tasks_blocked()
    assert has(world) == {"1-1": "vault"}


async def test_who_assigns_it_again_wants_it_again(world: World, autojump_clock: Clock) -> None:
    await assign(world, "work", "1-1", STICK, match="both")
    await plug(world)
    await world.client.call("device.detach", **named("work", "sys-usb:1-1", "usb"))
    await trio.testing.wait_all_tasks_blocked()
    assert (await listed(world), has(world)) == ([], {})
    await assign(world, "work", "1-1", STICK, match="both")
    await trio.testing.wait_all_tasks_blocked()
    assert has(world) == {"1-1": "work"}


async def test_a_detach_of_all_takes_every_assignment_away_also_to_what_is_not_there(
    world: World, autojump_clock: Clock
) -> None:
    await assign(world, "work", "1-9")
    await assign(world, "work", None, KEY, match="device", mode="required")
    await assign(world, "work", None, STICK, match="device")
    await assign(world, "vault", None, KEY, match="device", mode="ask")
    await plug(world)
    answer = await world.client.call("device.detach", device_class="usb", vm="work")
    assert [
        (each["device"], each["detached"], each["unassigned"]) for each in answer["results"]
    ] == [
        ("1-1", True, True),
        ("1-9", False, True),
    ]
    (gone,) = answer["unassigned"]
    assert (gone["device"], gone["identity"], gone["mode"]) == (None, KEY, "required")
    assert gone["unassigned"] and gone["error"] is None and answer["unassigned_left_out"] == 0
    assert [each["vm"] for each in await listed(world)] == ["vault"]
    (line,) = world.audit("unassign")
    assert (line["device"], line["vm"], line["outcome"]) == (
        f"sys-usb:*:{KEY}",
        "work",
        "unassigned",
    )


async def test_a_detach_of_all_takes_an_assignment_to_twins_away_once(
    world: World, autojump_clock: Clock
) -> None:
    await plug(world, "1-2")
    await assign(world, "work", None, STICK, match="device")
    await plug(world, "1-1")
    assert has(world) == {"1-2": "work"}
    answer = await world.client.call("device.detach", device_class="usb", vm="work")
    (item,) = answer["results"]
    assert (item["device"], item["detached"], item["unassigned"]) == ("1-2", True, True)
    await assign(world, "work", None, STICK, match="device")
    answer = await world.client.call("device.detach", device_class="usb", vm="work")
    (item,) = answer["results"]
    assert (item["detached"], item["unassigned"], item["error"]) == (False, True, None)
    assert await listed(world) == []


async def test_a_detach_of_all_leaves_an_absent_one_that_a_rule_keeps(
    world: World, autojump_clock: Clock
) -> None:
    await assign(world, "work", None, KEY, match="device")
    world.policy.set(f"device.detach.usb +sys-usb:*:{KEY} @adminvm work deny\n" + ALLOW_DOM0)
    answer = await world.client.call("device.detach", device_class="usb", vm="work")
    (kept,) = answer["unassigned"]
    assert kept["error"]["code"] == "denied" and not kept["unassigned"]
    assert [each["identity"] for each in await listed(world)] == [KEY]


async def test_a_detach_that_the_vm_refuses_holds_nothing_back(
    world: World, autojump_clock: Clock
) -> None:
    async def refuse(_params: Any) -> Any:
        raise CallError("busy", "it is mounted")

    await assign(world, "work")
    await assign(world, "vault", None, STICK, match="device")
    await assign(world, "work", "1-1", STICK, match="both")
    await plug(world)
    world.driver.agents["work"].on["import.stop"] = refuse
    with fails("busy", "it is mounted"):
        await world.client.call("device.detach", **named("work", "sys-usb:1-1", "usb"))
    assert world.state.store.all_held_back() == []
    assert has(world) == {"1-1": "work"}


async def test_unassigning_touches_nothing_that_is_attached(
    world: World, autojump_clock: Clock
) -> None:
    await assign(world, "work", None, STICK, match="device")
    await plug(world)
    answer = await world.client.call("device.unassign", device_class="usb", vm="work")
    assert [item["unassigned"] for item in answer["results"]] == [True]
    assert (has(world), await listed(world)) == ({"1-1": "work"}, [])
    await pull(world)
    await plug(world)
    assert has(world) == {}


async def test_what_is_assigned_is_listed_while_it_is_absent_unless_a_rule_hides_it(
    world: World, autojump_clock: Clock
) -> None:
    agent = world.driver.agents["work"]

    async def seen() -> tuple[list[Any], list[Any]]:
        answer = await agent.ask("device.assignments", device_class="usb")
        return (
            [(each["device"], each["matches"]) for each in await listed(world)],
            [(each["device"], each["matches"]) for each in answer["assignments"]],
        )

    shown = f"device.list.*  *  @anyvm  @anyvm  allow\n{ALLOW_DOM0}"
    world.policy.set(shown)
    await assign(world, "work", None, STICK, match="device")
    await assign(world, "work", "1-9")
    absent = [(None, []), ("1-9", [])]
    assert await seen() == (absent, absent)
    await plug(world)
    there = [(None, ["1-1"]), ("1-9", [])]
    assert await seen() == (there, there)
    world.policy.set(f"device.list.*  +*:*:{STICK}  *  *  deny\n{shown}")
    # What is at the absent port is not known, so it may be what the rule hides.
    assert await seen() == ([], [])
    await pull(world)
    assert await seen() == ([], [])


# Trouble


async def test_what_is_busy_is_tried_again_and_not_for_ever(
    world: World, autojump_clock: Clock
) -> None:
    tried: list[float] = []

    async def busy(_params: Any) -> Any:
        tried.append(trio.current_time())
        raise CallError("busy", "it is being probed")

    world.driver.agents["sys-usb"].on["export.start"] = busy
    await assign(world, "work")
    await plug(world)
    await trio.sleep(sum(PAUSES) + 60)
    assert len(tried) == len(PAUSES)
    (one,) = await listed(world)
    assert one["conflict"] == "sys-usb could not do it: it is being probed"
    del world.driver.agents["sys-usb"].on["export.start"]
    await trio.sleep(600)
    assert (len(tried), has(world)) == (len(PAUSES), {})
    await pull(world)
    await plug(world)
    assert has(world) == {"1-1": "work"}


async def test_what_is_busy_for_a_moment_is_attached_after_it(
    world: World, autojump_clock: Clock
) -> None:
    tried = 0

    async def busy(_params: Any) -> Any:
        nonlocal tried
        tried += 1
        if tried < 3:
            raise CallError("busy", "the last attachment is being ended")

    world.driver.agents["sys-usb"].on["export.start"] = busy
    await assign(world, "work")
    await plug(world)
    await trio.sleep(sum(PAUSES))
    assert has(world) == {"1-1": "work"}


async def test_what_is_in_use_in_its_source_is_attached_when_that_ends(
    world: World, autojump_clock: Clock
) -> None:
    """However long it takes; and nobody is asked about what cannot be had."""
    await assign(world, "work", mode="ask")
    async with world.client.prompter(yes("work")) as prompter:
        await plug(world, busy="mounted", instance="one")
        await trio.sleep(600)
        assert (prompter.asked, has(world), world.audit("attach")) == ([], {}, [])
        (one,) = await listed(world)
        assert one["conflict"] == "sys-usb:1-1 is in use in sys-usb: mounted"
        await plug(world, instance="one")
        assert (len(prompter.asked), has(world)) == (1, {"1-1": "work"})
        (one,) = await listed(world)
        assert one["conflict"] is None


async def test_a_failure_is_not_repeated(world: World, autojump_clock: Clock) -> None:
    tried = 0

    async def fail(_params: Any) -> Any:
        nonlocal tried
        tried += 1
        raise CallError("failed", "no")

    world.driver.agents["work"].on["import.start"] = fail
    await assign(world, "work")
    await plug(world)
    await trio.sleep(600)
    assert tried == 1
    world.assert_nothing_left()
    await assign(world, "work")  # already; but a person asks for it
    await trio.sleep(1)
    assert tried == 2


async def test_what_the_store_cannot_note_is_tried_until_it_can(
    world: World, autojump_clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    await assign(world, "work")
    with full("journal_put"):
        await plug(world)
        await trio.sleep(3600)
        assert has(world) == {}
        assert FULL in (await listed(world))[0]["conflict"]
    assert len([line for line in caplog.messages if "tried again until that is over" in line]) == 1
    await trio.sleep(RETRY_SECONDS + 1)
    assert has(world) == {"1-1": "work"}
    assert [each["conflict"] for each in await listed(world)] == [None]


async def test_what_the_store_could_not_note_and_then_fails_is_not_repeated(
    world: World, autojump_clock: Clock
) -> None:
    await assign(world, "work")
    with full("journal_put"):
        await plug(world)
        await trio.sleep(sum(PAUSES) + 1)

    async def broken(_params: Any) -> None:
        raise CallError("failed", "its kernel has no module for that")

    world.driver.agents["work"].on["import.start"] = broken
    await trio.sleep(3600)
    assert world.driver.agents["work"].calls.count("import.start") == 1


async def test_a_device_that_resets_itself_comes_back_and_one_that_never_works_does_not_for_ever(
    world: World, autojump_clock: Clock
) -> None:
    await assign(world, "work")
    await plug(world)
    work = world.driver.agents["work"]
    for number in range(RETURNS_MAX):
        assert has(world) == {"1-1": "work"}, number
        (attachment,) = work.imports
        await work.ended(attachment, "import")
        await trio.sleep(STABLE_SECONDS / 2)
    assert has(world) == {}
    (one,) = await listed(world)
    assert one["conflict"] == RETURNED
    await pull(world)
    await plug(world)
    for _ in range(3 * RETURNS_MAX):
        await trio.sleep(STABLE_SECONDS)
        (attachment,) = work.imports
        await work.ended(attachment, "import")
        await trio.sleep(1)
        assert has(world) == {"1-1": "work"}, "one that stays for a while may always come back"


async def test_a_source_that_lets_devices_come_and_go_causes_few_attaches(
    world: World, autojump_clock: Clock
) -> None:
    await assign(world, "work")
    began = trio.current_time()
    for _ in range(10 * BURST):
        await plug(world)
        await pull(world)
    within = trio.current_time() - began
    await trio.sleep(60)
    assert len(world.audit("attach")) <= 2 * BURST + within


async def test_many_devices_are_attached_a_few_at_a_time(
    world: World, autojump_clock: Clock
) -> None:
    at_once, most = 0, 0

    async def slow(_params: Any) -> None:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await trio.sleep(1)
        at_once -= 1

    world.driver.agents["sys-usb"].on["export.start"] = slow
    for number in range(12):
        await assign(world, "work", f"1-{number}")
        world.driver.agents["sys-usb"].plug(f"1-{number}", "usb", identity=f"{number:04}:::")
    await world.driver.agents["sys-usb"].report()
    await trio.sleep(60)
    assert (len(has(world)), most) == (12, AT_ONCE)


async def test_nothing_is_attached_to_a_vm_that_goes_down(
    world: World, autojump_clock: Clock
) -> None:
    gate = trio.Event()

    async def wait(_params: Any) -> None:
        await gate.wait()

    await assign(world, "work")
    with world.state.going_down("work"):
        await plug(world)
        assert has(world) == {}
    await plug(world, "1-2", KEY)
    assert has(world) == {"1-1": "work"}


async def test_an_agent_that_is_replaced_gets_its_devices_again(
    world: World, autojump_clock: Clock
) -> None:
    await assign(world, "work")
    await plug(world)
    world.driver.agents["work"].kill()
    await trio.sleep(10)
    assert has(world) == {"1-1": "work"}
    assert len(list(world.state.leases)) == 1


STEPS = ("attach.leased", "attach.exported", "attach.imported", "attach.committed")


@pytest.mark.parametrize("step", STEPS)
async def test_a_service_that_is_killed_at_a_step_neither_loses_nor_doubles(
    world: World, step: str, autojump_clock: Clock
) -> None:
    await assign(world, "work", None, STICK, match="device")
    killed = world.kill_at(step)
    agent = world.driver.agents["sys-usb"]
    agent.plug("1-1", "usb", identity=STICK)
    with trio.move_on_after(1):
        await agent.report()
    await killed.wait()
    await world._ended.wait()
    await world.start()
    await trio.sleep(30)
    assert has(world) == {"1-1": "work"}
    assert len(agent.exports) == len(world.driver.agents["work"].imports) == 1


DETACH_STEPS = ("detach.started", "detach.unimported", "detach.unexported", "detach.freed")


@pytest.mark.parametrize("step", DETACH_STEPS)
async def test_what_a_person_detaches_stays_detached_at_whatever_step_the_service_is_killed(
    world: World, step: str, autojump_clock: Clock
) -> None:
    await assign(world, "work", "1-1", STICK, match="both")
    await assign(world, "vault", None, STICK, match="device")
    await plug(world, instance="one")
    killed = world.kill_at(step)
    with pytest.raises((CallError, trio.BrokenResourceError, trio.ClosedResourceError)):
        await world.client.call("device.detach", **named("work", "sys-usb:1-1", "usb"))
    await killed.wait()
    await world._ended.wait()
    await world.start()
    await trio.sleep(30)
    assert has(world) == {}


async def test_a_device_that_was_plugged_in_while_no_service_ran_is_attached(
    world: World, autojump_clock: Clock
) -> None:
    await assign(world, "work")
    await world.kill()
    world.driver.agents["sys-usb"].plug("1-1", "usb", identity=STICK)
    await world.start()
    await trio.sleep(5)
    assert has(world) == {"1-1": "work"}


async def test_an_assignment_to_a_removed_vm_attaches_nothing(
    world: World, autojump_clock: Clock
) -> None:
    await assign(world, "spare")
    await assign(world, "work", None, STICK, match="device")
    del world.driver.infos["spare"]
    await plug(world)
    assert has(world) == {"1-1": "work"}


async def test_what_ended_for_the_sleep_is_left_to_the_end_of_the_sleep(
    world: World, autojump_clock: Clock
) -> None:
    await assign(world, "vault", None, STICK, match="device")
    await assign(world, "work", None, KEY, match="device")
    await plug(world, instance="one")
    await plug(world, "1-2", KEY, instance="two")
    await world.client.call("devices.suspend")
    await trio.sleep(60)
    assert has(world) == {}
    await pull(world, "1-2")
    await world.client.call("devices.resume")
    assert has(world) == {"1-1": "vault"}
    await plug(world, "1-3", KEY, instance="three")
    assert has(world) == {"1-1": "vault", "1-3": "work"}


async def test_devices_that_come_and_go_under_many_names_leave_nothing_behind(
    world: World, autojump_clock: Clock
) -> None:
    """What waits for its turn is forgotten as soon as its device is gone."""
    await assign(world, "work", None, STICK, match="device")
    for number in range(4 * BURST):
        await plug(world, f"1-{number}")
        await pull(world, f"1-{number}")
    auto_attach = world.api.auto_attach
    assert (auto_attach._tries, auto_attach._told) == ({}, {})
    tasks = trio.lowlevel.current_statistics().tasks_living
    for number in range(4 * BURST):
        await plug(world, f"2-{number}")
        await pull(world, f"2-{number}")
    assert trio.lowlevel.current_statistics().tasks_living <= tasks + AT_ONCE
    await trio.sleep(600)
    await plug(world)
    assert has(world) == {"1-1": "work"}


async def test_devices_of_one_identity_that_come_and_go_are_told_of_and_forgotten(
    world: World, autojump_clock: Clock
) -> None:
    await assign(world, "work")
    await assign(world, "vault")
    for _ in range(3):
        await plug(world)
        assert len(world.api.auto_attach._told) == 1
        await pull(world)
        assert world.api.auto_attach._told == {}
    assert len(world.audit("not_attached")) == 3


async def test_thousands_of_devices_with_one_identity_are_named_by_a_few(
    world: World, autojump_clock: Clock
) -> None:
    """A source could keep dom0 busy with comparing each with all others."""
    compared, many = 0, 200

    def counted(key: DeviceKey, other: object) -> bool:
        nonlocal compared
        compared += 1
        return before(key, other)

    await assign(world, "work", None, STICK, match="device")
    agent = world.driver.agents["sys-usb"]
    for number in range(many):
        agent.plug(f"1-{number}", "usb", identity=STICK)
    before = DeviceKey.__lt__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DeviceKey, "__lt__", counted)
        await agent.report()
        await trio.testing.wait_all_tasks_blocked()
    assert (has(world), 0 < compared < 100 * many) == ({}, True)
    (one,) = await listed(world)
    assert one["conflict"].endswith(f"and {many - 4} more have the identity {STICK}")


async def test_a_rule_that_offers_other_vms_offers_the_one_of_the_assignment_alone(
    world: World, autojump_clock: Clock
) -> None:
    world.policy.set(
        "device.attach.usb  *  @adminvm  @default  allow target=vault\n"
        "device.attach.usb  *  @adminvm  @anyvm  ask default_target=vault\n" + ALLOW_DOM0
    )
    await assign(world, "work")
    async with world.client.prompter(yes("vault")) as prompter:
        await plug(world)
        assert [each["candidates"] for each in prompter.asked] == [["work"]]
    assert has(world) == {}


async def test_a_bug_in_it_takes_nothing_down(
    world: World,
    autojump_clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken(*_arguments: Any) -> Any:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(world.api.auto_attach, "_limit", broken)
        await assign(world, "work")
        await plug(world)
        assert has(world) == {}
        patch.setattr(world.api.auto_attach, "_look_at", broken)
        await plug(world, "1-2", KEY)
    assert caplog.text.count("failed in an unforeseen way") == 2
    await pull(world)
    await plug(world)
    assert has(world) == {"1-1": "work"}


async def test_what_policy_denied_is_attached_once_it_allows_it(
    world: World, autojump_clock: Clock
) -> None:
    world.policy.set("device.attach.usb  *  @adminvm  work  deny\n" + ALLOW_DOM0)
    await assign(world, "work")
    await plug(world)
    assert (has(world), len(world.audit("attach"))) == ({}, 1)
    world.policy.set(ALLOW_DOM0)
    await trio.testing.wait_all_tasks_blocked()
    assert has(world) == {"1-1": "work"}


async def test_a_policy_that_comes_while_the_one_before_denies_is_asked_too(
    world: World, autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    operations = world.api.auto_attach._operations
    run, denied = operations.run, []

    async def denying(*arguments: Any) -> Any:
        try:
            return await run(*arguments)
        except CallError as error:
            denied.append(error.code)
            world.policy.set(ALLOW_DOM0)
            raise

    monkeypatch.setattr(operations, "run", denying)
    world.policy.set("device.attach.usb  *  @adminvm  work  deny\n" + ALLOW_DOM0)
    await assign(world, "work")
    await plug(world)
    assert (denied, has(world)) == (["denied"], {"1-1": "work"})


async def test_what_policy_denied_is_attached_once_the_facts_allow_it(
    world: World, autojump_clock: Clock
) -> None:
    world.policy.set(
        "device.attach.usb  *  @adminvm  @tag:trusted  allow\n"
        "device.attach.usb  *  @adminvm  @anyvm  deny\n" + ALLOW_DOM0
    )
    await assign(world, "work")
    await plug(world)
    assert has(world) == {}
    folder = world.folder / "vms.d"
    folder.mkdir()
    (folder / "10-test.toml").write_text('[work]\ntags = ["trusted"]\n')
    world.state.facts._folder = folder
    assert world.state.facts.reload()
    await trio.testing.wait_all_tasks_blocked()
    assert has(world) == {"1-1": "work"}


async def test_a_no_of_a_person_is_not_asked_about_again_because_rules_change(
    world: World, autojump_clock: Clock
) -> None:
    await assign(world, "work", mode="ask")
    async with world.client.prompter(NO) as prompter:
        await plug(world)
        await trio.sleep(2 * COOL_DOWN)
        world.policy.set(ALLOW_DOM0)
        await trio.testing.wait_all_tasks_blocked()
        assert len(prompter.asked) == 1


async def test_what_a_vm_has_by_identity_counts_as_assigned_in_explanations(
    world: World, autojump_clock: Clock
) -> None:
    await plug(world)
    await assign(world, "spare", None, STICK, match="device")
    world.policy.set("")
    names = named("spare", "sys-usb:1-1", "usb")
    told = await world.client.call("device.explain", **names, source="dom0", verb="detach")
    assert (told["verdict"], told["rule"]) == ("allow", None)
