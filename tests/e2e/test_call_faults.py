"""kill -9 of any process at any step of a call: whoever called hears how it ended, and at once;
afterwards nothing is left of the call, and the next one works."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from .calls import calling, configure, running, serve, shell
from .conftest import Prepare
from .faults import FaultController
from .system import PATIENCE_S, LocalSystem, process_table

VMS = {"dom0", "sys-usb", "work", "vault"}
SERVED, PROBLEM, KILLED = 3, 125, -signal.SIGKILL
EITHER = (SERVED, PROBLEM)
Heard = int | tuple[int, int]
SAID = b"four\ninput is over\n"
VICTIMS = ("dom0", "agent:work", "agent:vault", "keeper", "caller")
# Each step of a call, and what its caller hears if one of the first four is killed at it: one of
# two where others go on meanwhile. Those without a dot are steps of the two programs;
# test_the_table_names_every_step keeps the others true.
STEPS: dict[str, tuple[Heard, Heard, Heard, Heard]] = {
    "call.asked": (PROBLEM, PROBLEM, EITHER, SERVED),
    "call.decided": (PROBLEM, PROBLEM, EITHER, SERVED),
    "calling.listening": (PROBLEM, PROBLEM, PROBLEM, SERVED),
    "call.listening": (PROBLEM, PROBLEM, PROBLEM, SERVED),
    "call.granted": (PROBLEM, PROBLEM, PROBLEM, EITHER),
    "calling.granted": (EITHER, PROBLEM, PROBLEM, EITHER),
    "serving.connected": (EITHER, PROBLEM, PROBLEM, SERVED),
    # The call's thread goes on meanwhile.
    "serving.spawned": (EITHER, EITHER, EITHER, EITHER),
    "first bytes": (SERVED, PROBLEM, PROBLEM, PROBLEM),
    "input over": (SERVED, PROBLEM, PROBLEM, PROBLEM),
    "output over": (SERVED, PROBLEM, PROBLEM, PROBLEM),
    "serving.ended": (SERVED, EITHER, SERVED, SERVED),
    "calling.ended": (SERVED, PROBLEM, SERVED, SERVED),
    "call.ended": (SERVED, EITHER, SERVED, SERVED),
}
# With an idle channel a call has none of these.
OF_NEW_CHANNELS = ("calling.listening", "call.listening")
IDLE = 2  # channels that dom0 keeps for the next calls of a pair
GATE = "gate"
# Seconds until a caller hears the end: less than any time-out that could bring it about instead.
HANG_S = 4
# So many times what other calls take here at that time are allowed beside it.
SLOW = 20
PLACES = 32  # calls of a pair at a time


@pytest.fixture(scope="module")
def prepare() -> Prepare:
    def prepared(system: LocalSystem) -> dict[str, str]:
        (system.folder / "policy.d" / "10-calls.policy").write_text("* * work vault allow\n")
        home = system.folder / "vms" / "vault" / "home"
        home.mkdir(parents=True, exist_ok=True)
        os.mkfifo(home / GATE)
        steps = shell(
            *("read line || exit 1", 'echo "$line"', "cat", "echo input is over", "exec >&-"),
            *(f'read go <"$HOME/{GATE}"', f"exit {SERVED}"),
        )
        serve(system.folder, "vault", "test.Steps", steps)
        # At last it waits for another than its caller, and would not notice.
        configure(system.folder, "vault", "test.Steps", "on-caller-gone = hup\n")
        serve(system.folder, "vault", "test.Hold", shell("echo ready", "exec cat"))
        return {}

    return prepared


@pytest.fixture
def gate(system: LocalSystem) -> Iterator[int]:
    """Lets the service end, once something is written into it."""
    fifo = os.open(system.folder / "vms" / "vault" / "home" / GATE, os.O_RDWR | os.O_NONBLOCK)
    yield fifo
    with suppress(BlockingIOError):  # what no service has taken
        os.read(fifo, 100)
    os.close(fifo)


def pids(system: LocalSystem) -> dict[str, int]:
    """The process of each part; the keeper only while there is one."""
    table = process_table()
    found = {name: system.victim(name, table) for name in VICTIMS[:3]}
    services_of_vault = str(system.folder / "vms" / "vault" / "services.d")
    keepers = system.processes("pedos_keeper", services_of_vault, table=table)
    found["keeper"] = [pid for pid in keepers if table[pid][0] in keepers]
    return {name: pids[0] for name, pids in found.items() if pids}


def services(system: LocalSystem) -> list[int]:
    """The processes of the service."""
    mark = f"{system.folder}/vms/vault/services.d/test."
    return [
        pid
        for pid, (_, argv) in process_table().items()
        if any(word.startswith(mark) for word in argv)
    ]


def descriptors(pid: int) -> int:
    """How many it has open; 0 if it has ended."""
    with suppress(OSError):
        return len(os.listdir(f"/proc/{pid}/fd"))
    return 0


def line(stream: int) -> bytes:
    """What is read up to the end of a line, or of all."""
    said = b""
    while not said.endswith(b"\n"):
        readable, _, _ = select.select([stream], [], [], PATIENCE_S)
        assert readable, f"nothing more comes after {said!r}"
        byte = os.read(stream, 1)
        if not byte:
            break
        said += byte
    return said


def go(command: subprocess.Popen[bytes], gate: int, at: Callable[[str], None]) -> bytes:
    """Make all steps of a call; what the service has said."""
    assert command.stdin is not None and command.stdout is not None
    with suppress(BrokenPipeError):
        command.stdin.write(b"four\n")
    said = line(command.stdout.fileno())
    at("first bytes")
    command.stdin.close()
    said += line(command.stdout.fileno())
    at("input over")
    said += line(command.stdout.fileno())
    at("output over")
    os.write(gate, b"\n")
    command.wait(PATIENCE_S)
    return said


@contextmanager
def bystanders(system: LocalSystem, count: int, status: int = 0) -> Iterator[None]:
    """Other calls between the same VMs, which begin before the block and end with it, so."""
    with ExitStack() as stack:
        calls = [stack.enter_context(calling(system, "vault", "test.Hold")) for _ in range(count)]
        for each in calls:
            assert each.stdout is not None and line(each.stdout.fileno()) == b"ready\n"
        yield
        for each in calls:
            each.communicate(b"", PATIENCE_S)
        assert [each.returncode for each in calls] == [status] * count


def rest(system: LocalSystem) -> float:
    """Wait until all is as before any call, and make as many as there may be idle channels; how
    long these take, in seconds."""
    system.wait_until(lambda: system.agents() == VMS, "every agent is connected")
    nothing_runs(system)
    began = time.monotonic()
    with bystanders(system, IDLE):
        pass
    took = time.monotonic() - began
    nothing_runs(system)
    return took


def nothing_runs(system: LocalSystem) -> None:
    system.wait_until(lambda: running(system) == [], "no call is left")
    system.wait_until(lambda: services(system) == [], "no process of a service is left")


@pytest.fixture(scope="module")
def most() -> dict[tuple[Path, str], int]:
    """How many descriptors each part of a system had when it was first seen between calls."""
    return {}


@pytest.fixture
def usual(system: LocalSystem, most: dict[tuple[Path, str], int]) -> dict[str, int]:
    """How many descriptors each part has between calls, at most."""
    rest(system)
    for name, pid in pids(system).items():
        most.setdefault((system.folder, name), descriptors(pid))
    return {name: count for (folder, name), count in most.items() if folder == system.folder}


class Killer:
    """Kills one part of a system, once."""

    def __init__(self, system: LocalSystem, victim: str) -> None:
        self._pids = pids(system)
        self._victim = victim
        self._is_there = threading.Event()
        self.at: float | None = None

    def caller(self, pid: int) -> None:
        """The caller runs now."""
        self._pids["caller"] = pid
        self._process = os.pidfd_open(self._pids[self._victim])
        self._is_there.set()

    def kill(self) -> None:
        """Returns when it is dead: so all that it had open is closed."""
        assert self._is_there.wait(PATIENCE_S)
        self.at = time.monotonic()
        with suppress(ProcessLookupError):  # a caller that has ended
            signal.pidfd_send_signal(self._process, signal.SIGKILL)
        select.select([self._process], [], [], PATIENCE_S)
        os.close(self._process)

    def is_back(self, system: LocalSystem) -> bool:
        """Whether another one has taken its place. A keeper does with the next call."""
        now = pids(system)
        return self._victim in ("caller", "keeper") or (
            self._victim in now and now[self._victim] != self._pids[self._victim]
        )


def test_the_table_names_every_step(
    system: LocalSystem, faults: FaultController, gate: int
) -> None:
    named = {each for each in STEPS if "." in each}
    rest(system)
    with bystanders(system, IDLE):
        faults.forget()
        with calling(system, "vault", "test.Steps") as command:
            assert go(command, gate, lambda _: None) == SAID
        assert command.returncode == SERVED
        system.wait_until(lambda: seen(faults) >= named, "each step is reached")
        assert seen(faults) == named


def seen(faults: FaultController) -> set[str]:
    """The steps that were reached."""
    return {each.split()[1] for each in [*faults.seen]}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("victim", VICTIMS)
def test_a_kill_at_a_step(
    system: LocalSystem,
    faults: FaultController,
    gate: int,
    usual: dict[str, int],
    step: str,
    victim: str,
) -> None:
    killer = Killer(system, victim)
    others = IDLE if step in OF_NEW_CHANNELS else 0
    go_on = victim in ("dom0", "caller")
    with bystanders(system, others, 0 if go_on else PROBLEM):
        faults.arm(step, killer.kill)
        with calling(system, "vault", "test.Steps") as command:
            killer.caller(command.pid)
            said = go(command, gate, lambda each: killer.kill() if each == step else None)
            ended = time.monotonic()
            assert command.stderr is not None
            complaint = command.stderr.read().decode()
        system.wait_until(lambda: killer.at is not None, f"{step} is reached")
    check(step, victim, command.returncode, said, complaint)
    system.wait_until(lambda: killer.is_back(system), f"there is another {victim}")
    slowness = rest(system)
    assert killer.at is not None
    if command.returncode == PROBLEM:
        assert ended - killer.at < HANG_S + SLOW * slowness, complaint
    system.wait_until(
        lambda: all(descriptors(pid) <= usual[name] for name, pid in pids(system).items()),
        "no descriptor is left",
    )


def check(step: str, victim: str, heard: int, said: bytes, complaint: str) -> None:
    """What the caller has heard is true."""
    if victim == "caller":
        # It may have ended before.
        assert heard in (KILLED, SERVED)
    else:
        expected = STEPS[step][VICTIMS.index(victim)]
        assert heard in (expected if isinstance(expected, tuple) else (expected,)), complaint
    assert heard != SERVED or said == SAID
    # It says why, and that is no time-out.
    assert bool(complaint) == (heard == PROBLEM)
    assert "within" not in complaint


def test_a_pair_has_all_its_places_after_that(system: LocalSystem) -> None:
    with bystanders(system, PLACES):
        assert len(running(system)) == PLACES
    nothing_runs(system)
