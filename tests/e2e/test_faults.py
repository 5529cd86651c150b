"""kill -9 of any process at any step of attach and detach: afterwards the system is right again."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import needs_fuse
from .faults import FaultController
from .system import LocalSystem, kill_and_wait

pytestmark = needs_fuse

DEVICE = "sys-usb:disk.img"
NAMED = {"device_class": "block", "vm": "work", "backend": "sys-usb", "device": "disk.img"}
SIZE = 1 << 20
VMS = {"dom0", "sys-usb", "work", "vault"}
PROGRAMS = ("dom0", "agent:sys-usb", "agent:work")
SOURCE_TOOL, BOTH_TOOLS = ("nbdkit",), ("nbdkit", "nbdfuse")

# Every step of an attach and of a detach, and which tools surely run at it;
# test_the_tables_name_every_step keeps the steps true, and each test that its victim was alive.
ATTACH_STEPS: dict[str, tuple[str, ...]] = {
    "attach.leased": (),
    "export.opened": (),
    "export.listening": SOURCE_TOOL,
    "attach.exported": SOURCE_TOOL,
    "import.connected": SOURCE_TOOL,
    "export.connected": SOURCE_TOOL,
    "import.spawned": BOTH_TOOLS,
    "import.ready": BOTH_TOOLS,
    "attach.imported": BOTH_TOOLS,
    "attach.committed": BOTH_TOOLS,
}
DETACH_STEPS: dict[str, tuple[str, ...]] = {
    "detach.started": BOTH_TOOLS,
    "import.unmounted": (),
    "import.stopped": (),
    "detach.unimported": (),
    "export.stopped": (),
    "detach.unexported": (),
    "detach.freed": (),
}


def cases(steps: dict[str, tuple[str, ...]]) -> list[tuple[str, str]]:
    """(step, who is killed at it) of all steps."""
    return [(step, victim) for step, tools in steps.items() for victim in (*PROGRAMS, *tools)]


@pytest.fixture(autouse=True)
def disk(system: LocalSystem) -> Path:
    return system.plugged("sys-usb", "disk.img", SIZE)


def settled(system: LocalSystem) -> bool:
    """All programs are back, and reported attachments match the real ones exactly."""
    if system.agents() != VMS:
        return False
    holders = system.attached_to(DEVICE)
    return (
        DEVICE in system.devices()
        and len(holders) <= 1
        and system.frontends("vault") == []
        and len(system.frontends("work")) == holders.count("work")
        and len(system.helpers()) == 2 * len(holders)
    )


def settle(system: LocalSystem) -> None:
    system.wait_until(lambda: settled(system), f"the system is consistent again\n{system.log()}")


def kill(system: LocalSystem, victim: str) -> int:
    """Kills every process of `victim`; how many there were.

    A process has no command line for a moment while it becomes another program, as helpers do once
    they are spawned: so it is looked for until it is there.
    """
    pids: list[int] = []
    with contextlib.suppress(AssertionError):
        system.wait_until(lambda: pids.extend(system.victim(victim)) or pids, f"{victim} is there")
    kill_and_wait(pids)
    return len(pids)


def write_acknowledged(system: LocalSystem, token: bytes) -> None:
    """Returns when the write to the attached device has been acknowledged as durable."""
    (frontend,) = system.frontends("work")
    fd = os.open(system.folder / "vms" / "work" / "dev" / frontend, os.O_RDWR)
    try:
        assert os.pwrite(fd, token, SIZE // 2) == len(token)
        os.fsync(fd)
    finally:
        os.close(fd)


def same_bytes(system: LocalSystem, disk: Path) -> bool:
    (frontend,) = system.frontends("work")
    return (system.folder / "vms" / "work" / "dev" / frontend).read_bytes() == disk.read_bytes()


def attach(system: LocalSystem) -> None:
    """As the command does, whose own process shows nothing where nothing is killed meanwhile."""
    system.call("device.attach", **NAMED)


def attach_again(system: LocalSystem, disk: Path) -> None:
    """The same attach succeeds, the content is right, and a detach leaves nothing."""
    attach(system)
    assert system.attached_to(DEVICE) == ["work"]
    assert same_bytes(system, disk)
    system.call("device.detach", **NAMED)
    assert system.frontends("work") == []
    assert system.attached_to(DEVICE) == []


@pytest.fixture(autouse=True)
def clean(system: LocalSystem, faults: FaultController, disk: Path) -> Iterator[None]:
    settle(system)
    yield
    faults.disarm()
    system.detach_all("work")


def test_the_tables_name_every_step(system: LocalSystem, faults: FaultController) -> None:
    faults.forget()
    system.ok("qvm-device", "block", "attach", "work", DEVICE)
    assert {line.split()[1] for line in faults.seen} == set(ATTACH_STEPS)
    faults.forget()
    system.ok("qvm-device", "block", "detach", "work", DEVICE)
    assert {line.split()[1] for line in faults.seen} == set(DETACH_STEPS)


@pytest.mark.parametrize(("step", "victim"), cases(ATTACH_STEPS))
def test_a_kill_while_attaching(
    system: LocalSystem, faults: FaultController, disk: Path, step: str, victim: str
) -> None:
    killed: list[int] = []
    faults.arm(step, lambda: killed.append(kill(system, victim)))
    system.run("qvm-device", "block", "attach", "work", DEVICE)
    settle(system)
    assert killed == [1]  # later: the command may end before the one who kills has noted it
    attach_again(system, disk)


@pytest.mark.parametrize(("step", "victim"), cases(DETACH_STEPS))
def test_a_kill_while_detaching(
    system: LocalSystem, faults: FaultController, disk: Path, step: str, victim: str
) -> None:
    attach(system)
    token = f"{step} {victim}".encode()
    write_acknowledged(system, token)
    killed: list[int] = []
    faults.arm(step, lambda: killed.append(kill(system, victim)))
    system.run("qvm-device", "block", "detach", "work", DEVICE)
    settle(system)
    assert killed == [1]  # later: the command may end before the one who kills has noted it
    assert token in disk.read_bytes(), "an acknowledged write was lost"
    attach_again(system, disk)


@pytest.mark.parametrize("victim", ("agent:sys-usb", "agent:work", "nbdkit", "nbdfuse"))
def test_a_kill_while_attached_ends_the_attachment(
    system: LocalSystem, disk: Path, victim: str
) -> None:
    attach(system)
    token = f"attached {victim}".encode()
    write_acknowledged(system, token)
    assert kill(system, victim) == 1
    system.wait_until(lambda: system.attached_to(DEVICE) == [], "the attachment has ended")
    settle(system)
    assert token in disk.read_bytes()
    attach_again(system, disk)


def test_a_restart_of_the_service_keeps_attachments_and_assignments(
    system: LocalSystem, disk: Path
) -> None:
    system.ok("qvm-device", "block", "attach", "--persistent", "work", DEVICE)
    before = system.helpers()
    with (system.folder / "vms" / "work" / "dev" / system.frontends("work")[0]).open("rb") as held:
        assert kill(system, "dom0") == 1
        system.wait_until(lambda: system.agents() == VMS, "every agent is connected again")
        settle(system)
        assert system.attached_to(DEVICE) == ["work"]
        assert system.helpers() == before, "the data channel was not left alone"
        assert held.read() == disk.read_bytes()
    assert [held["vm"] for held in system.devices()[DEVICE]["assignments"]] == ["work"]  # type: ignore[attr-defined]
