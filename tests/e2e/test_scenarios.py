"""User scenarios with good and bad input, against real processes, rings and files."""

from __future__ import annotations

import json
import os
import re
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import needs_fuse
from .system import PATIENCE_S, LocalSystem

pytestmark = needs_fuse

DEVICE = "sys-usb:stick.img"
DONE, FAILED, USAGE, DENIED, NOT_FOUND, UNREACHABLE, BUSY = range(7)


@pytest.fixture(autouse=True)
def disk(system: LocalSystem) -> Path:
    return system.plugged("sys-usb", "stick.img", 1 << 16)


@pytest.fixture(autouse=True)
def nothing_attached(system: LocalSystem) -> Iterator[None]:
    yield
    system.detach_all("work", "vault")


def test_a_device_is_listed_attached_read_written_and_detached(
    system: LocalSystem, disk: Path
) -> None:
    assert DEVICE in system.ok("qvm-device", "block", "list")
    assert "xvdi" in system.ok("qvm-device", "block", "attach", "work", DEVICE)
    frontend = system.folder / "vms" / "work" / "dev" / "xvdi"
    assert frontend.read_bytes() == disk.read_bytes()
    with frontend.open("r+b") as target:
        target.write(b"written in the target")
    assert disk.read_bytes().startswith(b"written in the target")
    listed = system.ok("qvm-block")
    assert "work (attached: frontend-dev=xvdi, read-only=no)" in listed
    system.ok("qvm-block", "dt", "work", DEVICE)
    assert system.frontends("work") == []
    assert "attached" not in system.ok("qvm-block", "ls")


def test_programs_are_told_what_the_service_says(system: LocalSystem) -> None:
    """So the other tests ask the service itself, which starts no program each time."""
    system.ok("qvm-device", "block", "attach", "work", DEVICE)
    listed = json.loads(system.ok("qvm-device", "block", "list", "--json"))["devices"]
    assert listed == [system.devices()[DEVICE]]
    assert listed[0]["attachments"][0]["vm"] == "work"
    vms = json.loads(system.ok("qvm-ls", "--json"))["vms"]
    assert {vm["name"] for vm in vms if vm["agent"]} == system.agents()
    assert json.loads(system.ok("qvm-policy", "status", "--json")) == system.policy_status()


def test_a_read_only_attachment_cannot_be_written(system: LocalSystem, disk: Path) -> None:
    before = disk.read_bytes()
    options = ("-o", "read-only=yes", "-o", "frontend-dev=xvdk")
    system.ok("qvm-device", "block", "attach", "work", DEVICE, *options)
    frontend = system.folder / "vms" / "work" / "dev" / "xvdk"
    assert frontend.read_bytes() == before
    with pytest.raises(OSError), frontend.open("r+b", buffering=0) as target:
        target.write(b"no")
    assert disk.read_bytes() == before
    assert "read-only=yes" in system.ok("qvm-block")


def test_attaching_twice_says_so_and_succeeds_and_elsewhere_is_busy(system: LocalSystem) -> None:
    system.ok("qvm-block", "attach", "work", DEVICE)
    assert "already" in system.ok("qvm-block", "attach", "work", DEVICE)
    policy = system.folder / "policy.d" / "10-test.policy"
    policy.write_text("device.attach.block * @adminvm vault allow\n")
    try:
        system.wait_until(
            lambda: system.run("qvm-block", "attach", "vault", DEVICE).returncode != DENIED,
            "the new policy is in force",
        )
        refused = system.run("qvm-block", "attach", "vault", DEVICE)
    finally:
        policy.unlink()
    assert refused.returncode == BUSY
    assert "work" in refused.stderr
    system.wait_until(
        lambda: system.run("qvm-block", "attach", "vault", DEVICE).returncode == DENIED,
        "the old policy is in force again",
    )


def test_a_forbidden_attach_names_the_rule(system: LocalSystem) -> None:
    refused = system.run("qvm-device", "block", "attach", "vault", DEVICE)
    assert refused.returncode == DENIED
    assert refused.stderr.startswith("qvm-device: denied: sys-usb:stick.img")
    assert re.search(r"rule: \d\d-[a-z]+\.policy:\d+ +device\.attach\S+ .* deny", refused.stderr)
    assert "qvm-device block explain vault sys-usb:stick.img" in refused.stderr
    explained = system.ok("qvm-device", "block", "explain", "vault", DEVICE)
    assert "deny" in explained


