"""What dom0, or a VM, does with a PCI device, so that it cannot be taken away."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from pedos_host import exclusive, pci_use
from pedos_host.pci_use import InUse, held, why_used

from tests.pci_tree import PciTree

CONTROLLER = "0000:00:04.0"


@pytest.fixture
def tree(tmp_path: Path) -> PciTree:
    tree = PciTree(tmp_path)
    tree.add("00:04.0", driver="xhci_hcd")
    tree.add("00:05.0", driver="nvme")
    return tree


@pytest.fixture
def claimed(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Disks that are mounted, swapped to, or parts of a volume: the kernel refuses O_EXCL."""
    names: set[str] = set()
    plain = os.open

    def answer(path: str, flags: int, *rest: int) -> int:
        if os.path.basename(path) in names and flags & os.O_EXCL:
            raise OSError(errno.EBUSY, "Device or resource busy", path)
        return plain(path, flags, *rest)

    monkeypatch.setattr(exclusive.os, "open", answer)
    monkeypatch.setattr(exclusive, "HELD_RETRY_SECONDS", 0)
    return names


def why(tree: PciTree, address: str = CONTROLLER) -> str | None:
    return why_used(str(tree.sys), str(tree.dev), address)


def test_a_device_with_nothing_below_is_not_used(tree: PciTree) -> None:
    assert why(tree) is None


def test_a_disk_far_below_that_is_mounted_is_found(tree: PciTree, claimed: set[str]) -> None:
    usb = tree.folder(CONTROLLER) / "usb1/1-2/1-2:1.0/host4/target4:0:0/4:0:0:0"
    tree.disk(usb, "sda")
    assert why(tree) is None
    claimed.add("sda")
    assert why(tree) == "its disk sda is mounted or otherwise in use"
    assert why(tree, "0000:00:05.0") is None


def test_a_disk_of_nvme_with_multipath_is_its_controllers(tree: PciTree, claimed: set[str]) -> None:
    """Such a disk stands below no PCI device, but below a subsystem that names its controllers."""
    controller = tree.folder("0000:00:05.0") / "nvme/nvme0"
    controller.mkdir(parents=True)
    subsystem = tree.sys / "devices/virtual/nvme-subsystem/nvme-subsys0"
    tree.disk(subsystem, "nvme0n1")
    (subsystem / "nvme0").symlink_to(controller)
    claimed.add("nvme0n1")
    assert why(tree, "0000:00:05.0") == "its disk nvme0n1 is mounted or otherwise in use"
    assert why(tree) is None


def test_a_partition_is_held_by_its_disk(tree: PciTree, claimed: set[str]) -> None:
    disk = tree.disk(tree.folder(CONTROLLER), "sda")
    part = tree.disk(disk, "sda1")
    (part / "partition").write_text("1\n")
    claimed.add("sda1")  # the kernel then refuses sda as well, which this one does not
    assert why(tree) is None


def test_a_drive_without_a_disk_in_it_is_not_used(tree: PciTree) -> None:
    tree.disk(tree.folder(CONTROLLER), "sr0")
    (tree.dev / "sr0").unlink()
    assert why(tree) is None


def test_a_disk_that_cannot_be_opened_is_not_taken_for_unused(
    tree: PciTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree.disk(tree.folder(CONTROLLER), "sda")

    def fail(*_: object) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(exclusive.os, "open", fail)
    with pytest.raises(OSError, match="Too many"):
        why(tree)


@pytest.mark.parametrize("part", [False, True])
def test_a_disk_that_another_domain_has_is_used(tree: PciTree, part: bool) -> None:
    disk = tree.disk(tree.folder(CONTROLLER), "sda")
    (disk / "dev").write_text("8:0\n")
    (disk / "sda1").mkdir()
    (disk / "sda1/dev").write_text("8:17\n")
    backend = tree.sys / "bus/xen-backend/devices/vbd-7-51712"
    backend.mkdir(parents=True)
    (backend / "physical_device").write_text("8:11\n" if part else "8:0\n")
    assert why(tree) == "its disk sda is lent to domain 7"


def test_an_interface_that_is_up_is_used(tree: PciTree) -> None:
    tree.interface(CONTROLLER, "eth0", up=False)
    assert why(tree) is None
    (tree.folder(CONTROLLER) / "net/eth0/flags").write_text("0x1003\n")
    assert why(tree) == "its network interface eth0 is up"
    assert why(tree, "0000:00:05.0") is None


def test_a_usb_device_that_is_lent_is_used(tree: PciTree) -> None:
    stick = tree.folder(CONTROLLER) / "usb1/1-2"
    stick.mkdir(parents=True)
    driver = tree.sys / "bus/usb/drivers/usbip-host"
    driver.mkdir(parents=True)
    (driver / "1-2").symlink_to(stick)
    (driver / "match_busid").touch()
    assert why(tree) == "its USB device 1-2 is lent"


def test_the_console_of_the_domain_is_used(tree: PciTree) -> None:
    folder = tree.add("00:02.0", kind="030000", driver="i915")
    (folder / "boot_vga").write_text("1\n")
    assert why(tree, "0000:00:02.0") is None  # nothing is shown on it
    (folder / "drm").mkdir()
    (folder / "drm/card0").mkdir()
    assert why(tree, "0000:00:02.0") == "the console of this domain is on it"


def test_a_device_with_virtual_functions_is_used(tree: PciTree) -> None:
    (tree.folder(CONTROLLER) / "sriov_numvfs").write_text("0\n")
    assert why(tree) is None
    (tree.folder(CONTROLLER) / "sriov_numvfs").write_text("4\n")
    assert "4 virtual functions" in (why(tree) or "")


def test_disks_are_held_within_and_free_after(
    tree: PciTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree.disk(tree.folder(CONTROLLER), "sda")
    opened: list[int] = []
    plain = os.open

    def note(path: str, flags: int, *rest: int) -> int:
        opened.append(plain(path, flags, *rest))
        return opened[-1]

    monkeypatch.setattr(exclusive.os, "open", note)
    with held(str(tree.sys), str(tree.dev), CONTROLLER):
        (file,) = opened
        os.fstat(file)
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(file)


def test_a_controller_with_more_disks_than_can_be_held_is_used(
    tree: PciTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pci_use, "DISKS_MAX", 1)
    for name in ("sda", "sdb"):
        tree.disk(tree.folder(CONTROLLER) / name, name)
    with (
        pytest.raises(InUse, match="more than 1 disks"),
        held(str(tree.sys), str(tree.dev), CONTROLLER),
    ):
        pass
