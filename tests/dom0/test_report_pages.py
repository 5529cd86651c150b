"""All devices of a VM are listed by pages; where there is a bound, the rest is reported."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from pedos_dom0.tables.device_set import DeviceKey, DeviceSet
from pedos_dom0.tables.registry import Registry
from pedos_dom0.tables.report_pages import Report, ReportPages
from pedos_protocol.errors import CallError, RemoteProtocolError
from pedos_protocol.fields import (
    ATTACHMENTS_MAX,
    DEVICES_MAX,
    PAGE_DEVICES_MAX,
    PREFERRED_MAX,
    REPORT_PAGES_MAX,
)
from pedos_protocol.messages import AgentReport, Device, ExportState, Missing
from trio.abc import Clock

from tests.dom0.fakes import World, fails
from tests.longest_step import STEP_MAX, LongestStep

TOO_MANY: dict[str, Any] = {"device_class": "block", "count": 7, "reason": "too many"}
NOBODY_LOOKED = {"device_class": "block", "count": None, "reason": "Too many open files"}


@pytest.fixture
async def world(tmp_path: Path, nursery: trio.Nursery) -> AsyncIterator[World]:
    world = World(tmp_path, nursery)
    world.dom0_agent()
    world.vm("sys-usb", *(f"sd{number}" for number in range(300)))
    world.vm("work")
    yield world
    await world.kill()


def device(name: str, **fields: Any) -> Device:
    plain: dict[str, Any] = {"identity": "", "description": "a disk", "size": 1, "parent": None}
    return Device("block", name, **{**plain, "read_only": False, "busy": None, **fields})


def page(number: int, *names: str, revision: int = 1, last: bool = False, **more: Any) -> Any:
    devices = tuple(map(device, names))
    fields: dict[str, Any] = {"exports": (), "imports": (), **more}
    return AgentReport(revision, devices, page=number, last=last, **fields)


def names(report: Report | None) -> list[str]:
    assert report is not None
    return [key.device for _, key in report.devices.in_order("block")]


def test_a_report_is_whole_with_its_last_page() -> None:
    pages = ReportPages("vm")
    assert pages.take(page(0, "sda10")) is None
    assert pages.take(page(1, "sda9")) is None
    missing = (Missing("block", 7, "too many"),)
    report = pages.take(page(2, "sda1", last=True, missing=missing))
    assert names(report) == ["sda1", "sda9", "sda10"]
    assert report is not None and report.missing == missing


def test_an_agent_may_begin_anew_and_what_it_did_not_end_does_not_count() -> None:
    pages = ReportPages("vm")
    pages.take(page(0, "old"))
    pages.take(page(0, "new", revision=2))
    assert names(pages.take(page(1, "more", revision=2, last=True))) == ["more", "new"]


def test_an_older_report_that_comes_late_is_passed_over() -> None:
    pages = ReportPages("vm")
    assert pages.take(page(0, "new", revision=2, last=True)) is not None
    for late in (page(0, "old"), page(1, "old", last=True)):
        assert pages.take(late) is None


def test_of_two_devices_with_one_id_the_first_counts_also_on_another_page() -> None:
    pages = ReportPages("vm")
    pages.take(page(0, "sda"))
    report = pages.take(
        attrs.evolve(page(1, last=True), devices=(device("sda", description="another"),))
    )
    assert names(report) == ["sda"]
    assert report is not None
    found = report.devices.get("block", "sda")
    assert found is not None and found.description == "a disk"


EXPORT = ExportState("0" * 16, "block", "sda", 3, 7, False)


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ([page(1)], "page 1 of report 1 comes where the first page of one is"),
        ([page(0), page(2)], "page 2 of report 1 comes where page 1 of report 1 is"),
        ([page(0), page(1), page(1)], "page 1 of report 1 comes where page 2 of report 1 is"),
        ([page(0), page(1, revision=2)], "page 1 of report 2 comes where page 1 of report 1 is"),
        ([page(0), page(1, exports=(EXPORT,))], "on a page that is not the first"),
        ([page(n) for n in range(REPORT_PAGES_MAX + 1)], "more than 40 pages"),
        (
            [
                page(n, *(f"d{n}-{i}" for i in range(PAGE_DEVICES_MAX)))
                for n in range(DEVICES_MAX // PAGE_DEVICES_MAX + 1)
            ],
            "more than 4096 devices",
        ),
    ],
)
def test_pages_without_end_or_order_are_a_breach(said: list[AgentReport], why: str) -> None:
    pages = ReportPages("vm")
    for each in said[:-1]:
        assert pages.take(each) is None
    with pytest.raises(RemoteProtocolError, match=why):
        pages.take(said[-1])


async def test_a_vm_that_mixes_its_pages_is_disconnected_and_no_other_notices(world: World) -> None:
    await world.start()
    agent = world.driver.agents["sys-usb"]
    assert agent.peer is not None
    report = {"devices": [], "exports": [], "imports": [], "missing": [], "last": False}
    with fails("unavailable"):
        await agent.peer.call("agent.report", {**report, "revision": 9, "page": 3}, timeout=5)
    await trio.testing.wait_all_tasks_blocked()
    (line,) = world.audit("disconnected")
    assert line["vm"] == "sys-usb" and line["broke"] is True
    assert "page 3 of report 9" in line["reason"]


async def test_from_the_129th_device_on_all_are_listed(world: World) -> None:
    await world.start()
    listed: list[str] = []
    more = True
    while more:
        after = f"sys-usb:{listed[-1]}" if listed else None
        answer = await world.client.call("device.list", device_class="block", after=after)
        listed += [each["device"] for each in answer["devices"]]
        more = answer["more"]
    assert listed == [f"sd{number}" for number in range(300)]
    assert (answer["missing"], answer["missing_vms"]) == ([], 0)
    await world.client.attach("work", "sys-usb:sd299")


async def test_the_list_says_what_is_missing_and_why(world: World) -> None:
    for name, missing in (("sys-usb", TOO_MANY), ("work", NOBODY_LOOKED)):
        agent = world.driver.agents[name]
        agent.devices.clear()
        agent.missing = [missing, {**missing, "device_class": "usb"}]
    await world.start()
    answer = await world.client.call("device.list", device_class="block")
    assert answer["missing"] == [
        {**TOO_MANY, "backend": "sys-usb"},
        {**NOBODY_LOOKED, "backend": "work"},
    ]
    assert answer["missing_vms"] == 2
    answer = await world.client.call("device.list", device_class="block", vms=["work"])
    assert [each["backend"] for each in answer["missing"]] == ["work"]
    # A VM learns of its own devices only.
    world.policy.text = "device.list.*  *  @anyvm  @anyvm  allow"
    answer = await world.driver.agents["work"].ask("device.list", device_class="block")
    assert [each["backend"] for each in answer["missing"]] == ["work"]


async def test_the_list_says_of_a_vm_that_runs_without_its_agent_that_it_may_have_devices(
    world: World, autojump_clock: Clock
) -> None:
    agent = world.driver.agents["sys-usb"]
    agent.listens = False
    world.vm("off", running=False).listens = False
    await world.start()
    nothing = {"device_class": "block", "count": None, "backend": "sys-usb"}
    nothing["reason"] = "it runs, but its agent is not connected"
    answer = await world.client.call("device.list", device_class="block")
    assert (answer["missing"], answer["missing_vms"]) == ([nothing], 1)
    world.policy.text = "device.list.*  *  @anyvm  @anyvm  allow"
    answer = await world.driver.agents["work"].ask("device.list", device_class="block")
    assert answer["missing"] == []  # other VMs' agents are not a VM's business


async def test_more_vms_than_an_answer_names_are_counted(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pedos_dom0.requests.listing.MISSING_MAX", 1)
    for name in ("sys-usb", "work"):
        world.driver.agents[name].missing = [TOO_MANY]
    await world.start()
    answer = await world.client.call("device.list", device_class="block", vms=["work", "sys-usb"])
    while answer["more"]:
        after = f"sys-usb:{answer['devices'][-1]['device']}"
        answer = await world.client.call("device.list", device_class="block", after=after)
    assert (len(answer["missing"]), answer["missing_vms"]) == (1, 2)


async def test_a_device_that_is_not_found_may_be_one_that_is_missing(world: World) -> None:
    agent = world.driver.agents["sys-usb"]
    agent.missing = [TOO_MANY]
    await world.start()
    with fails("not_found", "it has 7 more than it reports: too many"):
        await world.client.attach("work", "sys-usb:other")
    agent.missing = [NOBODY_LOOKED]
    await agent.report()
    with fails("not_found", "does not know all that it has: Too many open files"):
        await world.client.attach("work", "sys-usb:other")
    agent.missing = []
    await agent.report()
    with fails("not_found", "has no block device named 'other'"):
        await world.client.attach("work", "sys-usb:other")


async def test_a_vm_that_cannot_report_all_is_asked_for_what_is_assigned_before_it_counts(
    world: World,
) -> None:
    await world.start()
    await world.client.attach("work", "sys-usb:sd7", persistent=True)
    agent = world.driver.agents["sys-usb"]
    assert agent.preferred == []  # it reports all
    await world.kill()
    stick = agent.devices.pop("sd7")
    agent.missing = [TOO_MANY]

    async def prefer(params: dict[str, Any]) -> None:
        agent.devices["sd7"] = stick
        await agent.report()

    agent.on["report.prefer"] = prefer
    await world.start()
    assert agent.preferred == ["sd7"]
    answer = await world.client.call("device.list", device_class="block", after="sys-usb:sd6")
    assert [each["present"] for each in answer["devices"] if each["device"] == "sd7"] == [True]
    assert agent.calls.count("report.prefer") == 1


async def test_what_is_lent_is_always_preferred_and_of_what_is_assigned_the_log_says_what_is_not(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # As few may be lent as may be preferred, so that the bounds meet.
    assert ATTACHMENTS_MAX <= PREFERRED_MAX
    monkeypatch.setattr("pedos_dom0.attachments.transaction.ATTACHMENTS_MAX", 3)
    monkeypatch.setattr("pedos_dom0.connections.agent_session.PREFERRED_MAX", 3)
    monkeypatch.setattr("pedos_dom0.connections.agent_session.NAMED_MAX", 2)
    for vm in "abcd":
        world.vm(vm)
    await world.start()
    agent = world.driver.agents["sys-usb"]
    for number in range(5):
        key = DeviceKey("block", "sys-usb", f"sd{number}")
        await world.state.store.assign("absent", key, {})
    agent.missing = [TOO_MANY]
    lent = ["sd297", "sd298", "sd299"]
    for vm, name in zip("abc", lent, strict=True):
        await world.client.attach(vm, f"sys-usb:{name}")
    with fails("quota", "sys-usb lends 3 devices already"):
        await world.client.attach("d", "sys-usb:sd296")
    for _ in range(2):
        await agent.report()
        await trio.testing.wait_all_tasks_blocked()
    assert agent.preferred == lent
    (line,) = (record.getMessage() for record in caplog.records if "first" in record.getMessage())
    assert line == (
        "sys-usb has more devices than it reports, and these 5, which are assigned, are not among "
        "the 3 that it is asked to report first: sys-usb:sd0, sys-usb:sd1 and others"
    )
    # Nor does a restart take them away.
    await world.restart()
    assert sorted(agent.preferred) == lent
    assert len(world.state.leases) == 3


async def test_an_agent_that_could_not_answer_a_preference_is_asked_again(world: World) -> None:
    await world.start()
    await world.client.attach("work", "sys-usb:sd7", persistent=True)
    agent = world.driver.agents["sys-usb"]
    agent.missing = [TOO_MANY]

    async def fail(params: dict[str, Any]) -> None:
        raise CallError("failed", "no descriptors left")

    agent.on["report.prefer"] = fail
    await agent.report()
    await trio.testing.wait_all_tasks_blocked()
    assert agent.preferred == []
    del agent.on["report.prefer"]
    for _ in range(2):
        await agent.report()
        await trio.testing.wait_all_tasks_blocked()
    assert agent.preferred == ["sd7"]
    assert agent.calls.count("report.prefer") == 2


async def test_an_agent_that_does_not_know_of_preferring_is_served_all_the_same(
    world: World,
) -> None:
    async def refuse(params: dict[str, Any]) -> None:
        raise CallError("unknown_method", "what is that?")

    agent = world.driver.agents["sys-usb"]
    agent.on["report.prefer"] = refuse
    await world.start()
    await world.client.attach("work", "sys-usb:sd7", persistent=True)
    agent.missing = [TOO_MANY]
    await agent.report()
    await trio.testing.wait_all_tasks_blocked()
    assert agent.calls[-1] == "report.prefer"
    await world.client.attach("work", "sys-usb:sd8")


def test_a_great_change_is_told_at_once_and_whole() -> None:
    registry = Registry()
    told: list[Sequence[DeviceKey]] = []
    registry.follow(told.append)
    registry.replace("vm", [device(f"d{number}") for number in range(1000)])
    assert len(told) == 1 and len(set(told[0])) == 1000
    changes = registry.replace("vm", [device("d1")])
    assert len(changes.removed) == 999 and changes.changed == ()


def test_what_is_said_again_is_no_change() -> None:
    registry = Registry()
    registry.replace("vm", [device("a"), device("b")])
    changes = registry.replace("vm", [device("b"), device("a", description="another")])
    assert changes.changed == (DeviceKey("block", "vm", "a"),)
    assert not changes.added and not changes.removed


def test_a_set_without_some_leaves_the_set_as_it_was() -> None:
    devices = DeviceSet.of("vm", [device("a"), device("xvdi"), device("b")])
    rest = devices.without("block", {"xvdi"})
    assert [key.device for _, key in rest.in_order("block")] == ["a", "b"]
    assert rest.get("block", "xvdi") is None
    assert len(devices) == 3
    assert rest.without("block", {"xvdi"}) is rest


@pytest.mark.alone
async def test_the_largest_reports_of_one_vm_hold_the_loop_for_no_step(world: World) -> None:
    """Each of them another, while dom0's user lists and a device is attached."""
    await world.start()
    agent = world.driver.agents["sys-usb"]
    longest = LongestStep()
    gc.collect()
    gc.disable()
    try:
        for turn in range(2):
            agent.devices.clear()
            for number in reversed(range(DEVICES_MAX)):
                agent.plug(f"d{number}", description=f"turn {turn}")
            await longest.begin()
            await agent.report()
            await world.client.call("device.list", device_class="block")
            await world.client.call("device.list", device_class="block", after="sys-usb:d4000")
            await world.client.attach("work", f"sys-usb:d{turn}")
            await longest.end()
    finally:
        gc.enable()
    # A step here may be one of both ends of a connection. To take such a report at once takes ten
    # times as long.
    longest.check(5 * STEP_MAX)


async def test_an_agent_may_report_pages_of_the_largest_size_without_a_pause(
    world: World, autojump_clock: Clock
) -> None:
    agent = world.driver.agents["sys-usb"]
    agent.devices.clear()
    for number in range(PAGE_DEVICES_MAX * 32):
        agent.plug(f"sd{number}", identity="a" * 255, description="b" * 75)
    await world.start()
    for _ in range(10):
        await agent.report()
    assert world.audit("disconnected") == []
