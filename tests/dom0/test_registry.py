"""The registry: whole reports in, changes out."""

from __future__ import annotations

from typing import Any

import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from pedos_dom0.tables.registry import (
    Changes,
    DeviceKey,
    Registry,
)
from pedos_protocol.messages import Device


def device(name: str, parent: str | None = None, **fields: Any) -> Device:
    known: dict[str, Any] = {
        "device_class": "block",
        "identity": "",
        "description": "a disk",
        "size": 512,
        "read_only": False,
        "busy": None,
    }
    return Device(device=name, parent=parent, **{**known, **fields})


def key(name: str, backend: str = "sys-usb", device_class: str = "block") -> DeviceKey:
    return DeviceKey(device_class, backend, name)


def test_a_key_is_shown_as_users_write_it() -> None:
    assert str(key("sda")) == "sys-usb:sda"


def test_a_report_replaces_the_one_before() -> None:
    registry = Registry()
    assert registry.replace("sys-usb", [device("sda"), device("sdb")]) == Changes(
        added=(key("sda"), key("sdb"))
    )
    changes = registry.replace("sys-usb", [device("sdb", size=1024), device("sdc")])
    assert changes == Changes((key("sdc"),), (key("sda"),), (key("sdb"),))
    assert registry.get(key("sda")) is None
    assert registry.get(key("sdb")) == device("sdb", size=1024)


def test_the_same_report_again_changes_nothing() -> None:
    registry = Registry()
    registry.replace("sys-usb", [device("sda"), device("sdb")])
    changes = registry.replace("sys-usb", [device("sdb"), device("sda")])
    assert not changes


def test_a_backend_s_devices_go_with_it_and_the_others_stay() -> None:
    registry = Registry()
    registry.replace("sys-usb", [device("sda")])
    registry.replace("work", [device("sda")])
    assert registry.remove_backend("sys-usb") == Changes(removed=(key("sda"),))
    assert registry.remove_backend("sys-usb") == Changes()
    assert list(registry) == [key("sda", "work")]


def test_one_id_may_stand_in_two_classes() -> None:
    registry = Registry()
    registry.replace("sys-usb", [device("x"), device("x", device_class="usb")])
    assert [k for k, _ in registry.items("usb")] == [key("x", device_class="usb")]
    assert len(registry.items()) == 2
    assert registry.items("pci") == []


def test_of_two_devices_with_one_name_the_first_counts() -> None:
    registry = Registry()
    registry.replace("sys-usb", [device("sda", size=1), device("sda", size=2)])
    assert [d.size for _, d in registry.items()] == [1]


def test_a_family_is_a_disk_with_its_partitions_but_not_two_partitions() -> None:
    registry = Registry()
    parts = [device("sda1", "sda"), device("sda2", "sda"), device("luks", "sda2")]
    registry.replace("sys-usb", [device("sda"), *parts, device("sdb")])
    registry.replace("work", [device("sda"), device("sda1", "sda")])
    assert registry.family(key("sda")) == {key(n) for n in ("sda", "sda1", "sda2", "luks")}
    assert registry.family(key("sda1")) == {key("sda1"), key("sda")}
    assert registry.family(key("luks")) == {key("luks"), key("sda2"), key("sda")}
    assert registry.family(key("sdb")) == {key("sdb")}
    assert registry.family(key("unknown")) == {key("unknown")}


def test_parents_that_lead_in_a_circle_or_nowhere_do_no_harm() -> None:
    registry = Registry()
    registry.replace("sys-usb", [device("a", "b"), device("b", "a"), device("c", "c")])
    assert registry.family(key("a")) == {key("a"), key("b")}
    assert registry.family(key("c")) == {key("c")}
    registry.replace("sys-usb", [device("a", "gone")])
    assert registry.family(key("a")) == {key("a"), key("gone")}


def test_what_shares_data_is_one_family() -> None:
    """Two loop devices of one file, one of which is made of by a partition of a third."""
    registry = Registry()
    registry.replace(
        "sys-usb",
        [
            device("loop0", shares=("loop1",)),
            device("loop1"),
            device("loop2", shares=("sda1", "elsewhere")),
            device("sda"),
            device("sda1", parent="sda"),
            device("sda2", parent="sda"),
        ],
    )
    assert registry.family(key("loop0")) == registry.family(key("loop1"))
    assert registry.family(key("loop0")) == {key("loop0"), key("loop1")}
    assert registry.family(key("loop2")) == {key("loop2"), key("sda1"), key("elsewhere")}
    assert registry.family(key("sda1")) == {key("sda1"), key("sda"), key("loop2")}
    assert key("loop2") in registry.family(key("sda"))
    assert registry.family(key("sda2")) == {key("sda2"), key("sda")}


@given(st.dictionaries(st.sampled_from("abcdef"), st.sampled_from([*"abcdef", None])))
@settings(derandomize=True, max_examples=200, deadline=None)
def test_whatever_the_parents_family_is_mutual(parents: dict[str, str | None]) -> None:
    registry = Registry()
    registry.replace("sys-usb", [device(name, parent) for name, parent in parents.items()])
    for one in parents:
        for other in registry.family(key(one)):
            assert key(one) in registry.family(other)


def test_a_follower_is_told_of_every_change_in_order() -> None:
    registry = Registry()
    registry.replace("sys-usb", [device("old")])
    told: list[DeviceKey] = []
    registry.follow(told.extend)
    registry.replace("sys-usb", [device("new2"), device("new1")])
    assert told == [key("old"), key("new1"), key("new2")]
    registry.replace("sys-usb", [device("new2"), device("new1")])
    assert len(told) == 3, "nothing has changed"
    registry.replace("sys-usb", [device("new2"), device("new1", size=1)])
    registry.touch(key("new2"))
    assert told[3:] == [key("new1"), key("new2")]


def test_a_follower_finds_what_it_is_told_of() -> None:
    registry = Registry()
    found: list[Device | None] = []
    registry.follow(lambda keys: found.extend(map(registry.get, keys)))
    registry.replace("sys-usb", [device("sda")])
    registry.remove_backend("sys-usb")
    assert found == [device("sda"), None]


async def test_who_waits_is_woken_by_the_next_change() -> None:
    registry = Registry()
    changes = 0

    async def wait() -> None:
        nonlocal changes
        while True:
            await registry.changed()
            changes += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        registry.replace("sys-usb", [device("sda")])
        await trio.testing.wait_all_tasks_blocked()
        assert changes == 1
        registry.replace("sys-usb", [device("sda")])
        await trio.testing.wait_all_tasks_blocked()
        assert changes == 1, "nothing has changed"
        registry.touch(key("sda"))
        await trio.testing.wait_all_tasks_blocked()
        assert changes == 2
        nursery.cancel_scope.cancel()


def test_a_device_that_was_away_is_told_from_one_that_stayed() -> None:
    registry = Registry()
    registry.replace("sys-usb", [device("sda"), device("sdb")])
    since = registry.since(key("sda"))
    assert since is not None
    registry.replace("sys-usb", [device("sda", description="mounted now", busy="mounted")])
    registry.touch(key("sda"))
    assert registry.since(key("sda")) == since
    assert registry.since(key("sdb")) is None
    registry.remove_backend("sys-usb")
    assert registry.since(key("sda")) is None
    registry.replace("sys-usb", [device("sda")])
    assert registry.since(key("sda")) not in (None, since)
