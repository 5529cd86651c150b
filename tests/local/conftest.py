"""Tiny programs that replace dom0's service and the agents."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio
from pedos_dom0.local.layout import Layout
from pedos_dom0.local.supervise import Program

# Says READY=1 as sd_notify(3) has it, then does what its test wants.
PREAMBLE = """
import os, signal, socket, sys
def ready():
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
        s.sendto(b"READY=1", "\\0" + os.environ["NOTIFY_SOCKET"][1:])
"""
OBEDIENT = "ready()\nwhile True: signal.pause()"
STUBBORN = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + OBEDIENT
CRASHING = "ready()\nsys.exit(3)"

# As in tests/patience.py, which the program of a test that imports this file cannot import.
PATIENCE = 60

needs_fuse = pytest.mark.skipif(not os.path.exists("/dev/fuse"), reason="there is no /dev/fuse")


def script(name: str, body: str, folder: Path, *arguments: str) -> Program:
    argv = [sys.executable, "-S", "-E", "-c", PREAMBLE + body, *arguments]
    return Program(name, argv, folder / f"{name}.log")


@dataclass
class FakePrograms:
    """Every program is a script; `bodies` says which, by the name of the program."""

    folder: Path
    bodies: dict[str, str] = field(default_factory=dict)
    sounds: dict[str, list[str]] = field(default_factory=dict)  # names of programs, by VM

    def _script(self, name: str, *arguments: str) -> Program:
        return script(name, self.bodies.get(name, OBEDIENT), self.folder, *arguments)

    def dom0(self) -> Program:
        return self._script("dom0")

    def dom0_agent(self) -> Program:
        return self._script("dom0-agent")

    def agent(self, name: str, domid: int) -> Program:
        return self._script(name, str(domid))

    def keeper(self, name: str, listener: int) -> Program:
        return self._script(f"{name}.keeper", str(listener))

    def sound(self, name: str) -> list[Program]:
        return [self._script(each) for each in self.sounds.get(name, ())]


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout.of(tmp_path / "lab")
    layout.make_folders(("sys-usb", "work"))
    return layout


@pytest.fixture
def programs(layout: Layout) -> FakePrograms:
    return FakePrograms(layout.root / "log")


async def gone(pid: int) -> None:
    """Returns when no process has this pid any more (the caller holds no unreaped child of it)."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        with trio.fail_after(PATIENCE):
            await trio.lowlevel.wait_readable(fd)
    finally:
        os.close(fd)
