"""U1: how long the command line takes to start, against an empty Python in the same environment."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from .row import Row, median_of_rounds

RUNS = 20  # a single start takes a few milliseconds: each round takes the quickest of these
BIN = Path(sys.executable).parent


def _quickest(argv: list[str], env: dict[str, str]) -> Callable[[], float]:
    """Measures one round: the quickest of RUNS starts, in milliseconds."""
    silent = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
    # A completion answers on descriptor 8, which the shell opens for it.
    silent.append((os.POSIX_SPAWN_DUP2, 1, 8))

    def measure_once() -> float:
        best = float("inf")
        for _ in range(RUNS):
            start = time.perf_counter()
            pid = os.posix_spawn(argv[0], argv, env, file_actions=silent)
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            best = min(best, time.perf_counter() - start)
            if status != 0:
                raise RuntimeError(f"{argv} ended with status {status}")
        return best * 1e3

    return measure_once


def _inside() -> None:
    """Runs as the command of `pedos-local run`, so that `list` talks to a real service."""
    # Installed programs have their bytecode, whatever this environment says about writing it.
    env = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    empty = median_of_rounds(_quickest([sys.executable, "-c", "pass"], env))
    device = str(BIN / "qvm-device")
    line = "qvm-device block attach work sys-usb:"
    completion = {"_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line))}
    for name, argv, more in (
        ("--help", [device, "--help"], {}),
        ("list", [device, "block", "list"], {}),
        ("completion", [device], completion),
    ):
        print(name, median_of_rounds(_quickest(argv, {**env, **more})), empty, sep="\t")


def measure() -> list[Row]:
    rows = []
    with tempfile.TemporaryDirectory(prefix="pedos-bench-") as folder:
        place = Path(folder) / "system"
        subprocess.run([BIN / "pedos-local", "init", place], check=True, stdout=subprocess.DEVNULL)
        (place / "vms" / "sys-usb" / "devices" / "block" / "stick.img").write_bytes(bytes(4096))
        inside = [sys.executable, "-c", "from benchmarks.start_up import _inside; _inside()"]
        printed = subprocess.run(
            [BIN / "pedos-local", "run", place, "--", *inside],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        ).stdout
    for line in printed.splitlines():
        name, took, empty = line.split("\t")
        rows.append(
            Row(
                "U1",
                f"start of qvm-device {name}, against an empty Python",
                float(took) / float(empty),
                3,
                "x",
                {"ms": float(took), "empty_python_ms": float(empty)},
            )
        )
    return rows
