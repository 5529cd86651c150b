"""What clients and VMs may call, and how little a VM learns."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio
from pedos_dom0.access.callers import LOCAL
from pedos_dom0.requests.api import TABLE
from pedos_dom0.requests.listing import Listing
from pedos_dom0.tables.leases import LeaseTable
from pedos_dom0.tables.registry import DeviceKey
from pedos_dom0.tables.store import Store, StoreError
from pedos_protocol.errors import CallError
from pedos_protocol.messages import SCHEMA, parse_result
from trio.abc import Clock

from tests.dom0.fakes import ALLOW_DOM0, World, fails, named

VM_RULES = """
device.attach.block  +sys-usb:free*   work      work      allow
device.attach.block  +sys-usb:wild*   work      @anyvm    allow
device.detach.block  +sys-usb:free*   work      work      allow
device.list.block    *                work      work      allow
device.list.block    *                sys-usb   sys-usb   allow
"""


@pytest.fixture
async def world(tmp_path: Path, nursery: trio.Nursery) -> AsyncIterator[World]:
    world = World(tmp_path, nursery, VM_RULES + ALLOW_DOM0)
    world.vm("sys-usb", "free1", "free2", "secret")
    world.vm("work", "own")
    world.vm("vault")
    world.vm("halted", running=False)
    world.dom0_agent()
    await world.start()
    yield world
    await world.kill()


async def refusal(world: World, asker: str, method: str, **params: Any) -> CallError:
    with pytest.raises(CallError) as caught:
        await world.driver.agents[asker].ask(method, **params)
    return caught.value


# VMs


@pytest.mark.parametrize(
    ("vm", "device"),
    [
        ("work", "sys-usb:secret"),  # there, and not allowed
        ("work", "sys-usb:nothing"),  # not there
        ("work", "nobody:secret"),  # no such VM
        ("work", "halted:secret"),
        ("vault", "sys-usb:free1"),  # allowed, but for another target
        ("nobody", "sys-usb:free1"),
        ("work", "sys-usb:free9"),  # allowed by a wildcard, and not there
        ("halted", "sys-usb:wild1"),
        ("nobody", "sys-usb:wild1"),
        ("vault", "sys-usb:wild1"),
    ],
)
@pytest.mark.parametrize("method", ["device.attach", "device.detach"])
async def test_all_refusals_look_the_same_to_a_vm(
    world: World, autojump_clock: Clock, vm: str, device: str, method: str
) -> None:
    if (method, device) == ("device.detach", "sys-usb:free9"):
        return  # that it has no such device itself is no secret to a VM
    error = await refusal(world, "work", method, **named(vm, device))
    assert error.code == "denied"
    assert error.message == f"{device} -> {vm}"
    assert error.data.keys() == {"request"}


async def test_the_reason_of_a_refusal_stands_in_the_audit_log(
    world: World, autojump_clock: Clock
) -> None:
    error = await refusal(world, "work", "device.attach", **named("work", "sys-usb:free9"))
    (attach,) = world.audit("attach")
    assert attach["request"] == error.data["request"]
    assert attach["caller"] == "work"


async def test_a_vm_that_may_attach_and_detach(world: World, autojump_clock: Clock) -> None:
    agent = world.driver.agents["work"]
    answer = await agent.ask("device.attach", **named("work", "sys-usb:free1"))
    assert answer["outcome"] == "attached"
    answer = await agent.ask("device.detach", **named("work", "sys-usb:free1"))
    assert answer["results"][0]["detached"]
    error = await refusal(world, "work", "device.detach", **named("work", "sys-usb:free1"))
    assert error.code == "not_found"


async def test_a_busy_device_is_busy_without_a_name(world: World, autojump_clock: Clock) -> None:
    await world.client.attach("vault", "sys-usb:free1")
    error = await refusal(world, "work", "device.attach", **named("work", "sys-usb:free1"))
    assert (error.code, error.message) == ("busy", "what it needs is in use")
    assert error.data.keys() == {"request"}


async def test_a_vm_lists_its_own_and_what_it_has(world: World, autojump_clock: Clock) -> None:
    async def names(vm: str, **params: Any) -> list[str]:
        answer = await world.driver.agents[vm].ask("device.list", device_class="block", **params)
        assert answer["policy"] is None
        return [f"{item['backend']}:{item['device']}" for item in answer["devices"]]

    assert await names("work") == ["work:own"]
    await world.client.attach("work", "sys-usb:secret")
    await world.client.attach("vault", "sys-usb:free1", persistent=True)
    assert await names("work") == ["sys-usb:secret", "work:own"]
    assert await names("work", vms=["vault"]) == await names("work", vms=["nobody"]) == []
    assert await names("vault") == []  # no rule lets it
    answer = await world.driver.agents["sys-usb"].ask("device.list", device_class="block")
    for item in answer["devices"]:
        assert (item["attachments"], item["assignments"]) == ([], [])


async def test_a_vm_that_detaches_all_of_another_is_denied_whether_that_exists_or_not(
    world: World, autojump_clock: Clock
) -> None:
    await world.client.attach("vault", "sys-usb:free1")
    for vm in ("vault", "halted", "nobody"):
        error = await refusal(world, "work", "device.detach", device_class="block", vm=vm)
        assert (error.code, error.data.keys()) == ("denied", {"request"})
    assert len(list(world.state.leases)) == 1


async def test_a_vm_detaches_all_of_its_own(world: World, autojump_clock: Clock) -> None:
    await world.client.attach("work", "sys-usb:free1")
    await world.client.attach("work", "sys-usb:secret")
    agent = world.driver.agents["work"]
    answer = await agent.ask("device.detach", device_class="block", vm="work")
    free, secret = answer["results"]
    assert free["detached"]
    assert secret["error"]["code"] == "denied"
    assert secret["error"]["data"].keys() == {"request"}


@pytest.mark.parametrize("method", sorted(SCHEMA))
async def test_a_vm_may_call_nothing_else(world: World, autojump_clock: Clock, method: str) -> None:
    allowed = {"device.list", "device.attach", "device.detach", "policy.mine", "agent.report"}
    allowed |= {"device.classes", "device.info", "watch.next"}
    allowed |= {"device.assign", "device.unassign", "device.assignments", "service.call"}
    peer = world.driver.agents["work"].peer
    assert peer is not None
    if method in allowed or method == "attachment.ended":
        return
    with fails("unknown_method"):
        await peer.call(method, {}, timeout=5)


async def test_wrong_parameters_of_a_vm_s_user_are_usage_and_the_vm_stays(
    world: World, autojump_clock: Clock
) -> None:
    peer = world.driver.agents["work"].peer
    assert peer is not None
    with fails("usage", "the request to list devices is malformed: vms is missing"):
        await peer.call("device.list", {"device_class": "tpm"}, timeout=5)
    assert world.audit("disconnected") == []


# dom0


# Calls of services need agents that make them: test_call_*.py.
@pytest.mark.parametrize("method", sorted(TABLE.keys() - {"service.call", "call.end"}))
async def test_every_method_is_of_the_schema_and_answers_with_its_result(
    world: World, autojump_clock: Clock, method: str
) -> None:
    params: dict[str, dict[str, Any]] = {
        "device.list": {"device_class": "block"},
        "device.info": {"device_class": "block", "backend": "sys-usb", "device": "free1"},
        "device.attach": named("work", "sys-usb:free1"),
        "device.detach": {"device_class": "block", "vm": "work"},
        "device.assign": {
            **named("work", "sys-usb:free1"),
            "identity": None,
            "match": "port",
            "mode": "auto-attach",
        },
        "device.unassign": {"device_class": "block", "vm": "work"},
        "device.assignments": {"device_class": "block"},
        "device.explain": {"verb": "attach", **named("work", "sys-usb:free1")},
        "device.mute": {"device_class": "mic", "vm": "work", "muted": True},
        "device.targets": {"device_class": "block", "backend": "sys-usb", "device": "free1"},
        "audit.recent": {"count": 10},
        "vm.start": {"vm": "halted"},
        "vm.shutdown": {"vm": "vault"},
        "policy.explain": {
            "service": "device.attach.block",
            "argument": "+sys-usb:free1",
            "source": "work",
            "target": "work",
        },
        "policy.mine": {
            "verb": "attach",
            "device_class": "block",
            "backend": "sys-usb",
            "device": "free1",
        },
    }
    if LOCAL in TABLE[method].callers:
        answer = await world.client.call(method, **params.get(method, {}))
    else:
        answer = await world.driver.agents["work"].ask(method, **params[method])
    parse_result(method, answer)


async def test_a_listing_is_of_the_named_vms_and_their_guests(
    world: World, autojump_clock: Clock
) -> None:
    await world.client.attach("vault", "sys-usb:free1")

    async def names(**params: Any) -> list[str]:
        return [item["device"] for item in await world.client.list(**params)]

    assert await names() == ["free1", "free2", "secret", "own"]
    assert await names(vms=["vault"]) == ["free1"]
    assert await names(vms=["work"]) == ["own"]
    assert await names(exclude=["sys-usb"]) == ["free1", "own"]
    assert await names(exclude=["sys-usb", "vault"]) == ["own"]
    with fails("not_found", "nobody"):
        await names(vms=["nobody"])


async def test_a_rule_can_hide_a_device_from_dom0_but_the_lack_of_rules_hides_none(
    world: World, autojump_clock: Clock
) -> None:
    world.policy.set("device.list.block +sys-usb:secret @adminvm @adminvm deny\n")
    assert "secret" not in [item["device"] for item in await world.client.list()]
    assert len(await world.client.list()) == 3


@pytest.mark.parametrize(
    ("outcome", "is_seen"),
    [
        (None, True),
        ("allow", True),
        ("deny", False),
        ("ask", False),
        ("allow target=work", False),
    ],
)
@pytest.mark.parametrize("who", ["dom0", "sys-usb"])
async def test_a_list_shows_what_explain_says_that_it_shows(
    world: World, autojump_clock: Clock, outcome: str | None, is_seen: bool, who: str
) -> None:
    rule = f"device.list.block +sys-usb:secret {who} {who} {outcome}\n"
    world.policy.set("" if outcome is None else rule)
    secret, agent = named(who, "sys-usb:secret"), world.driver.agents["sys-usb"]
    if who == "dom0":
        listed = await world.client.list()
    else:
        listed = (await agent.ask("device.list", device_class="block"))["devices"]
        is_seen = is_seen and outcome is not None
        names = {name: secret[name] for name in ("device_class", "backend", "device")}
        mine = await agent.ask("policy.mine", verb="list", **names)
        assert mine["verdict"] == ("allow" if is_seen else "deny")
    assert ("secret" in [each["device"] for each in listed]) is is_seen
    told = await world.client.call("device.explain", verb="list", source=who, **secret)
    assert told["verdict"] == ("allow" if is_seen else "deny")
    assert told["default"] is (outcome is None and not is_seen)


async def test_explain_shows_the_rule_and_those_before_it(
    world: World, autojump_clock: Clock
) -> None:
    answer = await world.client.call(
        "device.explain", verb="attach", **named("work", "sys-usb:free1")
    )
    assert (answer["verdict"], answer["default"]) == ("allow", False)
    assert answer["rule"] == "30-test.policy:7"
    assert len(answer["trace"]) == 2
    world.policy.set("")
    answer = await world.client.call(
        "device.explain", verb="attach", **named("work", "sys-usb:free1")
    )
    assert (answer["verdict"], answer["default"], answer["rule"]) == ("deny", True, None)


async def test_an_explanation_has_the_rule_that_decided_and_counts_what_it_leaves_out_before_it(
    world: World, autojump_clock: Clock
) -> None:
    other = "device.attach.block  +sys-usb:x  @adminvm  vault  allow\n"
    world.policy.set(other * 3000 + "device.attach.block  *  @adminvm  work  allow\n")
    answer = await world.client.call(
        "device.explain", verb="attach", **named("work", "sys-usb:free1")
    )
    assert answer["rule"] == "30-test.policy:3001"
    assert answer["text"] == "device.attach.block * @adminvm work allow"
    assert len(answer["trace"]) > 100
    assert len(answer["trace"]) + answer["trace_left_out"] == 3000


async def test_a_list_that_is_longer_than_an_answer_comes_in_pages(
    world: World, autojump_clock: Clock
) -> None:
    longest = {"description": "x" * 128, "identity": "y" * 128}
    for name in ("sys-usb", "vault"):
        agent = world.driver.agents[name]
        agent.devices.clear()
        for number in range(100):
            agent.plug(f"sd{number}", **longest)
        await agent.report()
    listed: list[str] = []
    after, pages, more = None, 0, True
    while more:
        answer = await world.client.call("device.list", device_class="block", after=after)
        listed += [f"{each['backend']}:{each['device']}" for each in answer["devices"]]
        after, pages, more = listed[-1], pages + 1, answer["more"]
        if pages == 1:  # what has been listed may go without any other being missed
            await world.driver.agents["sys-usb"].unplug("sd0")
    assert pages > 1
    sticks = [f"{vm}:sd{n}" for vm in ("sys-usb", "vault") for n in range(100)]
    assert listed == [*sticks, "work:own"]


async def test_vm_list_has_dom0_and_who_has_an_agent(world: World, autojump_clock: Clock) -> None:
    vms = (await world.client.call("vm.list"))["vms"]
    assert [(vm["name"], vm["state"], vm["agent"]) for vm in vms] == [
        ("dom0", "Running", True),
        ("sys-usb", "Running", True),
        ("work", "Running", True),
        ("vault", "Running", True),
        ("halted", "Halted", False),
    ]


async def test_a_full_disk_is_an_error_and_not_the_end(
    world: World, autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_arguments: Any, **_named: Any) -> None:
        raise StoreError(Path("dom0.sqlite"), "database or disk is full", "make room")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "journal_put", full)
        with fails("failed", "disk is full"):
            await world.client.attach("work", "sys-usb:free1")
        patch.undo()
        patch.setattr(Store, "assign", full)
        with fails("failed", "disk is full"):
            await world.client.attach("work", "sys-usb:free1", persistent=True)
        with fails("failed", "disk is full"):
            await world.client.attach("halted", "sys-usb:free1", persistent=True)
    world.assert_nothing_left()
    assert (await world.client.attach("work", "sys-usb:free1"))["outcome"] == "attached"


async def test_a_vm_s_listing_costs_what_the_vm_has_and_not_what_all_have(
    world: World, autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = world.driver.agents["sys-usb"]
    for number in range(100):
        source.plug(f"disk{number}")
    await source.report()
    await world.client.attach("work", "sys-usb:disk1")
    made: list[DeviceKey] = []
    real = Listing._listed

    def counting(self: Listing, key: DeviceKey, *users: Any, **more: Any) -> Any:
        made.append(key)
        return real(self, key, *users, **more)

    monkeypatch.setattr(Listing, "_listed", counting)
    answer = await world.driver.agents["work"].ask("device.list", device_class="block")
    assert [item["device"] for item in answer["devices"]] == ["disk1", "own"]
    assert [str(key) for key in made] == ["sys-usb:disk1", "work:own"]


async def test_a_listing_walks_the_leases_once(
    world: World, autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def walk(*_arguments: Any) -> Any:
        raise AssertionError("all leases are walked for one device")

    await world.client.attach("work", "sys-usb:free1")
    monkeypatch.setattr(LeaseTable, "of_device", walk)
    free1, *_ = await world.client.list()
    assert [to["vm"] for to in free1["attachments"]] == ["work"]


async def test_a_vm_is_told_of_its_own_quota_only(
    world: World, autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pedos_dom0.attachments.transaction.ATTACHMENTS_MAX", 1)
    await world.client.attach("vault", "sys-usb:secret")
    error = await refusal(world, "work", "device.attach", **named("work", "sys-usb:free1"))
    assert error.code == "failed" and "sys-usb" not in error.message
    assert world.audit("attach")[-1]["outcome"] == "quota: sys-usb lends 1 devices already"
    await world.client.detach("vault", "sys-usb:secret")
    await world.driver.agents["work"].ask("device.attach", **named("work", "sys-usb:free1"))
    error = await refusal(world, "work", "device.attach", **named("work", "sys-usb:free2"))
    assert (error.code, error.message) == ("quota", "work has 1 devices already")


async def test_explain_answers_for_whoever_would_ask(world: World, autojump_clock: Clock) -> None:
    async def verdict(source: str, device: str) -> str:
        answer = await world.client.call(
            "device.explain", verb="attach", source=source, **named("work", device)
        )
        return str(answer["verdict"])

    assert await verdict("dom0", "sys-usb:secret") == "allow"
    assert await verdict("work", "sys-usb:secret") == "deny"
    assert await verdict("work", "sys-usb:free1") == "allow"
    with fails("not_found", "no VM named 'nobody'"):
        await verdict("nobody", "sys-usb:free1")
