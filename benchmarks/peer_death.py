"""C2: how long until a killed peer is noticed, here and in its waiting call."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import trio
from pedos_protocol.errors import CallError

from .row import Row, median_of_rounds
from .two_processes import connected, fork_server, rendezvous_folder

LIMIT_MS = 50


async def _until_noticed(folder: Path, pid: int) -> float:
    """Milliseconds from SIGKILL until the channel's peer sees its end."""
    killed = 0.0
    try:
        async with connected(folder) as peer:
            await peer.call("echo", {}, timeout=5)
            killed = time.perf_counter()
            os.kill(pid, signal.SIGKILL)
            await trio.sleep_forever()
    except* (trio.BrokenResourceError, CallError):
        pass
    return (time.perf_counter() - killed) * 1e3


def _once() -> float:
    with rendezvous_folder() as folder:
        pid = fork_server(Path(folder))
        try:
            return trio.run(_until_noticed, Path(folder), pid, strict_exception_groups=True)
        finally:
            os.waitpid(pid, 0)


def measure() -> list[Row]:
    return [Row("C2", "a killed peer is noticed", median_of_rounds(_once), LIMIT_MS, "ms")]
