"""Which of several assignments decides: the most specific, and none where they do not agree."""

from __future__ import annotations

from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pedos_dom0.tables.assignment import (
    ANY_PORT,
    BOTH,
    DEVICE,
    NAMED_MAX,
    PORT,
    Assignment,
    claim,
    named,
    slot,
)
from pedos_dom0.tables.registry import DeviceKey

HERE = DeviceKey("usb", "sys-usb", "1-1")
THERE = DeviceKey("usb", "sys-usb", "1-2")
ANYWHERE = DeviceKey("usb", "sys-usb", ANY_PORT)
VMS = ["personal", "vault", "work"]
KEY, STICK = "1050:0407::u030101", "0951:1666:E0D5:u080650"

to_port = st.builds(Assignment, st.sampled_from(VMS), st.sampled_from([HERE, THERE]), st.just({}))
to_device = st.builds(
    Assignment,
    st.sampled_from(VMS),
    st.just(ANYWHERE),
    st.just({}),
    st.sampled_from([KEY, STICK]),
)
to_both = st.builds(
    Assignment,
    st.sampled_from(VMS),
    st.sampled_from([HERE, THERE]),
    st.just({}),
    st.sampled_from([KEY, STICK]),
)
# A VM has one assignment in each slot, as in the store.
several = st.lists(
    to_port | to_device | to_both, max_size=8, unique_by=lambda each: (each.vm, each.slot)
)
identities = st.sampled_from([KEY, STICK, ""])


def test_the_three_kinds_of_assignments_say_what_they_are_to() -> None:
    port, device, both = (
        Assignment("work", HERE, {}),
        Assignment("work", ANYWHERE, {}, KEY),
        Assignment("work", HERE, {}, KEY),
    )
    assert [each.weight for each in (port, device, both)] == [PORT, DEVICE, BOTH]
    assert [each.match for each in (port, device, both)] == ["port", "device", "both"]
    assert list(map(str, (port, device, both))) == [
        "sys-usb:1-1",
        f"sys-usb:*:{KEY}",
        "sys-usb:1-1",
    ]
    assert port.slot == both.slot == slot(HERE, STICK) != device.slot
    assert [each.fits(HERE, STICK) for each in (port, device, both)] == [True, False, False]
    assert [each.fits(THERE, KEY) for each in (port, device, both)] == [False, True, False]
    assert not any(each.fits(DeviceKey("usb", "dom0", "1-1"), KEY) for each in (port, device, both))
    assert not any(
        each.fits(DeviceKey("block", "sys-usb", "1-1"), KEY) for each in (port, device, both)
    )


@given(assignments=several, identity=identities)
def test_the_most_specific_ones_decide_in_whatever_order_they_were_made(
    assignments: list[Assignment], identity: str
) -> None:
    found = claim(HERE, identity, assignments)
    fitting = [each for each in assignments if each.fits(HERE, identity)]
    assert sorted((*found.first, *found.others), key=repr) == sorted(fitting, key=repr)
    most = max((each.weight for each in fitting), default=None)
    assert {each.weight for each in found.first} == ({most} if fitting else set())
    assert all(each.weight < (most or 0) for each in found.others)
    for other in list(permutations(assignments))[:24]:
        assert claim(HERE, identity, other) == found


@given(assignments=several, identity=identities, twin=st.booleans())
def test_there_is_a_winner_or_a_reason_and_never_both(
    assignments: list[Assignment], identity: str, twin: bool
) -> None:
    found = claim(HERE, identity, assignments, [HERE, THERE] if twin else [HERE])
    assert (found.winner is None) == (not found.first or found.conflict is not None)
    if found.winner is not None:
        assert found.winner.fits(HERE, identity) and found.is_for(found.winner.vm)
    # Of equally specific assignments, each VM has one.
    assert len({each.vm for each in found.first}) == len(found.first)


@given(assignments=several, identity=identities, more=to_port | to_device | to_both)
def test_a_less_specific_assignment_changes_nothing(
    assignments: list[Assignment], identity: str, more: Assignment
) -> None:
    before = claim(HERE, identity, assignments)
    assignments = [each for each in assignments if (each.vm, each.slot) != (more.vm, more.slot)]
    before = claim(HERE, identity, assignments)
    after = claim(HERE, identity, [*assignments, more])
    if before.first and (not more.fits(HERE, identity) or more.weight < before.first[0].weight):
        assert (after.first, after.winner) == (before.first, before.winner)
    elif more.fits(HERE, identity):
        assert more in after.first


def test_two_vms_with_equally_specific_assignments_are_both_told_of() -> None:
    both = [Assignment(vm, HERE, {}, KEY) for vm in ("work", "vault")]
    found = claim(HERE, KEY, [*both, Assignment("personal", HERE, {})])
    assert found.winner is None
    assert found.conflict == (
        "the assignments of sys-usb:1-1 to vault and work are equally specific"
    )
    # Of those that require it the first that starts gets it.
    assert [found.is_for(vm) for vm in VMS] == [False, True, True]


def test_two_devices_with_one_identity_go_nowhere_unless_the_port_tells_them_apart() -> None:
    anywhere = Assignment("work", ANYWHERE, {}, KEY)
    found = claim(HERE, KEY, [anywhere, Assignment("vault", HERE, {})], [THERE, HERE])
    assert found.winner is None and not any(map(found.is_for, VMS)), "nor to the less specific"
    assert found.conflict == f"sys-usb:1-1 and sys-usb:1-2 have the identity {KEY}"
    here = Assignment("vault", HERE, {}, KEY)
    assert claim(HERE, KEY, [anywhere, here], [THERE, HERE]).winner == here


@pytest.mark.parametrize("count", [1, 2, NAMED_MAX, NAMED_MAX + 1, 1000])
def test_a_sentence_names_a_few(count: int) -> None:
    text = named(f"vm{number}" for number in range(count))
    assert len(text) < 40 and text.startswith("vm0")
    assert text.endswith(" more") == (count > NAMED_MAX)
