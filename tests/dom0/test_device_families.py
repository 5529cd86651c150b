"""Which devices share data, among thousands about which a VM may report anything."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from pedos_dom0.requests.assignable import conflict
from pedos_dom0.tables.device_set import DeviceSet
from pedos_dom0.tables.registry import DeviceKey, Registry
from pedos_dom0.tables.store import Assignment
from pedos_protocol.fields import ATTACHMENTS_MAX, DEVICES_MAX, SHARES_MAX
from pedos_protocol.messages import Device
from pedos_protocol.names import frontend_names

from tests.dom0.test_registry import device, key

IDS = "abcdef"
lists = st.lists(st.sampled_from(IDS + "x"), max_size=2).map(tuple)


@given(st.dictionaries(st.sampled_from(IDS), st.tuples(st.sampled_from([*IDS, None]), lists)))
@settings(derandomize=True, max_examples=200, deadline=None)
def test_whatever_a_vm_says_relatives_are_those_of_which_one_is_in_the_others_family(
    said: dict[str, tuple[str | None, tuple[str, ...]]],
) -> None:
    registry = Registry()
    devices = [device(name, parent, shares=shares) for name, (parent, shares) in said.items()]
    registry.replace("sys-usb", [*devices, device("gone", "a", shares=("b",))])
    whole = registry.devices_of("sys-usb")
    made_anew = DeviceSet.of("sys-usb", devices)
    less = whole.without("block", ("gone",))
    for one in map(key, IDS + "x"):
        related = registry.relatives(one)
        for other in map(key, [*IDS, "x", "gone"]):
            expected = other in registry.family(one) or one in registry.family(other)
            assert (other in related) == expected
        name = ("block", one.device)
        assert less.family(name) == made_anew.family(name)
        assert less.relatives(name) == made_anew.relatives(name)


def many(**fields: Any) -> list[Device]:
    """As many as a VM may have, each of which shares with as many as it may."""
    shares = [
        tuple(f"d{(n + step) % DEVICES_MAX}" for step in range(1, SHARES_MAX + 1))
        for n in range(DEVICES_MAX)
    ]
    return [device(f"d{n}", shares=shares[n], **fields) for n in range(DEVICES_MAX)]


def steps(work: Callable[[], object]) -> int:
    """Lines that are run: the same on every machine, however busy it is."""
    count = 0

    def trace(_frame: FrameType, event: str, _argument: object) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


def test_an_assignment_does_not_cost_what_devices_a_vm_says_that_it_has() -> None:
    registry = Registry()
    registry.replace("sys-usb", many())
    others = [
        Assignment("work", key(f"d{n}"), {}) for n in range(0, DEVICES_MAX, DEVICES_MAX // 20)
    ]
    found: list[object] = []
    taken = steps(lambda: found.append(conflict("work", key("d100"), None, others, registry)))
    assert found == [None]
    assert taken < 3000
    near = [*others, Assignment("work", key("d99"), {})]
    assert "shares data with sys-usb:d99" in str(
        conflict("work", key("d100"), None, near, registry)
    )


def test_a_page_of_a_report_costs_what_it_has_and_not_what_came_before() -> None:
    devices, made = many(), DeviceSet("sys-usb")
    pages = [devices[at : at + 128] for at in range(0, DEVICES_MAX, 128)]
    costs = [steps(lambda page=page: made.add(page)) for page in pages]  # type: ignore[misc]
    assert max(costs[1:]) <= 1.1 * costs[0]
    made.finish()
    assert len(made.family(("block", "d100"))) == 2 * SHARES_MAX + 1


def test_disks_are_counted_when_there_is_no_name_left_for_one() -> None:
    names = [f"d{n}" for n in range(len(frontend_names()))]
    others = [Assignment("work", key(name), {}) for name in names]
    usb = [Assignment("work", DeviceKey("usb", "sys-usb", f"1-{n}"), {}) for n in range(9)]
    error = conflict("work", key("x"), None, [*others, *usb], Registry())
    assert f"work has {len(names)} disks, one for each name, assigned to it" in str(error)
    assert error is not None and error.data["hint"].endswith(f"work sys-usb:{names[-1]}")
    assert conflict("work", usb[0].key, None, [*others, *usb], Registry()) is None
    many = [Assignment("work", key(f"z{n}"), {}) for n in range(ATTACHMENTS_MAX)]
    error = conflict("work", DeviceKey("usb", "sys-usb", "x"), None, many, Registry())
    assert f"work has {ATTACHMENTS_MAX} devices assigned to it" in str(error)
