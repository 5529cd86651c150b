"""Leases: no device, and no data of a device, is ever with two VMs."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from pedos_dom0.tables.leases import ATTACHED, PENDING, Lease, LeaseTable, Taken
from pedos_dom0.tables.registry import DeviceKey

DISK, PART1, PART2 = (DeviceKey("block", "sys-usb", name) for name in ("sda", "sda1", "sda2"))
MIC = DeviceKey("mic", "dom0", "mic")
FAMILIES = {
    DISK: {DISK, PART1, PART2},
    PART1: {DISK, PART1},
    PART2: {DISK, PART2},
    MIC: {MIC},
}


def lease(attachment: str, key: DeviceKey = DISK, vm: str = "work") -> Lease:
    return Lease(
        attachment=attachment,
        key=key,
        vm=vm,
        options={"read-only": "no"},
        frontend=None,
        port=100,
        backend_domid=3,
        vm_domid=4,
        state=PENDING,
    )


def grant(table: LeaseTable, new: Lease) -> None:
    table.grant(new, FAMILIES[new.key], shared=new.key.device_class == "mic")


def test_a_lease_is_found_from_every_side_until_it_is_freed() -> None:
    table = LeaseTable()
    grant(table, lease("a1"))
    (held,) = table
    assert table.get("a1") is held
    assert table.of_device(DISK) == table.of_vm("work") == table.from_backend("sys-usb") == [held]
    assert table.of_device(PART1) == table.of_vm("sys-usb") == table.from_backend("work") == []
    assert table.free("a1") is held
    assert table.get("a1") is None
    assert len(table) == 0


def test_freeing_twice_is_harmless() -> None:
    table = LeaseTable()
    grant(table, lease("a1"))
    assert table.free("a1") is not None
    assert table.free("a1") is None


def test_a_second_grant_names_the_holder_and_changes_nothing() -> None:
    table = LeaseTable()
    grant(table, lease("a1", vm="work"))
    with pytest.raises(Taken, match="sys-usb:sda is attached to work") as taken:
        grant(table, lease("a2", vm="vault"))
    assert taken.value.holder == lease("a1", vm="work")
    assert [held.attachment for held in table] == ["a1"]
    table.free("a1")
    grant(table, lease("a2", vm="vault"))


def test_the_same_vm_does_not_get_a_device_twice() -> None:
    for key in (DISK, MIC):
        table = LeaseTable()
        grant(table, lease("a1", key))
        with pytest.raises(Taken):
            grant(table, lease("a2", key))


@pytest.mark.parametrize(("first", "second"), [(DISK, PART1), (PART1, DISK)])
def test_a_disk_and_its_partition_exclude_each_other(first: DeviceKey, second: DeviceKey) -> None:
    table = LeaseTable()
    grant(table, lease("a1", first, "work"))
    for vm in ("vault", "work"):
        with pytest.raises(Taken) as taken:
            grant(table, lease("a2", second, vm))
        assert taken.value.holder.key == first


def test_two_partitions_may_go_to_two_vms() -> None:
    table = LeaseTable()
    grant(table, lease("a1", PART1, "work"))
    grant(table, lease("a2", PART2, "vault"))
    with pytest.raises(Taken):
        grant(table, lease("a3", DISK, "work"))


def test_a_source_that_tells_another_story_later_does_not_get_its_disk_out_twice() -> None:
    table = LeaseTable()
    table.grant(lease("a1", PART1, "work"), {PART1, DISK}, shared=False)
    with pytest.raises(Taken):
        table.grant(lease("a2", DISK, "vault"), {DISK}, shared=False)


def test_a_microphone_may_be_with_many_but_only_if_all_share() -> None:
    table = LeaseTable()
    grant(table, lease("a1", MIC, "work"))
    grant(table, lease("a2", MIC, "vault"))
    assert {held.vm for held in table.of_device(MIC)} == {"work", "vault"}
    with pytest.raises(Taken):
        table.grant(lease("a3", MIC, "personal"), {MIC}, shared=False)


def test_an_attachment_s_id_cannot_be_used_twice() -> None:
    table = LeaseTable()
    grant(table, lease("a1", DISK))
    with pytest.raises(ValueError, match="a1 exists already"):
        grant(table, lease("a1", MIC))


def test_an_update_notes_how_far_it_is_and_nothing_else() -> None:
    table = LeaseTable()
    grant(table, lease("a1"))
    after = table.update("a1", state=ATTACHED, frontend="xvdi")
    assert after == attrs.evolve(lease("a1"), state=ATTACHED, frontend="xvdi")
    assert table.get("a1") == after
    assert table.update("a1", vm_domid=9).vm_domid == 9
    with pytest.raises(Taken):
        grant(table, lease("a2", PART1))
    with pytest.raises(KeyError):
        table.update("a2", state=ATTACHED)


def test_there_are_no_states_but_those_of_the_journal() -> None:
    with pytest.raises(ValueError, match="state"):
        attrs.evolve(lease("a1"), state="half")


class Holders(RuleBasedStateMachine):
    """Any grants and frees, against the plainest book-keeping there is."""

    def __init__(self) -> None:
        super().__init__()
        self.table = LeaseTable()
        self.book: dict[str, tuple[DeviceKey, str]] = {}
        self.count = 0

    @rule(key=st.sampled_from(sorted(FAMILIES)), vm=st.sampled_from(["work", "vault", "personal"]))
    def grant(self, key: DeviceKey, vm: str) -> None:
        self.count += 1
        attachment = f"a{self.count}"
        in_the_way = [
            (other, holder)
            for other, holder in self.book.values()
            if other in FAMILIES[key] and not (key == MIC and holder != vm)
        ]
        try:
            grant(self.table, lease(attachment, key, vm))
        except Taken as taken:
            assert (taken.holder.key, taken.holder.vm) in in_the_way
        else:
            assert not in_the_way
            self.book[attachment] = (key, vm)

    @rule(number=st.integers(0, 20))
    def free(self, number: int) -> None:
        freed = self.table.free(f"a{number}")
        expected = self.book.pop(f"a{number}", None)
        assert (freed and (freed.key, freed.vm)) == expected

    @rule(number=st.integers(0, 20))
    def update(self, number: int) -> None:
        if f"a{number}" in self.book:
            self.table.update(f"a{number}", state=ATTACHED)

    @invariant()
    def no_data_is_with_two(self) -> None:
        leases = list(self.table)
        assert len(leases) == len(self.book)
        for one in leases:
            for other in leases:
                if one is not other and one.key in FAMILIES[other.key]:
                    assert one.key == other.key == MIC
                    assert one.vm != other.vm


TestHolders = Holders.TestCase
TestHolders.settings = settings(
    derandomize=True, max_examples=60, stateful_step_count=30, deadline=None
)
