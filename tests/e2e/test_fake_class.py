"""A class of devices that stands in tests alone, in real programs: kill -9 of any of them at any
step of its attach, its detach and its mute, and the system is right again."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from pedos_cli import client
from pedos_protocol.errors import CallError, ProtocolError

from .conftest import Prepare
from .faults import FaultController
from .system import LocalSystem, kill_and_wait

Act = Callable[[LocalSystem], None]

ROOT = Path(__file__).parents[2]
SITE = ROOT / "tests" / "fake_class" / "site"

TOY = "sys-usb:toy"
NAMED = {"device_class": "fake", "vm": "work", "backend": "sys-usb", "device": "toy"}
WORDS = "A toy"
VMS = {"dom0", "sys-usb", "work", "vault"}
PROGRAMS = ("dom0", "agent:sys-usb", "agent:work")
# test_the_tables_name_every_step keeps these true.
ATTACH_STEPS = (
    "attach.leased",
    "export.listening",
    "attach.exported",
    "import.connected",
    "export.connected",
    "import.ready",
    "attach.imported",
    "attach.committed",
)
DETACH_STEPS = (
    "detach.started",
    "import.stopped",
    "detach.unimported",
    "export.stopped",
    "detach.unexported",
    "detach.freed",
)
MUTE_STEPS = ("noted", "export.muting", "export.muted", "applied")


@pytest.fixture(scope="module")
def prepare() -> Prepare:
    def prepare(system: LocalSystem) -> dict[str, str]:
        for vm in VMS:
            (system.folder / "vms" / vm / "devices" / "fake").mkdir(parents=True)
        (system.folder / "vms" / "sys-usb" / "devices" / "fake" / "toy").write_text(WORDS)
        return {"PYTHONPATH": f"{SITE}{os.pathsep}{ROOT}"}

    return prepare


def ends_of_the_channel(system: LocalSystem) -> list[bool]:
    """Whether source and target have the toy in use."""
    return [
        is_locked(system.folder / "vms" / vm / "dev" / name)
        for vm, name in (("sys-usb", "fake-toy.lent"), ("work", "fake-toy"))
    ]


def is_locked(path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def holders(system: LocalSystem) -> list[str] | None:
    """Who has the toy, when all agents are there; None if they are not, or the toy is not."""
    vms = system.call("vm.list")["vms"]
    if {vm["name"] for vm in vms if vm["agent"]} != VMS:
        return None
    listed = system.call("device.list", device_class="fake")["devices"]
    return next(
        ([held["vm"] for held in each["attachments"]] for each in listed if each["present"]), None
    )


def settle(system: LocalSystem) -> list[str]:
    """Everybody is back, and what is said to be attached is what there is: who has the toy."""
    found: list[str] | None = None

    def is_settled() -> bool:
        nonlocal found
        with contextlib.suppress(client.Unreachable, CallError):  # dom0's service is not back yet
            found = holders(system)
            return found is not None and ends_of_the_channel(system) == [found == ["work"]] * 2
        return False

    system.wait_until(is_settled, f"the system is consistent again\n{system.log()}")
    assert found is not None
    return found


def attach(system: LocalSystem) -> None:
    system.call("device.attach", **NAMED)


def detach(system: LocalSystem) -> None:
    system.call("device.detach", **NAMED)


def attach_again(system: LocalSystem) -> None:
    """The same attach succeeds, or has succeeded, and a detach leaves nothing."""
    attach(system)
    assert ends_of_the_channel(system) == [True, True]
    assert (system.folder / "vms" / "work" / "dev" / "fake-toy").read_text() == WORDS
    detach(system)
    assert ends_of_the_channel(system) == [False, False]


def kill(system: LocalSystem, victim: str) -> int:
    """Kills them, and waits for their end; how many there were."""
    pids = system.victim(victim)
    kill_and_wait(pids)
    return len(pids)


def kill_while(
    system: LocalSystem, faults: FaultController, step: str, victim: str, act: Act
) -> None:
    killed: list[int] = []
    faults.arm(step, lambda: killed.append(kill(system, victim)))
    with contextlib.suppress(ProtocolError, client.Unreachable, CallError):
        act(system)
    settle(system)
    assert killed == [1]
    attach_again(system)


@pytest.fixture(autouse=True)
def clean(system: LocalSystem, faults: FaultController) -> None:
    faults.disarm()
    settle(system)


def test_the_commands_name_it_and_the_tables_name_every_step(
    system: LocalSystem, faults: FaultController
) -> None:
    faults.forget()
    system.ok("qvm-device", "fake", "attach", "work", TOY)
    assert ends_of_the_channel(system) == [True, True]
    assert {line.split()[1] for line in faults.seen} == set(ATTACH_STEPS)
    faults.forget()
    system.ok("qvm-device", "fake", "detach", "work", TOY)
    assert ends_of_the_channel(system) == [False, False]
    assert {line.split()[1] for line in faults.seen} == set(DETACH_STEPS)


@pytest.mark.parametrize("victim", PROGRAMS)
@pytest.mark.parametrize("step", ATTACH_STEPS)
def test_a_kill_while_attaching(
    system: LocalSystem, faults: FaultController, step: str, victim: str
) -> None:
    kill_while(system, faults, step, victim, attach)


@pytest.mark.parametrize("victim", PROGRAMS)
@pytest.mark.parametrize("step", DETACH_STEPS)
def test_a_kill_while_detaching(
    system: LocalSystem, faults: FaultController, step: str, victim: str
) -> None:
    attach(system)
    kill_while(system, faults, step, victim, detach)


def mute(system: LocalSystem, muted: bool) -> None:
    system.call("device.mute", device_class="fake", vm="work", muted=muted)


def is_silent(system: LocalSystem) -> bool:
    """What the source really does."""
    return (system.folder / "vms" / "sys-usb" / "dev" / "fake-toy.lent").read_text() == "0"


@pytest.mark.parametrize("victim", PROGRAMS)
@pytest.mark.parametrize("step", MUTE_STEPS)
@pytest.mark.parametrize("muted", [True, False], ids=["mute", "unmute"])
def test_a_kill_while_muting(
    system: LocalSystem, faults: FaultController, muted: bool, step: str, victim: str
) -> None:
    if "." not in step:
        step = f"{'mute' if muted else 'unmute'}.{step}"
    attach(system)
    mute(system, not muted)
    killed: list[int] = []
    faults.arm(step, lambda: killed.append(kill(system, victim)))
    with contextlib.suppress(ProtocolError, client.Unreachable, CallError):
        mute(system, muted)
    settle(system)
    assert killed == [1]
    attach(system)  # again, if an agent has died

    def is_as_asked() -> bool:
        (toy,) = system.call("device.list", device_class="fake")["devices"]
        (to,) = toy["attachments"]
        is_so = (to["muted"], to["unconfirmed"]) == (muted, None)
        return is_so and is_silent(system) == muted

    system.wait_until(is_as_asked, f"what was noted is what is heard\n{system.log()}")
    mute(system, False)
    assert not is_silent(system)
    detach(system)


def test_the_command_mutes_and_says_so(system: LocalSystem) -> None:
    said = system.ok("qvm-device", "fake", "mute", "work")
    assert said == "work is muted: it will hear nothing of what it gets\n"
    attach(system)
    assert is_silent(system)
    assert "work (attached, muted)" in system.ok("qvm-device", "fake", "list")
    assert system.ok("qvm-device", "fake", "unmute", "work") == (
        f"work is unmuted: it may hear {TOY}\n"
    )
    assert not is_silent(system)
    detach(system)


def test_a_restart_of_the_service_keeps_it(system: LocalSystem) -> None:
    attach(system)
    assert kill(system, "dom0") == 1
    assert settle(system) == ["work"]
    attach_again(system)
