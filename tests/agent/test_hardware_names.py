"""PCI and USB devices have the names in hwdata, or show their numbers if it is missing."""

from __future__ import annotations

import contextlib
import errno
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pedos_agent.device_classes.on_machine import scan
from pedos_agent.system import hardware_names
from pedos_agent.system.hardware_names import HardwareNames, names_in

from tests.failing_calls import each_call_failing

from .test_discovery import write_tree

IDS = b"""# A comment
8086  Intel Corporation
\t1234  Some Controller
\t\t8086 0001  A subsystem
# In between
\t15d3  Thunderbolt Bridge
8087  Intel Corp.
\t0024  Integrated Rate Matching Hub
C 0c  Serial bus controller
\t03  USB controller
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "ids").mkdir()
    for bus in ("pci", "usb"):
        (tmp_path / f"ids/{bus}.ids").write_bytes(IDS)
    return tmp_path / "ids"


@pytest.mark.parametrize(
    ("vendor", "device", "names"),
    [
        ("8086", "1234", ("Intel Corporation", "Some Controller")),
        ("8086", "15d3", ("Intel Corporation", "Thunderbolt Bridge")),
        ("8086", "0024", ("Intel Corporation", "")),
        ("8087", "0024", ("Intel Corp.", "Integrated Rate Matching Hub")),
        ("8087", "0003", ("Intel Corp.", "")),
        ("1234", "8086", ("", "")),
        ("000c", "0003", ("", "")),
        ("", "", ("", "")),
        ("8086", ".*", ("", "")),
    ],
)
def test_a_device_is_known_by_its_numbers(
    folder: Path, vendor: str, device: str, names: tuple[str, str]
) -> None:
    known = HardwareNames(("/nowhere", str(folder)))
    assert known.of("pci", vendor, device) == names
    assert known.of("usb", vendor, device) == names


def test_a_file_that_begins_with_a_vendor_or_ends_in_a_line_is_read() -> None:
    assert names_in(b"8086  Intel\n\t1234  X", "8086", "1234") == ("Intel", "X")
    assert names_in(b"8086  Intel", "8086", "1234") == ("Intel", "")


@given(st.binary(), st.text(), st.text())
def test_any_file_gives_names_or_none(text: bytes, vendor: str, device: str) -> None:
    assert len(names_in(text, vendor, device)) == 2
    assert len(names_in(text + b"\n8086  x" + text, "8086", "1234")) == 2


def a_machine(root: Path) -> Path:
    port, stick = "bus/pci/devices/0000:00:1f.0", "bus/usb/devices/1-1"
    bare = "bus/usb/devices/1-2"
    files = {"vendor": "0x8086", "device": "0x1234", "class": "0x0c0330", "label": "Onboard"}
    write_tree(root, {f"{port}/{name}": text for name, text in files.items()})
    write_tree(root, {f"{stick}/idVendor": "8087", f"{stick}/idProduct": "0024"})
    write_tree(root, {f"{bare}/idVendor": "8087", f"{bare}/idProduct": "0024"})
    write_tree(root, {f"{bare}.1/idVendor": "8086", f"{bare}.1/idProduct": "15d3"})
    write_tree(root, {f"{stick}/product": "Its Own <Name>"})
    return root


def test_pci_and_usb_devices_have_the_names_of_hwdata(tmp_path: Path, folder: Path) -> None:
    machine = a_machine(tmp_path / "sys")
    found = scan(machine, tmp_path, HardwareNames((str(folder),)))
    assert [item.device.description for item in found] == [
        "Intel Corp. Its Own _Name_",
        "Intel Corp. Integrated Rate Matching Hub",
        "Intel Corporation Thunderbolt Bridge",
        "USB controller: Intel Corporation Some Controller",
    ]
    assert [item.device.description for item in scan(machine, tmp_path)] == [
        "Its Own _Name_",
        "USB device 8087:0024",
        "USB device 8086:15d3",
        "USB controller: Onboard",
    ]


def test_the_files_are_read_once_and_only_for_devices(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    real = hardware_names.read_bytes

    def counted(path: str, limit: int) -> bytes | None:
        read.append(path)
        return real(path, limit)

    monkeypatch.setattr(hardware_names, "read_bytes", counted)
    names = HardwareNames((str(folder),))
    scan(tmp_path / "empty", tmp_path, names)
    assert read == []
    for _ in range(3):
        scan(a_machine(tmp_path / "sys"), tmp_path, names)
    assert sorted(read) == [f"{folder}/pci.ids", f"{folder}/usb.ids"]


def test_a_file_that_is_too_long_is_none(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware_names, "FILE_BYTES", len(IDS) - 1)
    assert HardwareNames((str(folder),)).of("pci", "8086", "1234") == ("", "")


def test_a_lack_of_descriptors_is_no_lack_of_names(folder: Path) -> None:
    def look() -> tuple[str, str]:
        return HardwareNames((str(folder),)).of("pci", "8086", "1234")

    for failing in each_call_failing(look):
        names = None
        with failing, contextlib.suppress(OSError):
            names = look()
        is_starved = failing.code in (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
        assert names == (None if is_starved else ("", ""))
