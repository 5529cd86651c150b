"""B3: how late an event loop's timers are while its pump moves bytes as fast as it can."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable

import trio
from pedos_vchan import shm
from pedos_vchan.pump import pump

from .row import ROUNDS, Row
from .two_processes import CLIENT_DOMAIN, SERVER_DOMAIN, Child, fork, rendezvous_folder

TICK = 0.001  # seconds
TICKS = 1000
PORT = 8


async def _p99() -> float:
    """The 99th percentile of the lateness of TICKS timers, in seconds."""
    late = []
    for _ in range(TICKS):
        due = trio.current_time() + TICK
        await trio.sleep_until(due)
        late.append(trio.current_time() - due)
    late.sort()
    return late[len(late) * 99 // 100]


async def _idle_and_busy(folder: str, input_fd: int, output_fd: int) -> tuple[float, float]:
    channel = await shm.connect(folder, CLIENT_DOMAIN, SERVER_DOMAIN, PORT)
    idle = await _p99()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pump, channel, input_fd, output_fd)
        busy = await _p99()
        nursery.cancel_scope.cancel()
    return idle, busy


def _once() -> tuple[float, float]:
    silent, nobody = os.pipe()
    zeros, sink = os.open("/dev/zero", os.O_RDONLY), os.open(os.devnull, os.O_WRONLY)
    with rendezvous_folder() as folder:

        async def server(ready: Callable[[], None]) -> None:
            listener = await shm.listen(
                folder,
                SERVER_DOMAIN,
                CLIENT_DOMAIN,
                PORT,
                order_left=shm.DATA_ORDER,
                order_right=shm.DATA_ORDER,
            )
            ready()
            await pump(await listener.accept(), silent, sink)

        def client(ready: Callable[[], None]) -> tuple[float, float]:
            ready()
            return trio.run(_idle_and_busy, folder, zeros, sink)

        pid = fork(lambda ready: trio.run(server, ready))
        try:
            idle, busy = Child(client).result()
            return idle, busy
        finally:
            os.waitpid(pid, 0)
            for fd in (silent, nobody, zeros, sink):
                os.close(fd)


def measure() -> list[Row]:
    rounds = [_once() for _ in range(ROUNDS)]
    idle, busy = (statistics.median(values) for values in zip(*rounds, strict=True))
    return [
        Row(
            "B3",
            "lateness of the event loop (p99) during bulk, against idle",
            busy / idle,
            1.5,
            "x",
            {"idle_us": idle * 1e6, "busy_us": busy * 1e6},
        )
    ]
