"""Assigned devices, with real processes: by identity, whatever happens meanwhile."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
from pedos_cli.client import Unreachable

from .conftest import needs_fuse
from .system import LocalSystem

pytestmark = needs_fuse

IDENTITY = "0781:5567:4C53"
STICK = f"sys-usb:*:{IDENTITY}"
CONTENT = os.urandom(1 << 16)


@pytest.fixture(autouse=True)
def nothing_assigned(system: LocalSystem) -> Iterator[None]:
    yield
    system.ok("qvm-block", "unassign", "work")
    system.detach_all("work")
    for name in os.listdir(system.device_file("sys-usb", "")):
        system.device_file("sys-usb", name).unlink()


def put(system: LocalSystem, name: str) -> None:
    """Plugs the stick in, under that name."""
    try:
        system.put("sys-usb", name, CONTENT, IDENTITY)
    except OSError as error:
        pytest.skip(f"no extended attributes in {system.folder}: {error.strerror}")


def comes(system: LocalSystem, name: str) -> None:
    """Returns when work has the stick."""

    def has_it() -> bool:
        try:
            return system.attached_to(f"sys-usb:{name}") == ["work"]
        except Unreachable:
            return False

    system.wait_until(has_it, f"work has sys-usb:{name}")


def pull(system: LocalSystem, name: str) -> None:
    system.device_file("sys-usb", name).unlink()
    system.wait_until(lambda: system.frontends("work") == [], "work has lost it")


def test_a_device_that_is_assigned_by_identity_comes_under_any_name(system: LocalSystem) -> None:
    said = system.ok("qvm-block", "assign", "work", STICK)
    assert f"now: sys-usb has no '{IDENTITY}' now" in said
    assert "not present" in system.ok("qvm-block", "list", "--assignments")
    for name in ("one.img", "two.img"):
        put(system, name)
        comes(system, name)
        (frontend,) = system.frontends("work")
        assert (system.folder / "vms/work/dev" / frontend).read_bytes() == CONTENT
        listed = system.ok("qvm-block", "list", "-s").split()
        assert listed == [STICK, "work", "auto-attach", "-", "attached", f"({name})"]
        pull(system, name)


def test_what_is_unassigned_stays_and_does_not_come_again(system: LocalSystem) -> None:
    put(system, "one.img")
    system.wait_until(lambda: "sys-usb:one.img" in system.devices(), "it is listed")
    said = system.ok("qvm-block", "assign", "--device", "work", "sys-usb:one.img")
    assert "now: sys-usb:one.img is present, and will be attached to work at once" in said
    comes(system, "one.img")
    assert "stays attached" in system.ok("qvm-block", "unassign", "work", STICK)
    assert system.attached_to("sys-usb:one.img") == ["work"]
    pull(system, "one.img")
    put(system, "two.img")
    system.wait_until(lambda: "sys-usb:two.img" in system.devices(), "it is listed")
    said = system.ok("qvm-block", "attach", "work", "sys-usb:two.img")
    assert said.startswith("sys-usb:two.img attached to work")  # and was not already


def test_a_device_that_comes_while_no_service_runs_is_attached(system: LocalSystem) -> None:
    system.ok("qvm-block", "assign", "work", STICK)
    (service,) = system.victim("dom0")
    os.kill(service, signal.SIGKILL)
    put(system, "one.img")
    comes(system, "one.img")


def test_a_required_device_is_at_the_start_or_there_is_none(system: LocalSystem) -> None:
    system.ok("qvm-shutdown", "work")
    said = system.ok("qvm-block", "assign", "--required", "work", STICK)
    assert "work does not start without it" in said
    refused = system.run("qvm-start", "work")
    assert refused.returncode == 1
    assert IDENTITY in refused.stderr
    put(system, "one.img")
    system.wait_until(lambda: "sys-usb:one.img" in system.devices(), "it is listed")
    system.ok("qvm-start", "work")
    assert system.attached_to("sys-usb:one.img") == ["work"]
