"""What the asyncio peers share: the load, and a server process that reports when it is ready."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator

PAYLOAD = "x" * 40
Call = Callable[[], Awaitable[object]]


async def load(call: Call, in_flight: int, calls: int) -> float:
    """Seconds per call, `in_flight` of them at a time, after a tenth as many to warm up."""

    async def caller(count: int) -> None:
        for _ in range(count):
            await call()

    each = max(1, calls // in_flight)
    start = 0.0
    for count in (max(1, each // 10), each):
        start = time.perf_counter()
        if in_flight == 1:
            await caller(count)
        else:
            await asyncio.gather(*(caller(count) for _ in range(in_flight)))
    return (time.perf_counter() - start) / (each * in_flight)


def say_ready() -> None:
    """For a server: its client may connect now."""
    print("ready", flush=True)


@contextlib.contextmanager
def started(argv: list[str], *, quiet: bool = False) -> Iterator[str]:
    """A process for as long as the block lasts; yields the first line that it prints."""
    guard = ["setpriv", "--pdeathsig", "KILL", "--"]
    stderr = subprocess.DEVNULL if quiet else None
    with subprocess.Popen(
        [*guard, *argv], stdout=subprocess.PIPE, stderr=stderr, text=True
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline().strip()
            if not line:
                raise RuntimeError(f"{argv[0]} did not come up")
            yield line
        finally:
            process.kill()


def main(
    module: str,
    serve: Callable[[str], Awaitable[None]],
    client: Callable[[str, int, int], Awaitable[float]],
    bus: Callable[[str], contextlib.AbstractContextManager[str]] | None = None,
) -> None:
    """The program of one peer. `bus` starts what stands between, and yields its address."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.peers.{module}")
    parser.add_argument("in_flight", help="calls at a time, or 'serve'")
    parser.add_argument("calls", help="how many in all, or the address to serve at")
    arguments = parser.parse_args()
    if arguments.in_flight == "serve":
        asyncio.run(serve(arguments.calls))
        return
    with tempfile.TemporaryDirectory(prefix="pedos-bench-") as folder:
        path = f"{folder}/socket"
        with contextlib.ExitStack() as stack:
            address = path if bus is None else stack.enter_context(bus(path))
            argv = [sys.executable, "-m", f"benchmarks.peers.{module}", "serve", address]
            stack.enter_context(started(argv))
            in_flight, calls = int(arguments.in_flight), int(arguments.calls)
            print(asyncio.run(client(address, in_flight, calls)))