@pytest.mark.parametrize(
    ("argv", "status", "says"),
    [
        (("qvm-device",), USAGE, "device class"),
        (("qvm-device", "floppy", "list"), USAGE, "floppy"),
        (("qvm-device", "block", "list", "nosuch"), NOT_FOUND, "nosuch"),
        (("qvm-device", "block", "list", "--exclude", "work"), USAGE, "--all"),
        (("qvm-device", "block", "attach", "nosuch", DEVICE), NOT_FOUND, "nosuch"),
        (
            ("qvm-device", "block", "attach", "work", "sys-usb:nosuch"),
            NOT_FOUND,
            "no block device named 'nosuch'",
        ),
        (("qvm-device", "block", "attach", "work", "nosuch:sda"), NOT_FOUND, "nosuch"),
        (("qvm-device", "block", "attach", "work", "sys-usb"), USAGE, "SOURCE:ID"),
        (("qvm-device", "block", "attach", "work", "a:b c"), USAGE, "'b c'"),
        (("qvm-device", "block", "attach", "work", DEVICE, "-o", "colour=red"), USAGE, "colour"),
        (("qvm-device", "block", "attach", "work", DEVICE, "-o", "read-only"), USAGE, "read-only"),
        (("qvm-device", "block", "attach", "work", DEVICE, "-o", "read-only=x"), USAGE, "yes"),
        (("qvm-device", "block", "attach", "work", DEVICE, "-o", "frontend-dev=sda"), USAGE, "xvd"),
        (("qvm-device", "block", "attach", "dom0", DEVICE), USAGE, "dom0"),
        (("qvm-device", "block", "attach", "sys-usb", DEVICE), USAGE, "sys-usb"),
        (("qvm-device", "block", "detach", "work", DEVICE), NOT_FOUND, DEVICE),
        (("qvm-device", "block", "detach", "nosuch"), NOT_FOUND, "nosuch"),
        (("qvm-start", "nosuch"), NOT_FOUND, "nosuch"),
    ],
)
def test_bad_input_gets_a_clear_error(
    system: LocalSystem, argv: tuple[str, ...], status: int, says: str
) -> None:
    done = system.run(*argv)
    assert (done.returncode, done.stdout) == (status, ""), done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_without_a_service_the_command_says_how_to_start_it(tmp_path: Path) -> None:
    nowhere = LocalSystem(tmp_path)
    done = nowhere.run("qvm-device", "block", "list")
    assert done.returncode == UNREACHABLE
    assert "pedos-local up" in done.stderr


def test_a_device_of_a_halted_vm_is_not_there(system: LocalSystem) -> None:
    system.ok("qvm-shutdown", "sys-usb")
    try:
        done = system.run("qvm-block", "attach", "work", DEVICE)
    finally:
        system.ok("qvm-start", "sys-usb")
    assert done.returncode == NOT_FOUND
    assert "halted" in done.stderr
    assert "qvm-start sys-usb" in done.stderr
    system.wait_until(lambda: DEVICE in system.devices(), "the device is back")


def test_an_assigned_device_is_attached_at_start_and_its_absence_fails_the_start(
    system: LocalSystem, disk: Path
) -> None:
    system.ok("qvm-block", "attach", "--persistent", "work", DEVICE)
    system.ok("qvm-shutdown", "work")
    assert "*work (assigned)" in system.ok("qvm-block")
    away = disk.with_name(".unplugged")
    disk.rename(away)
    system.wait_until(lambda: system.devices()[DEVICE]["present"] is False, "it is unplugged")
    failed = system.run("qvm-start", "work")
    assert failed.returncode == FAILED
    assert DEVICE in failed.stderr
    away.rename(disk)
    system.wait_until(lambda: system.devices()[DEVICE]["present"] is True, "it is plugged in again")
    system.ok("qvm-start", "work")
    assert system.frontends("work") == ["xvdi"]
    system.ok("qvm-block", "detach", "work", DEVICE)
    assert "work" not in system.ok("qvm-block")


def test_an_unplugged_device_is_gone_from_the_target(system: LocalSystem, disk: Path) -> None:
    system.ok("qvm-block", "attach", "work", DEVICE)
    content = disk.read_bytes()
    disk.unlink()
    system.wait_until(lambda: system.frontends("work") == [], "it is gone from the target")
    system.wait_until(lambda: DEVICE not in system.devices(), "it is no longer listed")
    system.plug("sys-usb", "stick.img", content)


def test_a_vm_sees_its_own_and_learns_only_that_it_was_denied(system: LocalSystem) -> None:
    assert system.ok("qvm-block", "list", vm="vault") == ""
    assert DEVICE in system.ok("qvm-block", "list", vm="sys-usb")
    refusals = [
        system.run("qvm-block", "attach", "vault", device, vm="vault")
        for device in (DEVICE, "sys-usb:nosuch", "nosuch:sda")
    ]
    for refused in refusals:
        assert refused.returncode == DENIED
        assert "request:" in refused.stderr
        assert "policy" not in refused.stderr
    audit = (system.folder / "state" / "audit.jsonl").read_text()
    (request,) = re.findall(r"request: +([0-9a-f]+)", refusals[0].stderr)
    assert request in audit


