"""M1: the resident memory of an agent that has nothing to do, in a real system of local mode."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from .processes import guarded, output_of, status_kib
from .row import Row

BIN = Path(sys.executable).parent
LIMIT_MIB = 32


def _agents() -> list[int]:
    """The agents among the processes of the machine that started this one."""
    machine = os.getppid()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = entry.joinpath("cmdline").read_bytes().split(b"\0")
            parent = int(entry.joinpath("stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue  # it ended meanwhile
        if parent == machine and b"--vm" in words:
            found.append(int(entry.name))
    return found


def _inside() -> None:
    """Runs as the command of `pedos-local run`; prints the KiB of the largest agent."""
    subprocess.run([BIN / "qvm-device", "block", "list"], check=True, stdout=subprocess.DEVNULL)
    time.sleep(1)  # whatever an agent does after its start is done
    print(max(status_kib(pid, "VmRSS") for pid in _agents()))


def measure() -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="pedos-bench-") as folder:
        place = Path(folder) / "system"
        subprocess.run(
            guarded([BIN / "pedos-local", "init", place]), check=True, stdout=subprocess.DEVNULL
        )
        (place / "vms" / "sys-usb" / "devices" / "block" / "stick.img").write_bytes(bytes(4096))
        inside = [sys.executable, "-c", "from benchmarks.resident import _inside; _inside()"]
        kib = int(output_of([BIN / "pedos-local", "run", place, "--", *inside]))
    return [Row("M1", "resident memory of an agent", kib / 1024, LIMIT_MIB, "MiB")]
