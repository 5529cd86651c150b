"""device.assign, device.unassign and device.assignments: what is noted, what is said of it, and
what a VM may know."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from pedos_dom0.drivers.carrier import CarriedByAgents
from pedos_dom0.tables.registry import DeviceKey
from pedos_dom0.tables.store import Assignment
from pedos_protocol.assignment_messages import CONFLICTS_MAX, MATCHES_MAX
from pedos_protocol.errors import CallError
from pedos_protocol.fields import ATTACHMENTS_MAX
from trio.abc import Clock

from tests.dom0.fakes import ALLOW_DOM0, WITH_FAKE, World, fails, filled_in, named, yes

STICK = "0951:1666:E0D5:u080650"
KEY = "1050:0407::u030101"


@pytest.fixture
async def world(tmp_path: Path, nursery: trio.Nursery) -> AsyncIterator[World]:
    """sys-usb has a stick, a security key and a disk without an identity that lasts; no VM that
    could be given one runs, so that nothing is attached by itself."""
    world = World(tmp_path, nursery)
    world.driver.carriers = {**WITH_FAKE, "usb": CarriedByAgents()}
    usb = world.vm("sys-usb")
    usb.plug("1-1", "usb", identity=STICK)
    usb.plug("1-2", "usb", identity=KEY)
    usb.plug("sda", identity="::4ef6-5884")
    world.vm("work", running=False)
    world.vm("vault", running=False)
    world.vm("other")
    world.dom0_agent()
    await world.start()
    yield world
    await world.kill()


def wanted(vm: str = "work", port: str | None = "1-1", **more: Any) -> dict[str, Any]:
    return {
        "device_class": "usb",
        "vm": vm,
        "backend": "sys-usb",
        "device": port,
        "identity": None,
        "match": "both",
        "mode": "auto-attach",
        **more,
    }


async def assign(world: World, vm: str = "work", port: str | None = "1-1", **more: Any) -> Any:
    return await world.client.call("device.assign", **wanted(vm, port, **more))


async def now(world: World, vm: str = "work", port: str | None = "1-1", **more: Any) -> Any:
    answer = await assign(world, vm, port, **more, dry_run=True)
    return {name: value for name, value in answer["now"].items() if value not in (None, [], 0)}


async def unassign(world: World, vm: str, **more: Any) -> Any:
    answer = await world.client.call("device.unassign", device_class="usb", vm=vm, **more)
    return answer["results"]


async def listed(world: World, **params: Any) -> Any:
    return await world.client.call("device.assignments", device_class="usb", **params)


def noted(world: World) -> list[Assignment]:
    return world.state.store.assignments()


def usb(port: str = "1-1") -> DeviceKey:
    return DeviceKey("usb", "sys-usb", port)


# What is noted


@pytest.mark.parametrize(
    ("match", "expected"),
    [
        ("port", Assignment("work", usb(), {}, "", mode="ask")),
        ("device", Assignment("work", usb(""), {}, STICK, mode="ask")),
        ("both", Assignment("work", usb(), {}, STICK, mode="ask")),
    ],
)
async def test_an_assignment_is_to_the_port_to_the_device_there_or_to_both(
    world: World, autojump_clock: Clock, match: str, expected: Assignment
) -> None:
    answer = await assign(world, match=match, mode="ask")
    assert noted(world) == [expected]
    told = {name: answer[name] for name in ("outcome", "vm", "device", "identity", "policy_ok")}
    assert told == {
        "outcome": "assigned",
        "vm": "work",
        "device": expected.key.device or None,
        "identity": expected.identity,
        "policy_ok": True,
    }
    await world.restart()
    assert noted(world) == [expected]
    (line,) = world.audit("assign")
    assert (line["caller"], line["mode"], line["match"], line["outcome"]) == (
        "dom0",
        "ask",
        match,
        "assigned",
    )


async def test_again_is_already_and_anything_else_changes_it(
    world: World, autojump_clock: Clock
) -> None:
    outcomes = [
        (await assign(world, **more))["outcome"]
        for more in ({}, {}, {"mode": "ask"}, {"match": "port"}, {"match": "device"})
    ]
    assert outcomes == ["assigned", "already", "changed", "changed", "assigned"]
    assert [each.match for each in noted(world)] == ["device", "port"]


async def test_attach_persistent_is_a_required_assignment_to_both(
    world: World, autojump_clock: Clock
) -> None:
    await world.client.call("device.attach", **named("work", "sys-usb:1-1", "usb"), persistent=True)
    assert noted(world) == [Assignment("work", usb(), {}, STICK)]
    assert (await assign(world, mode="required"))["outcome"] == "already"


async def test_what_is_absent_is_assigned_by_its_port_or_by_its_identity(
    world: World, autojump_clock: Clock
) -> None:
    await assign(world, port="1-9", match="port")
    await assign(world, port="1-8", identity="a:b:c:u08", match="both")
    await assign(world, port=None, identity="a:b:c:u08", match="device")
    with fails("not_found", "sys-usb:1-7 is not there, so its identity is not known", "--port"):
        await assign(world, port="1-7")
    assert [str(each) for each in noted(world)] == [
        "sys-usb:*:a:b:c:u08",
        "sys-usb:1-8",
        "sys-usb:1-9",
    ]


async def test_the_device_that_is_there_is_the_expected_one_or_nothing_is_noted(
    world: World, autojump_clock: Clock
) -> None:
    for match in ("port", "device", "both"):
        with fails("not_found", f"sys-usb:1-1 is '{STICK}' by now, and not '{KEY}'"):
            await assign(world, match=match, identity=KEY)
    assert noted(world) == []
    for match in ("port", "device", "both"):
        await assign(world, match=match, identity=STICK)
    assert [(each.match, each.identity) for each in noted(world)] == [
        ("device", STICK),
        ("both", STICK),
    ]


async def test_what_has_no_lasting_identity_is_assigned_by_its_port_alone(
    world: World, autojump_clock: Clock
) -> None:
    disk = wanted(port="sda", device_class="block")
    for match in ("device", "both"):
        with fails("failed", "sys-usb:sda has no identity that lasts", "--port"):
            await world.client.call("device.assign", **disk | {"match": match})
    with fails("usage", "'::4ef6-5884' does not last"):
        absent = {"device": None, "identity": "::4ef6-5884", "match": "device"}
        await world.client.call("device.assign", **disk | absent)
    await world.client.call("device.assign", **disk | {"match": "port"})
    assert [str(each) for each in noted(world)] == ["sys-usb:sda"]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"port": None}, "name a port, or an identity"),
        ({"port": None, "match": "device"}, "name a port, or an identity"),
        ({"port": None, "match": "port", "identity": STICK}, "name a port, or an identity"),
        ({"vm": "dom0"}, "dom0 cannot be given a device"),
        ({"vm": "sys-usb"}, "sys-usb has this device already"),
        ({"device_class": "pci", "backend": "dom0"}, "the mode of their assignments is required"),
        ({"options": {"colour": "red"}}, "usb devices take no options"),
    ],
)
async def test_what_makes_no_sense_is_refused_with_words(
    world: World, autojump_clock: Clock, more: dict[str, Any], words: str
) -> None:
    with fails("usage", words):
        await assign(world, **more)
    assert noted(world) == []


async def test_unknown_vms_are_not_found(world: World, autojump_clock: Clock) -> None:
    with fails("not_found", "no VM named 'nobody'"):
        await assign(world, "nobody")
    with fails("not_found", "no VM named 'nothing'"):
        await assign(world, backend="nothing")


async def test_a_vm_has_a_bounded_number_of_assignments(
    world: World, autojump_clock: Clock
) -> None:
    for number in range(ATTACHMENTS_MAX):
        await assign(world, port=f"2-{number}", match="port")
    with fails("quota", f"work has {ATTACHMENTS_MAX} devices assigned to it"):
        await assign(world, match="port")


async def test_of_what_a_vm_requires_nothing_contradicts_the_rest(
    world: World, autojump_clock: Clock
) -> None:
    """The others come when they can."""
    disk = wanted(port="sda", device_class="block", match="port", mode="required")
    name = {"options": {"frontend-dev": "xvdi"}}
    await world.client.call("device.assign", **disk | name)
    with fails("busy", "xvdi in work is the name with which sys-usb:sda is assigned to it"):
        await world.client.call("device.assign", **disk | name | {"device": "sdb"})
    await world.client.call(
        "device.assign", **disk | name | {"device": "sdb", "mode": "auto-attach"}
    )
    part = wanted(port="sda", device_class="block", match="port")
    assert (await world.client.call("device.assign", **part))["outcome"] == "changed"


# What would happen now


async def test_a_dry_run_changes_and_records_nothing(world: World, autojump_clock: Clock) -> None:
    answer = await assign(world, dry_run=True)
    assert (answer["outcome"], noted(world)) == ("assigned", [])
    assert world.audit("assign") == []
    await assign(world)
    assert (await assign(world, dry_run=True))["outcome"] == "already"
    assert (await assign(world, mode="ask", dry_run=True))["outcome"] == "changed"


async def test_it_is_said_what_would_happen_now(world: World, autojump_clock: Clock) -> None:
    allowed = {"matches": ["1-1"], "verdict": "allow", "rule": "30-test.policy:1"}
    assert await now(world) == allowed
    assert await now(world, "other") == allowed | {"runs": True}
    assert await now(world, port="1-9", match="port") == {
        "absent": "sys-usb has no usb device named '1-9'"
    }
    world.policy.set("device.attach.usb * @adminvm work ask\n" + ALLOW_DOM0)
    assert (await now(world))["verdict"] == "ask"
    world.policy.set("device.attach.usb * @adminvm work deny\n" + ALLOW_DOM0)
    assert (await now(world))["verdict"] == "deny"
    assert (await assign(world))["outcome"] == "assigned", "all the same"
    world.policy.set("device.attach.usb * @adminvm work allow target=vault\n" + ALLOW_DOM0)
    assert (await now(world))["verdict"] == "deny"


async def test_who_has_the_device_or_what_shares_its_data_is_said(
    world: World, autojump_clock: Clock
) -> None:
    agent = world.driver.agents["sys-usb"]
    agent.plug("sdb", parent="1-1", parent_class="usb")
    await agent.report()
    await world.client.attach("other", "sys-usb:sdb")
    said = await now(world)
    assert (said["held_by"], said["held"]) == ("other", "sdb")
    agent.plug("1-2", "usb", identity=KEY, busy="it is mounted")
    await agent.report()
    assert (await now(world, port="1-2"))["unfit"] == (
        "sys-usb:1-2 is in use in sys-usb: it is mounted"
    )


@pytest.mark.parametrize("how", ["halted", "agent", "another"])
async def test_why_a_device_is_absent_is_said(
    world: World, autojump_clock: Clock, how: str
) -> None:
    expected = {
        "halted": "sys-usb is halted, so its devices are not there",
        "agent": "sys-usb is running, but its agent is not connected",
        "another": f"sys-usb:1-1 is '{KEY}', and not '{STICK}'",
    }
    await assign(world)
    agent = world.driver.agents["sys-usb"]
    if how == "halted":
        world.driver.die("sys-usb")
    elif how == "agent":
        agent.listens = False
        agent.kill()
    else:
        agent.plug("1-1", "usb", identity=KEY)
        await agent.report()
    await trio.testing.wait_all_tasks_blocked()
    (one,) = (await listed(world))["assignments"]
    assert (one["matches"], one["conflict"]) == ([], expected[how] if how == "another" else None)
    if how != "another":
        assert (await now(world, identity=STICK))["absent"] == expected[how]


async def test_assignments_that_conflict_are_named_with_what_they_are(
    world: World, autojump_clock: Clock
) -> None:
    await assign(world, "vault", match="both")
    await assign(world, "other", match="port", mode="ask")
    said = await now(world, match="device")
    assert [(each["vm"], each["specific"]) for each in said["conflicts"]] == [
        ("vault", "more"),
        ("other", "less"),
    ]
    said = await now(world, match="port")
    assert [(each["vm"], each["specific"], each["mode"]) for each in said["conflicts"]] == [
        ("vault", "more", "auto-attach"),
        ("other", "equal", "ask"),
    ]
    for number in range(2 * CONFLICTS_MAX):
        await world.state.store.assign(f"vm{number:02}", usb(), {}, STICK)
    world.driver.complete = False  # so that they count as VMs
    said = await now(world)
    assert len(said["conflicts"]) == CONFLICTS_MAX
    assert said["conflicts_left_out"] == CONFLICTS_MAX + 2


async def test_several_devices_of_one_identity_are_ambiguous(
    world: World, autojump_clock: Clock
) -> None:
    agent = world.driver.agents["sys-usb"]
    for number in range(2 * MATCHES_MAX):
        agent.plug(f"3-{number:02}", "usb", identity="a:b::u08")
    await agent.report()
    said = await now(world, port="3-00", match="device")
    assert said["ambiguous"] == "several devices of sys-usb have the identity a:b::u08"
    assert (len(said["matches"]), said["matches_left_out"]) == (MATCHES_MAX, MATCHES_MAX)
    assert "ambiguous" not in await now(world, port="3-00", match="both")


# Policy


async def test_an_assignment_needs_the_rule_about_assignments_alone(
    world: World, autojump_clock: Clock
) -> None:
    world.policy.set("device.assign.usb  +sys-usb:*:0951*  @adminvm  @anyvm  allow\n")
    await assign(world, match="both")
    await assign(world, match="device")
    # Whatever will be there: it may be another one than is allowed.
    with fails("denied"):
        await assign(world, match="port")
    with fails("denied"):
        await assign(world, port="1-2")


async def test_dom0s_user_is_asked_about_what_is_there(world: World, autojump_clock: Clock) -> None:
    world.policy.set("device.assign.usb  *  @adminvm  @anyvm  ask\n")
    async with world.client.prompter(yes("work")) as prompter:
        await assign(world, match="both", dry_run=True)
        assert prompter.asked == [], "a dry run changes nothing, so nobody is asked"
        await assign(world, match="both")
        await assign(world, match="port")
        assert [each["device"] for each in prompter.asked] == ["1-1", "1-1"]
        with fails("denied", "can be asked about a device only while it is there"):
            await assign(world, port=None, identity="a:b:c:u08", match="device")


VMS = """
device.*.usb  +sys-usb:1-1:*  other  other  allow
device.*.usb  *  @adminvm  @anyvm  allow
"""


async def test_a_vm_assigns_to_itself_what_it_may_and_learns_nothing_else(
    world: World, autojump_clock: Clock
) -> None:
    world.policy.set(VMS)
    agent = world.driver.agents["other"]
    answer = await agent.ask("device.assign", **wanted("other"))
    assert (answer["now"], answer["identity"], answer["policy_ok"]) == (None, "", None)
    assert [(each.vm, each.identity) for each in noted(world)] == [("other", STICK)]
    refused = []
    for params in (
        wanted("other", "1-2"),
        wanted("other", "1-9"),
        wanted("work"),
        wanted("nobody"),
        wanted("other", backend="vault"),
        wanted("other", backend="nothing"),
    ):
        with pytest.raises(CallError) as error:
            await agent.ask("device.assign", **params)
        refused.append((error.value.code, error.value.data.keys()))
    assert set(map(str, refused)) == {str(("denied", {"request": ""}.keys()))}
    # What is allowed and absent, or another one than expected, is as if it were denied.
    world.policy.set("device.*.usb  *  other  other  allow\n")
    for params in (wanted("other", "1-9"), wanted("other", "1-2", identity=STICK)):
        with fails("denied", "sys-usb:1-"):
            await agent.ask("device.assign", **params)
    with fails("usage", "only dom0's user assigns to any"):
        anywhere = {"port": None, "identity": STICK, "match": "device"}
        await agent.ask("device.assign", **wanted("other", **anywhere))


async def test_a_vm_takes_its_own_assignments_away_and_knows_of_no_other(
    world: World, autojump_clock: Clock
) -> None:
    await assign(world, "work")
    world.policy.set(VMS)
    agent = world.driver.agents["other"]
    await agent.ask("device.assign", **wanted("other"))

    async def ask(**params: Any) -> Any:
        return (await agent.ask("device.unassign", device_class="usb", **params))["results"]

    one = {"backend": "sys-usb", "device": "1-1"}
    for vm in ("work", "vault", "nobody"):
        with fails("denied"):
            await ask(vm=vm, **one)
        with fails("denied"):
            await ask(vm=vm)
    with fails("not_found", "sys-usb:1-2 is not assigned to other"):
        await ask(vm="other", backend="sys-usb", device="1-2")
    seen = (await agent.ask("device.assignments", device_class="usb"))["assignments"]
    assert [(each["vm"], each["conflict"]) for each in seen] == [("other", None)]
    (item,) = await ask(vm="other", **one)
    assert item["unassigned"]
    assert [each.vm for each in noted(world)] == ["work"]


async def test_a_rule_hides_an_assignment_with_its_device(
    world: World, autojump_clock: Clock
) -> None:
    await assign(world)
    await assign(world, port="1-2")
    for identity in ("a:b:c:u08", "d:e:f:u08"):
        await assign(world, port=None, identity=identity, match="device")
    assert len((await listed(world))["assignments"]) == 4
    hidden = "device.list.usb  +sys-usb:{}  *  *  deny\n"
    world.policy.set(hidden.format("1-1:*") + hidden.format("*:a:*") + ALLOW_DOM0)
    seen = [(each["device"], each["identity"]) for each in (await listed(world))["assignments"]]
    assert seen == [(None, "d:e:f:u08"), ("1-2", KEY)]


# Taking away


async def test_assignments_are_taken_away_one_by_one_or_all(
    world: World, autojump_clock: Clock
) -> None:
    for match in ("device", "both"):
        await assign(world, match=match)
    await assign(world, port="1-2")
    await assign(world, "vault")
    for params in ({}, {"device": "1-1"}, {"backend": "sys-usb"}):
        if params:
            with fails("usage"):
                await unassign(world, "work", **params)
    with fails("not_found", "sys-usb:1-1 is not assigned to work"):
        await unassign(world, "work", backend="sys-usb", device="1-1", identity=KEY)
    (item,) = await unassign(world, "work", backend="sys-usb", identity=STICK)
    assert (item["device"], item["identity"], item["unassigned"]) == (None, STICK, True)
    (item,) = await unassign(world, "work", backend="sys-usb", device="1-1", identity=STICK)
    assert (item["device"], item["mode"]) == ("1-1", "auto-attach")
    assert [item["device"] for item in await unassign(world, "work")] == ["1-2"]
    assert [each.vm for each in noted(world)] == ["vault"]
    assert await unassign(world, "work") == []
    assert len(world.audit("unassign")) == 3
    with fails("not_found", "no VM named 'nobody'"):
        await unassign(world, "nobody")


async def test_dom0s_user_needs_a_rule_only_against_one(
    world: World, autojump_clock: Clock
) -> None:
    await assign(world)
    await assign(world, port="1-2")
    world.policy.set("device.assign.usb  +sys-usb:1-1:*  @adminvm  *  deny\n")
    first, second = await unassign(world, "work")
    assert (first["error"]["code"], second["unassigned"]) == ("denied", True)
    del world.driver.infos["work"]
    (item,) = await unassign(world, "work", backend="sys-usb", device="1-1")
    assert item["unassigned"], "no rule is about a VM that was removed"


# The list


async def test_the_list_has_what_each_is_to_now_and_who_has_it(
    world: World, autojump_clock: Clock
) -> None:
    await assign(world, "other")
    await assign(world, "work", "1-9", match="port", mode="required")
    await assign(world, "work", None, identity=KEY, match="device")
    await trio.testing.wait_all_tasks_blocked()
    answer = await listed(world)
    assert not answer["more"] and answer["policy"]["ok"]
    first, second, third = answer["assignments"]
    assert first == {
        "vm": "other",
        "backend": "sys-usb",
        "device": "1-1",
        "identity": STICK,
        "mode": "auto-attach",
        "options": {},
        "orphaned": False,
        "matches": ["1-1"],
        "matches_left_out": 0,
        "holders": [{"device": "1-1", "vm": "other"}],
        "conflict": None,
    }
    assert (second["device"], second["identity"], second["matches"]) == (None, KEY, ["1-2"])
    assert (third["mode"], third["matches"], third["holders"]) == ("required", [], [])
    (device, *_) = await world.client.list("usb")
    assert device["assignments"] == [{"vm": "other", "options": {}, "mode": "auto-attach"}]
    only = (await listed(world, vms=["other"]))["assignments"]
    assert only == [first] == (await listed(world, exclude=["work", "sys-usb"]))["assignments"]
    with fails("not_found", "nobody"):
        await listed(world, vms=["nobody"])


async def test_a_device_that_is_assigned_by_identity_is_listed_and_watched_as_such(
    world: World, autojump_clock: Clock
) -> None:
    await assign(world, match="device", mode="ask")
    device = (await world.client.list("usb"))[0]
    assert device["assignments"] == [{"vm": "work", "options": {}, "mode": "ask"}]
    await world.driver.agents["sys-usb"].unplug("1-1")
    assert [each["device"] for each in await world.client.list("usb")] == ["1-2"]


async def test_a_long_list_comes_in_pages_and_misses_none(
    world: World, autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = [
        Assignment(f"vm{number}", key, {}, STICK, mode="ask")
        for number in range(300)
        for key in (usb(""), usb())
    ]
    monkeypatch.setattr(world.state.store, "all_assignments", lambda: many)
    found: list[Any] = []
    more, after = True, None
    while more:
        answer = await listed(world, after=after)
        found += answer["assignments"]
        more, last = answer["more"], found[-1]
        after = {name: last[name] for name in ("vm", "backend", "device", "identity")}
        assert answer["assignments"]
    assert [each["vm"] for each in found[::2]] == [f"vm{number}" for number in range(300)]
    assert [each["device"] for each in found[:2]] == [None, "1-1"]
    assert len(found) == 600


async def test_an_orphan_is_listed_and_matches_as_before(
    world: World, autojump_clock: Clock
) -> None:
    await assign(world)
    del world.driver.infos["work"]
    (one,) = (await listed(world))["assignments"]
    assert (one["orphaned"], one["matches"], one["conflict"]) == (True, ["1-1"], None)


async def test_the_requests_of_a_vm_are_read_with_all_that_they_may_have(
    world: World, autojump_clock: Clock
) -> None:
    agent = world.driver.agents["other"]
    assert agent.peer is not None
    params = filled_in("device.assign", wanted("other")) | {"mode": "always"}
    with fails("usage", "mode"):
        await agent.peer.call("device.assign", params, timeout=5)
