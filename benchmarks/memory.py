"""M1: the resident memory of an idle agent, in a real system of local mode; and what the service in
dom0 keeps for each agent, as tracemalloc counts it.

The service's resident memory does not measure that: it moves in steps of an allocator's arenas, and
includes what connecting all agents at once needed for a moment. Neither figure includes rings.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from .processes import guarded, output_of, stat_fields, status_kib
from .row import Row
from .scale import UP_TIMEOUT, list_seconds, system

BIN = Path(sys.executable).parent
LIMIT_MIB = 32

FEW, MANY = 10, 210
LIMIT_KIB = 15  # that the service keeps for an agent, without the rings


def _agents() -> list[int]:
    """The agents among the processes of the machine that started this one."""
    machine = os.getppid()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = entry.joinpath("cmdline").read_bytes().split(b"\0")
            parent = int(stat_fields(entry.name)[1])
        except OSError:
            continue  # it ended meanwhile
        if parent == machine and b"--vm" in words:
            found.append(int(entry.name))
    return found


def _inside() -> None:
    """Runs as the command of `pedos-local run`; prints the KiB of the largest agent."""
    subprocess.run([BIN / "qvm-device", "block", "list"], check=True, stdout=subprocess.DEVNULL)
    time.sleep(1)  # the agent's start is complete
    print(max(status_kib(pid, "VmRSS") for pid in _agents()))


def _live_bytes(agents: int) -> int:
    """The bytes of a service with so many connected agents, after it has listed all devices."""
    with (
        tempfile.TemporaryDirectory(prefix="pedos-bench-") as folder,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told,
    ):
        told.bind(f"{folder}/told")
        told.settimeout(UP_TIMEOUT)
        counting = (sys.executable, "-m", "benchmarks.live_bytes", f"{folder}/told")
        with system(agents, counting) as (running, _):
            list_seconds(running)
            os.kill(running.service, signal.SIGUSR1)
            return int(told.recv(64))


def _of_the_service() -> Row:
    few, many = _live_bytes(FEW), _live_bytes(MANY)
    kib = (many - few) / (MANY - FEW) / 1024
    detail = {f"bytes_{FEW}": float(few), f"bytes_{MANY}": float(many)}
    return Row("M1", "what the service keeps for an agent", kib, LIMIT_KIB, "KiB", detail)


def _of_an_agent() -> Row:
    with tempfile.TemporaryDirectory(prefix="pedos-bench-") as folder:
        place = Path(folder) / "system"
        subprocess.run(
            guarded([BIN / "pedos-local", "init", place]), check=True, stdout=subprocess.DEVNULL
        )
        (place / "vms" / "sys-usb" / "devices" / "block" / "stick.img").write_bytes(bytes(4096))
        inside = [sys.executable, "-c", "from benchmarks.memory import _inside; _inside()"]
        kib = int(output_of([BIN / "pedos-local", "run", place, "--", *inside]))
    return Row("M1", "resident memory of an agent", kib / 1024, LIMIT_MIB, "MiB")


def measure() -> list[Row]:
    return [_of_an_agent(), _of_the_service()]
