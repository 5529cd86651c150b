"""C1: a thousand concurrent calls over one channel, none of which fails.

The channel lets 128 calls be in flight; the caller respects that and the other calls wait, so each
of a thousand tasks that call at once gets its own answer.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import trio
from pedos_protocol.errors import CallError

from .row import Row
from .two_processes import connected, fork_server, rendezvous_folder

CALLS = 1000


async def _count_failures(folder: Path) -> tuple[int, float]:
    failures = 0

    async def one(number: int) -> None:
        nonlocal failures
        try:
            answer = await peer.call("echo", {"number": number}, timeout=30)
        except CallError:
            failures += 1
        else:
            failures += answer["number"] != number

    async with connected(folder) as peer:
        start = time.perf_counter()
        async with trio.open_nursery() as nursery:
            for number in range(CALLS):
                nursery.start_soon(one, number)
        return failures, time.perf_counter() - start


def measure() -> list[Row]:
    with rendezvous_folder() as folder:
        pid = fork_server(Path(folder))
        try:
            failures, seconds = trio.run(
                _count_failures, Path(folder), strict_exception_groups=True
            )
        finally:
            os.waitpid(pid, 0)
    return [Row("C1", f"failures in {CALLS} concurrent calls", failures, 0, "", {"s": seconds})]
