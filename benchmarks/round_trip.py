"""L1: a call through the whole stack against 64 bytes to and fro over a Unix socket in C.

Both sides run on one core, alternately and five times; the figure is the ratio of the medians.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import trio

from .row import ROUNDS, Row
from .two_processes import connected, fork_server, rendezvous_folder

TRIPS_C = 20_000
TRIPS_STACK = 3_000
PAYLOAD = "x" * 40  # with its framing about 64 bytes on the wire, as the peer sends


def _compile(folder: Path) -> Path:
    program = folder / "unix_pingpong"
    source = Path(__file__).with_name("unix_pingpong.c")
    subprocess.run(["cc", "-O2", "-Wall", "-o", program, source], check=True)
    return program


async def _stack_round(folder: Path, trips: int) -> float:
    """Seconds per call, one call in flight."""
    async with connected(folder) as peer:
        for _ in range(trips // 10):
            await peer.call("echo", {"data": PAYLOAD}, timeout=10)
        start = time.perf_counter()
        for _ in range(trips):
            await peer.call("echo", {"data": PAYLOAD}, timeout=10)
        return (time.perf_counter() - start) / trips


def _measure_stack() -> float:
    with rendezvous_folder() as folder:
        pid = fork_server(Path(folder))
        try:
            return trio.run(_stack_round, Path(folder), TRIPS_STACK, strict_exception_groups=True)
        finally:
            os.waitpid(pid, 0)


def measure() -> list[Row]:
    core = min(os.sched_getaffinity(0))
    before = os.sched_getaffinity(0)
    ours: list[float] = []
    peers: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        program = _compile(Path(folder))
        os.sched_setaffinity(0, {core})
        try:
            for _ in range(ROUNDS):
                printed = subprocess.run(
                    [program, str(core), "1", str(TRIPS_C)],
                    check=True,
                    stdout=subprocess.PIPE,
                    text=True,
                ).stdout
                peers.append(int(printed) / 1e9)
                ours.append(_measure_stack())
        finally:
            os.sched_setaffinity(0, before)
    stack, peer = statistics.median(ours), statistics.median(peers)
    return [
        Row(
            "L1",
            "round trip of a call, against a C Unix socket",
            stack / peer,
            6,
            "x",
            {"stack_us": stack * 1e6, "c_unix_socket_us": peer * 1e6},
        )
    ]
