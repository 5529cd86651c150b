"""L6 and M1: very many calls, none of them slow, and neither process grows.

One call, a few and many calls are in flight by turns: every change between them is a moment at
which a wake-up could be missed, which would show as a stall.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import trio
from pedos_vchan.peer import Peer

from .effort import EFFORT
from .processes import status_kib
from .row import Row
from .two_processes import PAYLOAD, connected, served

LIMIT_MS = 100
# In this order again and again: (calls in flight, share of the calls).
PATTERN = ((1, 0.1), (4, 0.2), (32, 0.7))
TURN = 5_000  # calls of one pass through PATTERN
# Resident memory moves in steps as the allocator takes and returns pages. A byte kept for each of a
# million calls would be twice as much as this.
DRIFT_KIB = 512


async def _pass(peer: Peer, calls: int) -> float:
    """Makes the calls; the seconds that the slowest took."""
    slowest = 0.0

    async def caller(count: int) -> None:
        nonlocal slowest
        for _ in range(count):
            start = time.perf_counter()
            await peer.call("echo", {"data": PAYLOAD}, timeout=10)
            slowest = max(slowest, time.perf_counter() - start)

    for in_flight, share in PATTERN:
        async with trio.open_nursery() as nursery:
            for _ in range(in_flight):
                nursery.start_soon(caller, max(1, int(calls * share / in_flight)))
    return slowest


async def _soak(folder: Path, server: int, calls: int) -> dict[str, float]:
    processes = {"client": os.getpid(), "server": server}
    async with connected(folder) as peer:
        slowest, grown = 0.0, {}
        before: dict[str, int] = {}
        start = time.perf_counter()
        turns = max(2, calls // TURN)
        for turn in range(turns):
            slowest = max(slowest, await _pass(peer, TURN))
            if turn == turns // 10:  # by then everything that is kept once exists
                before = {name: status_kib(pid, "VmRSS") for name, pid in processes.items()}
        for name, pid in processes.items():
            grown[f"{name}_grown_kib"] = float(status_kib(pid, "VmRSS") - before[name])
        seconds = time.perf_counter() - start
    return {"slowest_ms": slowest * 1e3, "calls": turns * TURN, "s": seconds, **grown}


def measure() -> list[Row]:
    with served() as (folder, server):
        found = trio.run(_soak, folder, server, EFFORT.calls, strict_exception_groups=True)
    calls = f"{found['calls']:,.0f} calls"
    grown = max(found["client_grown_kib"], found["server_grown_kib"])
    return [
        Row("L6", f"the slowest of {calls}", found["slowest_ms"], LIMIT_MS, "ms", found),
        Row("M1", f"a process grows in {calls}", grown, DRIFT_KIB, "KiB", found),
    ]
