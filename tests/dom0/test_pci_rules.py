"""Which PCI devices go to one VM only together, and what dom0's kernel says of a device."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pedos_dom0.drivers.base import DriverError
from pedos_dom0.drivers.xen import pci_rules, pci_sysfs
from pedos_dom0.drivers.xen.pci_sysfs import Function, Picture, look

from tests.pci_tree import (
    BRIDGE,
    DOWNSTREAM,
    ENDPOINT,
    INTEGRATED,
    ROOT_PORT,
    TO_PCI,
    UPSTREAM,
    PciTree,
)


@pytest.fixture
def tree(tmp_path: Path) -> PciTree:
    return PciTree(tmp_path)


def group(tree: PciTree, address: str) -> set[str]:
    picture = look(tree.sys)
    function = picture.functions[f"0000:{address}"]
    return {each.removeprefix("0000:") for each in pci_rules.group_of(picture, function)}


def test_a_device_alone_in_its_slot_or_behind_a_root_port_goes_where_it_likes(
    tree: PciTree,
) -> None:
    tree.add("00:04.0")
    tree.add("00:05.0")
    tree.add("00:1c.0", kind=BRIDGE, port_type=ROOT_PORT)
    tree.add("00:1c.0/02:00.0", port_type=ENDPOINT)
    tree.add("00:1d.0", kind=BRIDGE, port_type=ROOT_PORT)
    tree.add("00:1d.0/03:00.0", port_type=ENDPOINT)
    for address in ("00:04.0", "00:05.0", "02:00.0", "03:00.0"):
        assert group(tree, address) == set()


def test_the_functions_of_a_slot_go_together(tree: PciTree) -> None:
    tree.add("00:1c.0", kind=BRIDGE, port_type=ROOT_PORT)
    tree.add("00:1c.0/02:00.0", port_type=ENDPOINT)
    tree.add("00:1c.0/02:00.1", port_type=ENDPOINT)
    tree.add("00:14.0")
    tree.add("00:14.2")
    assert group(tree, "02:00.0") == {"02:00.1"}
    assert group(tree, "00:14.2") == {"00:14.0"}


def test_an_integrated_device_of_intels_goes_apart_from_its_slot(tree: PciTree) -> None:
    """The wireless card of many laptops is a function of the slot of their USB controller."""
    tree.add("00:14.0", vendor="8086")
    tree.add("00:14.2", vendor="8086")
    tree.add("00:14.3", vendor="8086", port_type=INTEGRATED)
    assert group(tree, "00:14.3") == set()
    assert group(tree, "00:14.0") == {"00:14.2"}


def test_one_that_only_says_that_it_is_integrated_does_not(tree: PciTree) -> None:
    tree.add("00:14.0", vendor="1b36")
    tree.add("00:14.3", vendor="1b36", port_type=INTEGRATED)
    assert group(tree, "00:14.3") == {"00:14.0"}


def test_all_behind_a_bridge_to_pci_go_together(tree: PciTree) -> None:
    tree.add("00:1c.0", kind=BRIDGE, port_type=ROOT_PORT)
    tree.add("00:1c.0/01:00.0", kind=BRIDGE, port_type=TO_PCI)
    tree.add("00:1c.0/01:00.0/02:01.0")
    tree.add("00:1c.0/01:00.0/02:02.0")
    tree.add("00:1c.0/01:00.0/02:03.0", kind=BRIDGE)
    tree.add("00:1c.0/01:00.0/02:03.0/03:00.0")
    assert group(tree, "02:01.0") == {"02:02.0", "03:00.0"}
    assert group(tree, "03:00.0") == {"02:01.0", "02:02.0"}


def test_all_behind_a_switch_go_together(tree: PciTree) -> None:
    way = "00:1c.0/01:00.0"
    tree.add("00:1c.0", kind=BRIDGE, port_type=ROOT_PORT)
    tree.add(way, kind=BRIDGE, port_type=UPSTREAM)
    for port, bus in (("02:00.0", "03"), ("02:01.0", "04")):
        tree.add(f"{way}/{port}", kind=BRIDGE, port_type=DOWNSTREAM)
        tree.add(f"{way}/{port}/{bus}:00.0", port_type=ENDPOINT)
    assert group(tree, "03:00.0") == {"04:00.0"}


def test_a_bridge_that_cannot_be_looked_at_keeps_what_is_behind_it_together(
    tree: PciTree,
) -> None:
    tree.add("00:1c.0", kind=BRIDGE, port_type=None)
    tree.add("00:1c.0/02:00.0")
    tree.add("00:1c.0/02:01.0")
    assert group(tree, "02:00.0") == {"02:01.0"}


@st.composite
def pictures(draw: st.DrawFn) -> Picture:
    """Any tree of devices: what something is below is a bridge."""
    types = st.sampled_from([None, ENDPOINT, ROOT_PORT, UPSTREAM, DOWNSTREAM, TO_PCI, INTEGRATED])
    ways: list[tuple[str, ...]] = []
    functions: dict[str, Function] = {}
    for number in range(draw(st.integers(1, 8))):
        above = draw(st.sampled_from([(), *ways]))
        slot = draw(st.integers(0, 1))
        bus = 0 if not above else ways.index(above) + 1
        address = f"0000:{bus:02x}:{slot:02x}.{number}"
        ways.append((*above, address))
        functions[address] = Function(
            address=address,
            way=ways[-1],
            kind="0c0330",
            vendor=draw(st.sampled_from(["8086", "1b36"])),
            device="000d",
            port_type=draw(types),
            driver=None,
            can_reset=True,
        )
        if above:
            functions[above[-1]] = attrs.evolve(functions[above[-1]], kind=BRIDGE)
    return Picture(functions)


@given(pictures())
def test_togetherness_is_mutual(picture: Picture) -> None:
    for one in picture.functions.values():
        for address in pci_rules.group_of(picture, one):
            other = picture.functions[address]
            assert not other.is_bridge
            assert one.is_bridge or one.address in pci_rules.group_of(picture, other)


def test_another_vm_with_one_of_the_group_is_named(tree: PciTree) -> None:
    tree.add("00:14.0")
    tree.add("00:14.2")
    picture = look(tree.sys)
    function = picture.functions["0000:00:14.0"]
    others = {"0000:00:14.2": "sys-net"}
    pci_rules.check_group(picture, function, "dom0:00_14.0", others, "sys-net")
    with pytest.raises(DriverError, match=r"kept apart from 00:14\.2, which sys-net has") as caught:
        pci_rules.check_group(picture, function, "dom0:00_14.0", others, "work")
    assert caught.value.code == "busy"


def test_a_device_is_found_by_its_way_also_with_another_address(tree: PciTree) -> None:
    tree.add("00:1c.0", kind=BRIDGE)
    tree.add("00:1c.0/05:00.0", driver="xhci_hcd", reset=False)
    function = look(tree.sys).called("00_1c.0-00.0")
    assert function is not None
    assert (function.address, function.driver) == ("0000:05:00.0", "xhci_hcd")
    assert not function.can_reset
    assert pci_sysfs.address_of(tree.sys, "00_1c.0-00.0") == "0000:05:00.0"
    assert pci_sysfs.address_of(tree.sys, "00_1c.0-01.0") is None


def test_a_broken_list_of_capabilities_ends(tree: PciTree) -> None:
    folder = tree.add("00:04.0")
    space = bytearray((folder / "config").read_bytes())
    space[0x40:0x42] = bytes((0x05, 0x40))
    for content in (bytes(space), bytes(space[:64]), b"", bytes(5)):
        (folder / "config").write_bytes(content)
        assert look(tree.sys).functions["0000:00:04.0"].port_type is None


@pytest.mark.parametrize(
    ("allowed", "is_it"),
    [
        ("1b36:000d::p0c0330", True),
        ("1b36:000d::p-unknown", True),
        (None, True),
        ("8086:000d::p0c0330", False),
        ("1b36:000e::p0c0330", False),
        ("1b36:000d::p028000", False),
        ("1b36:000d", False),
        ("", False),
    ],
)
def test_a_device_is_the_one_that_was_allowed_if_it_has_its_identity(
    tree: PciTree, allowed: str | None, is_it: bool
) -> None:
    tree.add("00:04.0", vendor="1b36", device="000d", kind="0c0330")
    function = look(tree.sys).functions["0000:00:04.0"]
    assert function.identity == "1b36:000d::p0c0330"
    with nullcontext() if is_it else pytest.raises(DriverError, match="is another device by now"):
        pci_rules.check_identity(function, "dom0:00_04.0", allowed)
