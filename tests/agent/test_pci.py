"""PCI devices: how a machine's own are listed, and how they are called."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pedos_agent.device_classes.on_machine import scan
from pedos_agent.device_classes.pci.device_class import Pci
from pedos_agent.system.hardware_names import HardwareNames
from pedos_protocol.agent_messages import Device
from pedos_protocol.names import is_device_id
from pedos_protocol.pci_names import (
    address_id,
    address_of_id,
    is_address,
    port_id,
    short_address,
    way_to,
)

from tests.pci_tree import BRIDGE, PciTree


@pytest.fixture
def tree(tmp_path: Path) -> PciTree:
    return PciTree(tmp_path)


def devices(tree: PciTree) -> dict[str, Device]:
    found = scan(tree.sys, tree.sys.parent / "proc", HardwareNames(()), [Pci()])
    return {item.device.device: item.device for item in found}


def test_a_device_on_the_root_bus_is_called_by_its_address(tree: PciTree) -> None:
    tree.add("00:14.0")
    found = devices(tree)["00_14.0"]
    assert (found.alias, found.description) == (None, "USB controller: 1b36:000d")
    assert found.identity == "1b36:000d::p0c0330"


def test_a_device_behind_bridges_is_called_by_the_way_to_it_and_also_by_its_address(
    tree: PciTree,
) -> None:
    tree.add("00:1c.0", kind=BRIDGE)
    tree.add("00:1c.0/02:00.0", kind=BRIDGE)
    tree.add("00:1c.0/02:00.0/03:01.0")
    found = devices(tree)["00_1c.0-00.0-01.0"]
    assert found.alias == "03_01.0"
    assert found.description == "03:01.0 USB controller: 1b36:000d"


def test_a_port_stays_when_the_firmware_numbers_the_buses_anew(tmp_path: Path) -> None:
    for number, bus in enumerate(("02", "05")):
        tree = PciTree(tmp_path / str(number))
        tree.add("00:1c.0", kind=BRIDGE)
        tree.add(f"00:1c.0/{bus}:00.0")
        assert devices(tree)["00_1c.0-00.0"].alias == f"{bus}_00.0"


def test_what_the_vm_was_given_is_not_its_own(tree: PciTree) -> None:
    tree.add("00:00.0", below="pci-0/pci0000:00")
    assert devices(tree) == {}


def test_an_instance_stays_whatever_drives_the_device_and_is_none_of_a_later_one(
    tree: PciTree,
) -> None:
    boot = tree.sys.parent / "proc/sys/kernel/random"
    boot.mkdir(parents=True)
    (boot / "boot_id").write_text("3c5a\n")
    folder = tree.add("00:14.0", driver="xhci_hcd")

    def instance() -> str | None:
        (item,) = scan(tree.sys, tree.sys.parent / "proc", HardwareNames(()), [Pci()])
        return item.lasting_instance()

    before = instance()
    assert before is not None
    tree.bind("0000:00:14.0", "pciback")
    assert instance() == before
    folder.rename(folder.with_name("kept"))
    (tree.sys / "bus/pci/devices/0000:00:14.0").unlink()
    tree.add("00:14.0")
    assert instance() not in (None, before)


def test_a_domain_other_than_the_usual_one_is_part_of_the_name() -> None:
    way = way_to("../../../devices/pci0000:00/0000:00:0e.0/pci10000:e0/10000:e0:06.0")
    assert way == ("0000:00:0e.0", "10000:e0:06.0")
    assert port_id(way) == "00_0e.0-06.0"
    assert address_id(way[-1]) == "10000_e0_06.0"
    assert short_address(way[-1]) == "10000:e0:06.0"


def test_an_id_of_an_address_is_one_again() -> None:
    for address in ("0000:02:00.0", "10000:e0:06.0"):
        assert address_of_id(address_id(address)) == address
    with pytest.raises(ValueError, match="is no address"):
        address_of_id("00_1c.0-00.0")


ADDRESSES = st.from_regex(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]", fullmatch=True)


@given(st.lists(ADDRESSES, min_size=1, max_size=20))
def test_every_way_makes_an_id(way: list[str]) -> None:
    assert way_to("/".join(["devices", *way])) == tuple(way)
    assert is_device_id(port_id(tuple(way)))


@given(st.text())
def test_what_is_no_address_makes_no_id(text: str) -> None:
    if not is_address(text):
        with pytest.raises(ValueError, match="is no address"):
            address_id(text)
