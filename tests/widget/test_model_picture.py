"""What the service tells, folded and read: each device and VM by itself."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pedos_protocol.errors import ProtocolError
from pedos_widget.model.families import CHILDREN_MAX, INDENT_MAX, in_order
from pedos_widget.model.picture import ANEW, Key, Picture

from tests.widget.fake_service import device, vm


def answer(
    devices: list[Any] | None = None, vms: list[Any] | None = None, **fields: Any
) -> dict[str, Any]:
    """An answer to watch.next about these, in the usual form unless they are something else."""

    def change(told: Any, names: dict[str, str]) -> Any:
        if not isinstance(told, dict):
            return told
        return {"number": 1, "now": told} | {key: told.get(name) for key, name in names.items()}

    keys = {name: name for name in Key._fields}
    return {
        "numbering": "n",
        "number": 1,
        "begun": 0,
        "complete": True,
        "gap": None,
        "devices": [change(each, keys) for each in devices or []],
        "vms": [change(each, {"vm": "name"}) for each in vms or []],
    } | fields


WIRE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
FIELDS = sorted(device("a:b"))


@st.composite
def strange(draw: st.DrawFn) -> Any:
    """A device with fields that are of any sort, or something else altogether."""
    if draw(st.booleans()):
        return draw(WIRE)
    odd: dict[str, Any] = device("src:odd")
    for name in draw(st.lists(st.sampled_from([*FIELDS, "novel"]), min_size=1, max_size=4)):
        odd[name] = draw(WIRE)
    return odd


@given(
    odd=st.lists(strange(), max_size=4), odd_vms=st.lists(WIRE, max_size=3), is_split=st.booleans()
)
def test_what_is_strange_costs_its_own_row_only(
    odd: list[Any], odd_vms: list[Any], is_split: bool
) -> None:
    picture = Picture()
    good = device("sys-usb:sda")
    vms = [vm("work"), *odd_vms]
    told = [odd, [good]] if is_split else [[*odd, good]]
    picture.take(answer(told[0], vms, complete=not is_split))
    if is_split:
        picture.take(answer(told[1]))
    assert picture.is_complete
    assert picture.devices[Key("block", "sys-usb", "sda")].identity == good["identity"]
    assert picture.vms["work"].state == "Running"
    unread = len(odd) + len(odd_vms) + 2 - len(picture.devices) - len(picture.vms)
    assert picture.strange <= unread  # two may be of one device
    assert bool(picture.strange) == bool(unread) or len(odd) > 1


def test_a_device_that_cannot_be_read_is_said_once_and_is_back_when_it_can(
    caplog: pytest.LogCaptureFixture,
) -> None:
    picture = Picture()
    picture.take(answer([device("src:sda"), device("src:sdb")]))
    with caplog.at_level(logging.WARNING):
        for number in (1, 2):
            odd = device("src:sda") | {"size": -number}
            assert picture.take(answer([odd])) == []  # nobody knows whether it is gone
    assert [key.device for key in picture.devices] == ["sdb"]
    assert picture.strange == 1
    assert len(caplog.records) == 1
    assert "size" in caplog.text
    assert picture.take(answer([device("src:sda")])) == []
    assert picture.strange == 0
    assert len(picture.devices) == 2


def test_after_a_gap_the_differences_are_the_changes() -> None:
    picture = Picture()
    assert picture.take(answer([device("src:sda"), device("src:sdb")])) == []
    assert picture.question(anew=True)["numbering"] == ANEW
    changed = device("src:sda", busy="mounted")
    first = picture.take(answer([changed], gap="restarted", numbering="m", complete=False))
    assert first == []
    assert not picture.is_complete
    changes = picture.take(answer([device("src:sdc")], numbering="m"))
    assert [(each.key.device, each.before is None, each.now is None) for each in changes] == [
        ("sda", False, False),
        ("sdb", False, True),
        ("sdc", True, False),
    ]


def test_an_answer_that_is_no_answer_is_an_error() -> None:
    for wrong in ({}, answer() | {"devices": 1}, answer() | {"complete": 1}):
        with pytest.raises(ProtocolError):
            Picture().take(wrong)


IDS = st.sampled_from(["sda", "sda1", "sda2", "sdb", "sdc"])


@given(parents=st.dictionaries(IDS, st.none() | IDS | st.just("gone")), kept=st.sets(IDS))
def test_every_device_has_one_place_whatever_it_says_of_its_parent(
    parents: dict[str, str | None], kept: set[str]
) -> None:
    picture = Picture()
    picture.take(answer([device(f"src:{id_}", parent=parent) for id_, parent in parents.items()]))
    members = in_order(picture.devices, "block", lambda key: key.device in kept)
    assert sorted(each.key.device for each in members) == sorted(parents)
    assert all(0 <= each.indent <= INDENT_MAX for each in members)


def test_partitions_follow_their_disk_and_many_are_folded() -> None:
    picture = Picture()
    disks = [device("src:sda"), device("src:sdb")]
    parts = [device(f"src:sda{number}", parent="sda") for number in range(1, 31)]
    picture.take(answer([*parts, *disks]))
    members = in_order(picture.devices, "block", lambda key: key.device == "sda30")
    assert [each.key.device for each in members] == [
        "sda", *(f"sda{number}" for number in range(1, CHILDREN_MAX)), "sda30", "sdb",
    ]  # fmt: skip
    assert [each.folded for each in members] == [30 - CHILDREN_MAX, *[0] * (CHILDREN_MAX + 1)]
    assert [each.indent for each in members] == [0, *[1] * CHILDREN_MAX, 0]


def test_what_is_below_a_folded_part_is_counted_once() -> None:
    picture = Picture()
    parts = [device(f"src:sda{number}", parent="sda") for number in range(1, CHILDREN_MAX + 3)]
    folded = parts[-1]["device"]
    below = [device("src:x", parent=folded), device("src:y", parent="x"), device("src:z")]
    picture.take(answer([device("src:sda"), *parts, *below]))
    members = in_order(picture.devices, "block", lambda key: key.device == "y")
    assert members[0].folded == 3  # two parts and x
    assert [each.key.device for each in members[1 + CHILDREN_MAX :]] == ["z", "y"]
