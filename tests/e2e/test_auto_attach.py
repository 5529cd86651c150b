"""Disks that are assigned by identity attach by themselves, under whatever name they appear, and
whichever step the service is killed at."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import Prepare, needs_fuse
from .faults import FaultController
from .system import LocalSystem
from .test_faults import ATTACH_STEPS, DETACH_STEPS, VMS, kill

pytestmark = needs_fuse

IDENTITY, OTHER = "0951:1666:E0D5", "0951:1666:0002"
SIZE = 1 << 16


def plug(system: LocalSystem, name: str, identity: str = IDENTITY) -> Path:
    """A disk with an identity appears in sys-usb."""
    try:
        return system.put("sys-usb", name, os.urandom(SIZE), identity)
    except OSError as error:
        pytest.skip(f"no extended attributes in {system.folder}: {error.strerror}")


def assign(system: LocalSystem, vm: str, device: str, *options: str) -> None:
    system.ok("qvm-device", "block", "assign", vm, device, *options)


def holders(system: LocalSystem) -> dict[str, list[str]]:
    """Which VMs have each disk of sys-usb."""
    return {
        name: [held["vm"] for held in device["attachments"]]  # type: ignore[attr-defined]
        for name, device in system.devices().items()
        if name.startswith("sys-usb:")
    }


def wait_for(system: LocalSystem, expected: dict[str, list[str]]) -> None:
    """All programs are back, exactly these disks are lent, and nothing is left of others."""

    def is_so() -> bool:
        if system.agents() != VMS or holders(system) != expected:
            return False
        lent = [vm for vms in expected.values() for vm in vms]
        names = {vm: len(system.frontends(vm)) for vm in ("work", "vault")}
        is_there = names == {vm: lent.count(vm) for vm in names}
        return is_there and len(system.helpers()) == 2 * len(lent)

    system.wait_until(is_so, f"{expected}\n{system.log()}")


@pytest.fixture(scope="module")
def prepare() -> Prepare:
    """The rules of local mode keep vault away from disks."""

    def prepare(system: LocalSystem) -> dict[str, str]:
        rules = "device.*.block  *  @adminvm  vault  allow\n"
        (system.folder / "policy.d" / "10-test.policy").write_text(rules)
        return {}

    return prepare


@pytest.fixture(autouse=True)
def clean(system: LocalSystem, faults: FaultController) -> Iterator[None]:
    wait_for(system, {})
    yield
    faults.disarm()
    for vm in ("work", "vault"):
        system.run("qvm-device", "block", "unassign", vm)
    for path in system.device_file("sys-usb", "x").parent.iterdir():
        path.unlink()


def test_a_disk_comes_back_under_another_name(system: LocalSystem) -> None:
    assign(system, "work", f"sys-usb:*:{IDENTITY}", "--auto")
    for name in ("one.img", "two.img"):
        disk = plug(system, name)
        wait_for(system, {f"sys-usb:{name}": ["work"]})
        (frontend,) = system.frontends("work")
        assert (system.folder / "vms/work/dev" / frontend).read_bytes() == disk.read_bytes()
        disk.unlink()
        wait_for(system, {})
    listed = system.ok("qvm-device", "block", "list", "--assignments", "work")
    assert IDENTITY in listed and "auto-attach" in listed
    assert "auto-attach" in system.ok("qvm-audit", "--vm", "work")


@pytest.mark.parametrize("step", ATTACH_STEPS)
def test_a_service_that_is_killed_while_it_attaches_by_itself_neither_loses_nor_doubles(
    system: LocalSystem, faults: FaultController, step: str
) -> None:
    killed: list[int] = []
    assign(system, "work", f"sys-usb:*:{IDENTITY}", "--auto")
    faults.arm(step, lambda: killed.append(kill(system, "dom0")))
    plug(system, "disk.img")
    system.wait_until(lambda: killed, "the service is killed")
    assert killed == [1]
    wait_for(system, {"sys-usb:disk.img": ["work"]})


@pytest.mark.parametrize("step", DETACH_STEPS)
def test_what_a_person_detaches_stays_detached_whenever_the_service_is_killed(
    system: LocalSystem, faults: FaultController, step: str
) -> None:
    """The assignment to vault is next, and attaches it again only once it is plugged in anew."""
    killed: list[int] = []
    assign(system, "work", f"sys-usb:*:{IDENTITY}", "--auto")
    assign(system, "vault", "sys-usb:disk.img", "--port", "--auto")
    assign(system, "vault", f"sys-usb:*:{OTHER}", "--auto")
    disk = plug(system, "disk.img")
    wait_for(system, {"sys-usb:disk.img": ["work"]})
    faults.arm(step, lambda: killed.append(kill(system, "dom0")))
    system.run("qvm-device", "block", "detach", "work", "sys-usb:disk.img")
    system.wait_until(lambda: killed, "the service is killed")
    assert killed == [1]
    # A later one is attached: so the first has been looked at.
    plug(system, "later.img", OTHER)
    wait_for(system, {"sys-usb:disk.img": [], "sys-usb:later.img": ["vault"]})
    system.run("qvm-device", "block", "unassign", "work")
    disk.unlink()
    # It is still assigned, and so it is still listed.
    system.wait_until(
        lambda: not system.devices()["sys-usb:disk.img"]["present"], "it is unplugged"
    )
    plug(system, "disk.img")
    wait_for(system, {"sys-usb:disk.img": ["vault"], "sys-usb:later.img": ["vault"]})
