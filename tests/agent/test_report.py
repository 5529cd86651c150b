"""A bound never removes what is lent, assigned or known; what it leaves out is counted."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any
from unittest import mock

import attrs
import pytest
import trio
from pedos_agent import agent
from pedos_agent.device_classes import in_folder as discovery_folder
from pedos_agent.device_classes.in_folder import NAMES_MAX, chosen
from pedos_agent.inventory import report
from pedos_agent.inventory.inventory import Inventory
from pedos_agent.inventory.local_device import LocalDevice, device_id_of
from pedos_agent.inventory.priority import Priority
from pedos_agent.inventory.report import TOO_MANY, pages
from pedos_agent.settings import Settings
from pedos_agent.system.revision import Revision
from pedos_protocol.agent_messages import Device, Missing
from pedos_protocol.fields import PAGE_DEVICES_MAX
from pedos_protocol.schema import wire_size

from .conftest import ATTACHMENT, FakeDom0, needs_fuse

Start = Callable[[Settings], Awaitable[FakeDom0]]


def a_disk(name: str, **fields: Any) -> LocalDevice:
    plain: dict[str, Any] = {"identity": "", "description": name, "size": 1, "parent": None}
    return LocalDevice(
        Device("block", name, **{**plain, "read_only": False, "busy": None, **fields})
    )


def ids(devices: Inventory) -> list[str]:
    return [device.device for device in devices.devices()]


@pytest.fixture
def devices(monkeypatch: pytest.MonkeyPatch) -> Inventory:
    """That of a VM which may report three devices."""
    monkeypatch.setattr(report, "DEVICES_MAX", 3)
    return Inventory(Revision(), lambda: None)


def test_what_is_lent_comes_first_then_what_dom0_prefers_then_what_is_known(
    devices: Inventory,
) -> None:
    devices.replace("block", [a_disk("known")])
    devices.priority.lent = lambda: {("block", "lent")}
    trio.run(devices.prefer, [("block", "wanted")])
    names = ["a", "b", "c", "known", "lent", "wanted"]
    devices.replace("block", [a_disk(name) for name in names])
    assert ids(devices) == ["known", "lent", "wanted"]
    assert devices.missing() == (Missing("block", 3, TOO_MANY),)


def test_a_preferred_device_takes_the_place_of_another_at_once(devices: Inventory) -> None:
    devices.replace("block", [a_disk(name) for name in "abcd"])
    assert ids(devices) == ["a", "b", "c"]
    assert trio.run(devices.prefer, [("block", "d")]) == 2
    assert ids(devices) == ["a", "b", "d"]


def test_descriptions_that_grow_push_out_no_device_that_is_lent(
    devices: Inventory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "WEIGHT_MAX", 1000)
    devices.priority.lent = lambda: {("block", "x")}
    devices.replace("block", [a_disk("a"), a_disk("x")])
    devices.replace("block", [a_disk("a", description="y" * 128, busy="z" * 128), a_disk("x")])
    assert "x" in ids(devices)


def test_what_a_discovery_did_not_look_at_is_counted_with_what_does_not_fit(
    devices: Inventory,
) -> None:
    devices.replace("folder", [a_disk(name) for name in "abcd"], {"block": 5, "usb": 1}, why="so")
    assert devices.missing() == (
        Missing("block", 6, f"{TOO_MANY}; so"),
        Missing("usb", 1, "so"),
    )
    devices.replace("folder", [a_disk("a")])
    assert devices.missing() == ()


def test_where_nobody_could_look_it_is_not_known_how_many_are_missing(devices: Inventory) -> None:
    devices.failed("block", "Too many open files")
    assert devices.devices() == []
    assert devices.missing() == (Missing("block", None, "Too many open files"),)
    devices.replace("block", [])
    assert devices.missing() == ()


def test_a_report_of_any_size_is_in_pages_that_fit() -> None:
    few = [a_disk(f"d{number}").device for number in range(PAGE_DEVICES_MAX + 1)]
    missing = (Missing("block", 1, TOO_MANY),)
    first, second = pages(7, few, [], [], missing)
    assert (first.page, first.last, first.missing) == (0, False, ())
    assert (second.page, second.last, second.missing) == (1, True, missing)
    assert [*first.devices, *second.devices] == few
    assert {first.revision, second.revision} == {7}
    (only,) = pages(7, [], [], [], ())
    assert (only.page, only.last) == (0, True)


def test_no_device_takes_more_than_a_page_allows_for() -> None:
    text, name = "\N{GRINNING FACE}" * 128, "x" * 64
    shares = tuple(f"{number:064}" for number in range(16))
    longest = Device(
        *("block", name, "i" * 128, text, 2**63 - 1, name, False, text),
        **{"stale": text, "instance": "i" * 64, "shares": shares},
    )
    assert wire_size(longest) <= report.DEVICE_BYTES_MAX


def test_of_too_many_names_those_that_count_are_looked_at(settings: Settings) -> None:
    for name in ("a", "b", "two words", "z"):
        (settings.devices / "block" / name).write_bytes(b"x")
    (settings.devices / "usb" / "1-2").write_text("stick")
    ranks = {("block", device_id_of("two words")): 0, ("block", "z"): 2}
    names, left_out, unseen_classes = chosen(settings.devices, ranks, 3)
    assert names == {"block": ["z", "two words"], "usb": ["1-2"]}
    assert left_out == {"block": 2}
    assert unseen_classes == []


async def test_a_preference_is_heeded_by_a_look_that_began_afterwards(
    autojump_clock: trio.testing.MockClock,
) -> None:
    priority = Priority()
    priority.heed(priority.wishes.number)
    done = trio.Event()

    async def prefer() -> None:
        await priority.prefer([("block", "a")])
        done.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(prefer)
        await trio.testing.wait_all_tasks_blocked()
        priority.heed(0)  # a look that was under way
        await trio.testing.wait_all_tasks_blocked()
        assert not done.is_set()
        priority.heed(priority.wishes.number)


@needs_fuse
async def test_more_names_before_it_than_are_looked_at_do_not_pull_an_attached_disk(
    monkeypatch: pytest.MonkeyPatch, settings: Settings, start: Start
) -> None:
    monkeypatch.setattr(agent, "allow_descriptors", lambda _: agent.RESERVED + 2 * 50)
    folder = settings.devices / "block"
    (folder / "stick.img").write_bytes(b"x" * 512)
    source = await start(settings)
    await source.lend(ATTACHMENT, "stick.img", 3)
    for number in range(53):
        (folder / f"a{number}").write_bytes(b"x" * 512)
    seen = await source.until(lambda report: report.missing and report.missing[0].count == 4)
    listed = {device.device for device in seen.devices}
    assert len(listed) == 50 and "stick.img" in listed
    assert seen.missing[0].reason == agent._why_not_more(50)
    assert [export.attachment for export in seen.exports] == [ATTACHMENT]
    # dom0 wishes to know of one that is left out.
    (out,) = {"a52"} - listed
    wanted = [{"device_class": "block", "device": out}]
    answer = await source.call("report.prefer", devices=wanted)
    seen = await source.until(lambda report: report.revision >= answer["revision"])
    assert {"stick.img", out} <= {device.device for device in seen.devices}
    await source.lend("f" * 16, out, 4)
    for attachment in (ATTACHMENT, "f" * 16):
        await source.call("export.stop", attachment=attachment)


def test_few_descriptors_are_the_reason_for_few_names() -> None:
    from pedos_agent.agent import _why_not_more

    assert _why_not_more(NAMES_MAX) == TOO_MANY
    assert _why_not_more(256) == ("its agent may have so few files open that it looks at 256 names")


def test_an_agent_that_may_have_too_few_files_open_says_so_and_does_not_start() -> None:
    assert agent.names_with(agent.DESCRIPTORS) == NAMES_MAX
    assert agent.names_with(agent.DESCRIPTORS_LEAST) == 1
    for few in (agent.DESCRIPTORS_LEAST - 1, agent.RESERVED, 256, 0):
        with pytest.raises(OSError, match=f"only {few} files open, and needs 514 at least"):
            agent.names_with(few)


async def test_a_preference_is_answered_while_looks_fail(settings: Settings, start: Start) -> None:
    dom0 = await start(settings)
    with mock.patch.object(discovery_folder, "chosen", side_effect=OSError(24, "Too many")):
        wanted = [{"device_class": "block", "device": "disk"}]
        answer = await dom0.call("report.prefer", devices=wanted)
        await dom0.until(lambda report: report.revision >= answer["revision"])
    assert {each.reason for each in dom0.report.missing} == {"Too many"}


def test_all_devices_are_the_same_after_they_were_paged() -> None:
    many = [attrs.evolve(a_disk(f"d{n}").device, description="x" * (n % 128)) for n in range(999)]
    paged = [device for page in pages(1, many, [], [], ()) for device in page.devices]
    assert paged == many
