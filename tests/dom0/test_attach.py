"""Attach and detach: what is answered, what is undone, and that nothing is ever left over."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from pedos_dom0.attachments.stop_timeout import STOP_TIMEOUT
from pedos_dom0.tables.registry import DeviceKey
from pedos_protocol.errors import CallError
from pedos_protocol.fields import ATTACHMENTS_MAX
from trio.abc import Clock

from tests.dom0.fakes import ALLOW_DOM0, World, fails, hang, named

ATTACH_STEPS = ("attach.leased", "attach.exported", "attach.imported", "attach.committed")
DETACH_STEPS = ("detach.started", "detach.unimported", "detach.unexported", "detach.freed")


@pytest.fixture
def world(world_with_a_stick: World) -> World:
    return world_with_a_stick


async def test_an_attach_exports_imports_and_says_how(world: World, autojump_clock: Clock) -> None:
    answer = await world.client.attach("work", "sys-usb:stick", options={"read-only": "on"})
    assert answer["outcome"] == "attached"
    assert answer["options"] == {"frontend-dev": "xvdi", "read-only": "yes"}
    (export,) = world.driver.agents["sys-usb"].exports.values()
    (imported,) = world.driver.agents["work"].imports.values()
    assert export["attachment"] == imported["attachment"]
    assert export["peer"] == world.driver.infos["work"].domid
    assert imported["peer"] == world.driver.infos["sys-usb"].domid
    assert export["read_only"] and imported["read_only"]
    (listed,) = await world.client.list()
    (to,) = listed["attachments"]
    assert (to.pop("vm"), to.pop("options")) == ("work", answer["options"])
    assert not any(to.values()), "nothing is left over, and it is nothing to listen to"


async def test_both_agents_are_told_what_people_call_the_other_side(
    world: World, autojump_clock: Clock
) -> None:
    told: dict[str, dict[str, Any]] = {}
    for name, method in (("sys-usb", "export.start"), ("work", "import.start")):

        async def note(params: dict[str, Any], method: str = method) -> None:
            told[method] = params

        world.driver.agents[name].on[method] = note
    await world.client.attach("work", "sys-usb:stick")
    assert told["export.start"]["vm"] == "work"
    assert told["import.start"]["description"] == "a stick"


async def test_what_the_source_says_for_the_target_is_passed_on(
    world: World, autojump_clock: Clock
) -> None:
    source, target = world.driver.agents["sys-usb"], world.driver.agents["work"]
    heard: list[dict[str, Any]] = []

    async def note(params: dict[str, Any]) -> None:
        heard.append(params)

    async def hand_over(_params: dict[str, Any]) -> dict[str, Any]:
        return {"handover": "65538 3"}

    target.on["import.start"] = note
    await world.client.attach("work", "sys-usb:stick")
    await world.client.detach("work", "sys-usb:stick")
    source.on["export.start"] = hand_over
    await world.client.attach("work", "sys-usb:stick")
    assert [params["handover"] for params in heard] == [None, "65538 3"]


@pytest.mark.parametrize("text", ["", " ", "a\nb", "\x1b[31m", "é 3", "x" * 65, 65538])
async def test_a_source_that_hands_over_what_no_agent_would_is_disconnected(
    world: World, autojump_clock: Clock, text: object
) -> None:
    async def hand_over(_params: dict[str, Any]) -> dict[str, Any]:
        return {"handover": text}

    world.driver.agents["sys-usb"].on["export.start"] = hand_over
    with fails("failed", "sys-usb gave a malformed answer"):
        await world.client.attach("work", "sys-usb:stick")


async def test_a_detach_stops_the_target_first_and_leaves_nothing(
    world: World, autojump_clock: Clock
) -> None:
    order: list[str] = []
    for name, method in (("work", "import.stop"), ("sys-usb", "export.stop")):

        async def note(_params: Any, method: str = method) -> None:
            order.append(method)

        world.driver.agents[name].on[method] = note
    await world.client.attach("work", "sys-usb:stick")
    answer = await world.client.detach("work", "sys-usb:stick")
    assert order == ["import.stop", "export.stop"]
    (item,) = answer["results"]
    assert (item["detached"], item["unassigned"], item["error"]) == (True, False, None)
    world.assert_nothing_left()


async def test_attaching_what_is_attached_says_so(world: World, autojump_clock: Clock) -> None:
    first = await world.client.attach("work", "sys-usb:stick")
    again = await world.client.attach("work", "sys-usb:stick", options={"read-only": "yes"})
    assert again["outcome"] == "already"
    assert again["options"] == first["options"]
    with fails("busy", "sys-usb:stick is attached to work", "detach work sys-usb:stick"):
        await world.client.attach("vault", "sys-usb:stick")


async def test_of_two_concurrent_attaches_one_wins_and_one_is_busy(
    world: World, autojump_clock: Clock
) -> None:
    outcomes: list[str] = []

    async def attach(vm: str) -> None:
        try:
            outcomes.append((await world.client.attach(vm, "sys-usb:stick"))["outcome"])
        except CallError as error:
            outcomes.append(error.code)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(attach, "work")
        nursery.start_soon(attach, "vault")
    assert sorted(outcomes) == ["attached", "busy"]
    assert len(list(world.state.leases)) == 1


async def test_a_disk_and_its_partition_exclude_each_other(
    world: World, autojump_clock: Clock
) -> None:
    world.driver.agents["sys-usb"].plug("stick1", parent="stick")
    await world.driver.agents["sys-usb"].report()
    await world.client.attach("work", "sys-usb:stick1")
    with fails("busy", "sys-usb:stick1"):
        await world.client.attach("vault", "sys-usb:stick")


@pytest.mark.parametrize(
    ("vm", "device", "options", "code", "words"),
    [
        ("nobody", "sys-usb:stick", {}, "not_found", ["no VM named 'nobody'", "qvm-ls"]),
        ("work", "nobody:stick", {}, "not_found", ["no VM named 'nobody'"]),
        ("work", "sys-usb:gone", {}, "not_found", ["gone", "qvm-device block list sys-usb"]),
        ("work", "halted:disk", {}, "not_found", ["halted is halted", "qvm-start halted"]),
        ("halted", "sys-usb:stick", {}, "failed", ["qvm-start halted", "--persistent"]),
        ("dom0", "sys-usb:stick", {}, "usage", ["dom0"]),
        ("sys-usb", "sys-usb:stick", {}, "usage", ["sys-usb"]),
        ("work", "sys-usb:stick", {"colour": "red"}, "usage", ["colour", "read-only"]),
        ("work", "sys-usb:stick", {"read-only": "maybe"}, "usage", ["maybe", "yes or no"]),
        ("work", "sys-usb:stick", {"frontend-dev": "xvda"}, "usage", ["xvda", "xvde"]),
        ("work", "sys-usb:stick", {"devtype": "tape"}, "usage", ["tape", "disk or cdrom"]),
        ("work", "sys-usb:stick", {"devtype": "cdrom", "read-only": "no"}, "usage", ["read-only"]),
    ],
)
async def test_a_wrong_attach_is_refused_with_what_to_do(
    world: World,
    autojump_clock: Clock,
    vm: str,
    device: str,
    options: dict[str, str],
    code: str,
    words: list[str],
) -> None:
    with fails(code, *words):
        await world.client.attach(vm, device, options=options)
    world.assert_nothing_left()


@pytest.mark.parametrize("device_class", ["usb", "pci"])
async def test_a_class_that_nothing_carries_is_refused_with_the_reason(
    world: World, autojump_clock: Clock, device_class: str
) -> None:
    world.driver.agents["sys-usb"].plug("1-2", device_class)
    await world.driver.agents["sys-usb"].report()
    with fails("failed", f"{device_class}: needs"):
        await world.client.call("device.attach", **named("work", "sys-usb:1-2", device_class))


async def test_what_is_in_use_at_its_source_is_busy(world: World, autojump_clock: Clock) -> None:
    world.driver.agents["sys-usb"].plug("stick", busy="mounted on /mnt")
    await world.driver.agents["sys-usb"].report()
    with fails("busy", "mounted on /mnt"):
        await world.client.attach("work", "sys-usb:stick")
    world.assert_nothing_left()


async def test_a_denial_names_the_rule_to_dom0(world: World, autojump_clock: Clock) -> None:
    world.policy.set("device.attach.block  +sys-usb:*  @adminvm  work  deny\n" + ALLOW_DOM0)
    with pytest.raises(CallError) as caught:
        await world.client.attach("work", "sys-usb:stick")
    error = caught.value
    assert error.code == "denied"
    assert error.message == 'sys-usb:stick (046d:c52b "a stick") -> work'
    assert error.data["rule"] == "30-test.policy:1"
    assert error.data["text"].startswith("device.attach.block")
    (decision,) = world.audit("decision")
    assert decision["verdict"] == "deny" and decision["request"] == error.data["request"]


async def test_the_rule_s_read_only_holds_whatever_is_asked(
    world: World, autojump_clock: Clock
) -> None:
    world.policy.set("device.attach.block * @adminvm @anyvm allow read-only=yes\n")
    answer = await world.client.attach("work", "sys-usb:stick", options={"read-only": "no"})
    assert answer["options"]["read-only"] == "yes"


async def test_a_cdrom_is_read_only_and_stays_one(world: World, autojump_clock: Clock) -> None:
    wish = {"devtype": "cdrom"}
    first = await world.client.attach("work", "sys-usb:stick", options=wish, persistent=True)
    assert first["options"] == {"frontend-dev": "xvdi", "read-only": "yes", "devtype": "cdrom"}
    await world.restart()
    again = await world.client.attach("work", "sys-usb:stick")
    assert (again["outcome"], again["options"]) == ("already", first["options"])
    (stick,) = await world.client.list()
    assert stick["assignments"] == [
        {"vm": "work", "options": {"read-only": "yes", "devtype": "cdrom"}, "mode": "required"}
    ]


async def test_ask_is_a_denial(world: World, autojump_clock: Clock) -> None:
    world.policy.set("device.attach.block * @adminvm @anyvm ask\n")
    with fails("denied", "no prompter"):
        await world.client.attach("work", "sys-usb:stick")


async def test_the_frontend_can_be_chosen_once(world: World, autojump_clock: Clock) -> None:
    world.driver.agents["sys-usb"].plug("other")
    await world.driver.agents["sys-usb"].report()
    wish = {"frontend-dev": "xvdj"}
    assert (await world.client.attach("work", "sys-usb:stick", options=wish))["options"][
        "frontend-dev"
    ] == "xvdj"
    with fails("busy", "xvdj", "sys-usb:stick"):
        await world.client.attach("work", "sys-usb:other", options=wish)


# Undoing


@pytest.mark.parametrize("step", ATTACH_STEPS)
async def test_an_attach_that_fails_at_any_step_leaves_nothing(
    world: World, autojump_clock: Clock, step: str
) -> None:
    async def reach(name: str) -> None:
        if name == step:
            raise OSError("made to fail")

    world.reach = reach
    with fails("failed"):
        await world.client.attach("work", "sys-usb:stick")
    world.assert_nothing_left()


@pytest.mark.parametrize(("vm", "method"), [("sys-usb", "export.start"), ("work", "import.start")])
@pytest.mark.parametrize("fault", ["refuses", "hangs", "dies"])
async def test_an_agent_that_fails_a_step_leaves_nothing(
    world: World, autojump_clock: Clock, vm: str, method: str, fault: str
) -> None:
    agent = world.driver.agents[vm]

    async def misbehave(_params: Any) -> None:
        if fault == "refuses":
            raise CallError("failed", "no \x1b[31mway")
        if fault == "hangs":
            await trio.sleep_forever()
        agent.kill()
        await trio.sleep_forever()

    agent.on[method] = misbehave
    with fails("failed", vm):
        await world.client.attach("work", "sys-usb:stick")
    await trio.testing.wait_all_tasks_blocked()
    world.assert_nothing_left()
    agent.on.clear()
    assert (await world.client.attach("work", "sys-usb:stick"))["outcome"] == "attached"


async def test_what_was_never_attached_is_not_called_detached(
    world: World, autojump_clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "pedos_dom0")
    world.driver.agents["work"].on["import.start"] = hang
    with fails("failed", "work did not answer"):
        await world.client.attach("work", "sys-usb:stick")
    world.driver.agents["work"].on.clear()
    assert world.audit("ended") == []
    (undone,) = world.audit("undone")
    assert undone["reason"].startswith("the attach failed: work did not answer")
    assert not [each for each in caplog.messages if "is detached" in each]
    assert any("sys-usb:stick was not attached to work" in each for each in caplog.messages)


@pytest.mark.parametrize("step", DETACH_STEPS)
async def test_a_detach_goes_through_whatever_fails_inside(
    world: World, autojump_clock: Clock, step: str
) -> None:
    await world.client.attach("work", "sys-usb:stick")

    async def reach(name: str) -> None:
        if name == step:
            raise OSError("made to fail")

    world.reach = reach
    await world.client.detach("work", "sys-usb:stick")
    world.assert_nothing_left()


async def test_by_force_a_target_that_hangs_in_stop_is_cut_off_and_the_source_is_stopped(
    world: World, autojump_clock: Clock
) -> None:
    await world.client.attach("work", "sys-usb:stick")
    world.driver.agents["work"].on["import.stop"] = hang
    began = trio.current_time()
    await world.client.call("device.detach", **named("work", "sys-usb:stick"), force=True)
    assert trio.current_time() - began <= STOP_TIMEOUT + 1
    assert world.driver.agents["sys-usb"].exports == {}
    assert list(world.state.leases) == []
    (gone,) = world.audit("disconnected")
    assert gone["vm"] == "work" and "give a lent device back" in gone["reason"]
    # It comes back with its leftover, which it now releases before anything else.
    world.driver.agents["work"].on.clear()
    await trio.sleep(5)
    world.assert_nothing_left()
    assert (await world.client.attach("work", "sys-usb:stick"))["outcome"] == "attached"


async def test_another_vm_is_not_kept_waiting_by_one_that_hangs(
    world: World, autojump_clock: Clock
) -> None:
    world.driver.agents["sys-usb"].plug("other")
    await world.driver.agents["sys-usb"].report()
    world.driver.agents["work"].on["import.start"] = hang
    async with trio.open_nursery() as nursery:

        async def hanging() -> None:
            with fails("failed", "work did not answer"):
                await world.client.attach("work", "sys-usb:stick")

        nursery.start_soon(hanging)
        began = trio.current_time()
        await world.client.attach("vault", "sys-usb:other")
        assert trio.current_time() == began


async def test_a_client_that_goes_away_leaves_nothing_half_done(
    world: World, autojump_clock: Clock
) -> None:
    reached, go_on = trio.Event(), trio.Event()

    async def slow(_params: Any) -> None:
        reached.set()
        await go_on.wait()

    world.driver.agents["work"].on["import.start"] = slow
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.client.attach, "work", "sys-usb:stick")
            await reached.wait()
            scope.cancel()
    go_on.set()
    await trio.testing.wait_all_tasks_blocked()
    (lease,) = world.state.leases
    assert lease.state == "attached"


# What ends attachments


async def test_unplugging_ends_the_attachment(world: World, autojump_clock: Clock) -> None:
    await world.client.attach("work", "sys-usb:stick")
    await world.driver.agents["sys-usb"].unplug("stick")
    await trio.testing.wait_all_tasks_blocked()
    world.assert_nothing_left()
    (ended,) = world.audit("ended")
    assert ended["reason"] == "the device was unplugged"


async def test_unplugging_during_the_attach_undoes_it(world: World, autojump_clock: Clock) -> None:
    async def unplug(_params: Any) -> None:
        await world.driver.agents["sys-usb"].unplug("stick")

    world.driver.agents["work"].on["import.start"] = unplug
    with fails("failed", "unplugged"):
        await world.client.attach("work", "sys-usb:stick")
    world.assert_nothing_left()


@pytest.mark.parametrize(("vm", "side"), [("sys-usb", "export"), ("work", "import")])
async def test_an_end_at_one_side_stops_the_other(
    world: World, autojump_clock: Clock, vm: str, side: str
) -> None:
    await world.client.attach("work", "sys-usb:stick")
    (lease,) = world.state.leases
    await world.driver.agents[vm].ended(lease.attachment, side)
    await trio.testing.wait_all_tasks_blocked()
    world.assert_nothing_left()
    assert world.audit("ended")[0]["reason"] == f"{vm} says: nbdkit died"


@pytest.mark.parametrize("vm", ["sys-usb", "work"])
@pytest.mark.parametrize("what", ["agent", "domain"])
async def test_a_death_on_either_side_ends_the_attachment(
    world: World, autojump_clock: Clock, vm: str, what: str
) -> None:
    await world.client.attach("work", "sys-usb:stick")
    if what == "agent":
        world.driver.agents[vm].kill()
    else:
        world.driver.die(vm)
    await trio.testing.wait_all_tasks_blocked()
    world.assert_nothing_left()


# Detach and assignments


async def test_detaching_what_is_not_there_is_not_found(
    world: World, autojump_clock: Clock
) -> None:
    with fails("not_found", "sys-usb:gone is neither attached nor assigned to work"):
        await world.client.detach("work", "sys-usb:gone")
    with fails("not_found", "no VM named 'nobody'"):
        await world.client.detach("nobody", "sys-usb:stick")


async def test_detaching_all_of_nothing_is_success(world: World, autojump_clock: Clock) -> None:
    answer = await world.client.call("device.detach", device_class="block", vm="work")
    assert answer["results"] == []


async def test_a_persistent_attach_is_assigned_and_a_detach_takes_that_away_too(
    world: World, autojump_clock: Clock
) -> None:
    answer = await world.client.attach(
        "work", "sys-usb:stick", persistent=True, options={"read-only": "1"}
    )
    assert answer["outcome"] == "attached"
    (listed,) = await world.client.list()
    assert listed["assignments"] == [
        {"vm": "work", "options": {"read-only": "yes"}, "mode": "required"}
    ]
    answer = await world.client.detach("work", "sys-usb:stick")
    (item,) = answer["results"]
    assert item["detached"] and item["unassigned"]
    (listed,) = await world.client.list()
    assert listed["assignments"] == []


async def test_a_halted_vm_gets_an_assignment_only(world: World, autojump_clock: Clock) -> None:
    answer = await world.client.attach("halted", "sys-usb:stick", persistent=True)
    assert answer["outcome"] == "assigned"
    again = await world.client.attach("halted", "sys-usb:stick", persistent=True)
    assert again["outcome"] == "assigned"
    assert list(world.state.leases) == []


async def test_an_assignment_needs_its_own_permission(world: World, autojump_clock: Clock) -> None:
    world.policy.set("device.attach.block * @adminvm @anyvm allow\n")
    with fails("denied"):
        await world.client.attach("work", "sys-usb:stick", persistent=True)
    world.assert_nothing_left()
    assert world.state.store.assignments() == []


async def test_a_gone_device_is_listed_and_can_be_detached(
    world: World, autojump_clock: Clock
) -> None:
    await world.client.attach("work", "sys-usb:stick", persistent=True)
    await world.driver.agents["sys-usb"].unplug("stick")
    await trio.testing.wait_all_tasks_blocked()
    (listed,) = await world.client.list()
    assert not listed["present"] and listed["attachments"] == []
    answer = await world.client.detach("work", "sys-usb:stick")
    assert answer["results"][0]["unassigned"]
    assert await world.client.list() == []


async def test_detaching_all_goes_on_past_a_failure(world: World, autojump_clock: Clock) -> None:
    world.driver.agents["sys-usb"].plug("other")
    await world.driver.agents["sys-usb"].report()
    await world.client.attach("work", "sys-usb:stick")
    await world.client.attach("work", "sys-usb:other")
    world.policy.set("device.detach.block +sys-usb:other @adminvm work deny\n" + ALLOW_DOM0)
    answer = await world.client.call("device.detach", device_class="block", vm="work")
    other, stick = answer["results"]
    assert other["error"]["code"] == "denied" and not other["detached"]
    assert stick["error"] is None and stick["detached"]


async def test_what_was_waited_for_is_decided_on_as_it_then_is(
    world: World, autojump_clock: Clock
) -> None:
    await world.client.attach("work", "sys-usb:stick")
    await world.kill()
    world.driver.agents["work"].listens = False  # keeps the journal's row open for a while
    await world.start()
    outcome: list[dict[str, Any]] = []

    async def attach() -> None:
        outcome.append(await world.client.attach("vault", "sys-usb:stick"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(attach)
        await trio.testing.wait_all_tasks_blocked()
        assert not outcome
        world.policy.set("device.attach.block * @adminvm vault allow read-only=yes\n")
        world.driver.change("work", None, "Halted")
    assert outcome[0]["options"]["read-only"] == "yes"


async def test_who_may_not_attach_is_told_so_without_waiting(
    world: World, autojump_clock: Clock
) -> None:
    await world.client.attach("work", "sys-usb:stick")
    await world.kill()
    world.driver.agents["work"].listens = False
    await world.start()
    began = trio.current_time()
    with fails("denied"):
        await world.driver.agents["vault"].ask("device.attach", **named("vault", "sys-usb:stick"))
    assert trio.current_time() == began


async def test_many_devices_of_a_vm_that_hangs_are_detached_in_the_time_of_one(
    world: World, autojump_clock: Clock
) -> None:
    source = world.driver.agents["sys-usb"]
    for number in range(4):
        source.plug(f"disk{number}")
    await source.report()
    for number in range(4):
        await world.client.attach("work", f"sys-usb:disk{number}")
    source.on["export.stop"] = world.driver.agents["work"].on["import.stop"] = hang
    began = trio.current_time()
    answer = await world.client.call("device.detach", device_class="block", vm="work", force=True)
    assert trio.current_time() - began <= 2 * STOP_TIMEOUT
    assert [item["device"] for item in answer["results"]] == [f"disk{n}" for n in range(4)]
    assert all(item["detached"] for item in answer["results"])


async def test_the_errors_of_many_devices_fit_into_one_answer(
    world: World, autojump_clock: Clock
) -> None:
    rule = "device.detach.block +sys-usb:* @adminvm halted" + " " * 450 + "deny\n"
    world.policy.set(rule + ALLOW_DOM0)
    text = {"description": "d" * 128, "identity": "i" * 128}
    world.driver.agents["sys-usb"].devices.clear()
    count = 2 * ATTACHMENTS_MAX  # as many attached as assigned
    for number in range(count):
        name = f"{'n' * 60}{number}"
        world.driver.agents["sys-usb"].plug(name, **text)
        await world.state.store.assign("halted", DeviceKey("block", "sys-usb", name), {})
    await world.driver.agents["sys-usb"].report()
    answer = await world.client.call("device.detach", device_class="block", vm="halted")
    assert len(answer["results"]) == count
    for item in answer["results"]:
        assert item["error"]["code"] == "denied"
        assert item["error"]["data"]["rule"] == "30-test.policy:1"
        assert item["error"]["data"]["request"] == answer["request"]