def test_classes_that_nothing_can_attach_here_list_and_refuse_with_the_reason(
    system: LocalSystem,
) -> None:
    usb = system.folder / "vms" / "sys-usb" / "devices" / "usb"
    (usb / "1-2").write_text("046d:c52b Receiver\n")
    system.wait_until(lambda: "sys-usb:1-2" in system.devices("usb"), "the USB device is listed")
    policy = system.folder / "policy.d" / "10-test.policy"
    policy.write_text("device.attach.usb * @adminvm work allow\n")
    try:
        system.wait_until(
            lambda: system.run("qvm-usb", "attach", "work", "sys-usb:1-2").returncode != DENIED,
            "the new policy is in force",
        )
        refused = system.run("qvm-usb", "attach", "work", "sys-usb:1-2")
    finally:
        policy.unlink()
        (usb / "1-2").unlink()
    assert refused.returncode == FAILED
    assert "vhci-hcd" in refused.stderr


def test_a_broken_policy_leaves_the_old_one_in_force_and_is_shown(system: LocalSystem) -> None:
    broken = system.folder / "policy.d" / "10-broken.policy"
    broken.write_text("# fine\ndevice.attach.block * @adminvm vault perhaps\n")

    def errors() -> list[dict[str, object]]:
        return system.policy_status()["errors"]  # type: ignore[no-any-return]

    try:
        system.wait_until(errors, "the error is shown")
        assert json.loads(system.ok("qvm-policy", "status", "--json"))["errors"] == errors()
        (error,) = errors()
        assert (error["file"], error["line"]) == ("10-broken.policy", 2)
        assert "perhaps" in str(error["message"])
        system.ok("qvm-block", "attach", "work", DEVICE)
        assert system.run("qvm-block", "attach", "vault", DEVICE).returncode == DENIED
    finally:
        broken.unlink()
    system.wait_until(lambda: not errors(), "the error is gone")
    assert "10-broken.policy:2" in system.log()


HOSTILE_NAMES = (
    b"\x1b[31mred\x1b[0m.img",
    b"<b>bold<b>.img",
    "\u202egnp.exe.img".encode(),
    b"new\nline\ttab.img",
    b"\xff\xfenot utf-8.img",
    b"x" * 255,
    b"-o read-only=no",
    b"a b;$(reboot).img",
)


def test_hostile_names_are_bounded_shown_harmless_and_can_be_attached(system: LocalSystem) -> None:
    block = os.fsencode(system.folder / "vms" / "sys-usb" / "devices" / "block")
    for name in HOSTILE_NAMES:
        with open(os.path.join(block, name), "wb") as device:
            device.write(bytes(4096))
    try:
        system.wait_until(
            lambda: len(system.devices()) == 1 + len(HOSTILE_NAMES), "every device is listed"
        )
        shown = system.ok("qvm-block")
        assert re.fullmatch(r"[ -~\n]*", shown), "something but plain text was shown"
        assert max(map(len, shown.splitlines())) < 300
        for device in set(system.devices()) - {DEVICE}:
            system.ok("qvm-block", "attach", "work", device)
        system.ok("qvm-block", "detach", "work")
    finally:
        for name in HOSTILE_NAMES:
            os.unlink(os.path.join(block, name))
    system.wait_until(lambda: set(system.devices()) == {DEVICE}, "all are unplugged")


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        struct.pack("<I", 0xFFFFFFFF) + b"x" * 100,
        struct.pack("<I", 3) + b"\x93\x00\x01",
        b"",
    ],
    ids=["not a frame", "an oversized frame", "a call without hello", "nothing at all"],
)
def test_garbage_on_the_local_socket_ends_that_client_alone(
    system: LocalSystem, garbage: bytes
) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(PATIENCE_S)
        client.connect(system.environment()["PEDOS_SOCKET"])
        client.sendall(garbage)
        client.shutdown(socket.SHUT_WR)
        while client.recv(4096):
            pass
    assert DEVICE in system.ok("qvm-block")


def test_detach_of_all_goes_on_past_nothing_and_reports_each(system: LocalSystem) -> None:
    second = system.plug("sys-usb", "second.img", bytes(8192))
    system.ok("qvm-block", "attach", "work", DEVICE)
    system.ok("qvm-block", "attach", "work", "sys-usb:second.img")
    assert system.frontends("work") == ["xvdi", "xvdj"]
    report = system.ok("qvm-block", "detach", "work")
    assert DEVICE in report
    assert "sys-usb:second.img" in report
    assert system.frontends("work") == []
    second.unlink()
    system.wait_until(lambda: "sys-usb:second.img" not in system.devices(), "it is unplugged")
    system.ok("qvm-block", "detach", "work")
