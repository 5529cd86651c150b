"""Processor time of a call with both ends in one event loop: python -m benchmarks.one_loop

The least of many short rounds, ours and that of bare asyncio protocols by turns. So the figures
hold on a machine that has much else to do, where each switch between two processes costs both of
them their caches; and they have none of a call's system calls and wake-ups. Not a gate.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import trio
from pedos_vchan import inbox

from .peers.asyncio_protocol import Client, Server
from .processes import pinned
from .throughput import IN_FLIGHT
from .two_processes import PAYLOAD, connected, rendezvous_folder, serve

EACH = 25  # calls of each caller in a round
ROUNDS = 30
TURNS = 5


async def _ours(folder: Path) -> float:
    listening, best = trio.Event(), float("inf")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve, str(folder), False, listening.set)
        await listening.wait()
        async with connected(folder) as peer:

            async def caller() -> None:
                for _ in range(EACH):
                    await peer.call("echo", {"data": PAYLOAD}, timeout=60)

            for _ in range(ROUNDS):
                before = time.thread_time()
                async with trio.open_nursery() as callers:
                    for _ in range(IN_FLIGHT):
                        callers.start_soon(caller)
                best = min(best, time.thread_time() - before)
        nursery.cancel_scope.cancel()
    return best / (EACH * IN_FLIGHT)


async def _protocols(folder: Path) -> float:
    loop, path, best = asyncio.get_running_loop(), str(folder / "socket"), float("inf")
    server = await loop.create_unix_server(Server, path)
    transport, client = await loop.create_unix_connection(Client, path)

    async def caller() -> None:
        for _ in range(EACH):
            await client.call("echo", {"data": PAYLOAD})

    for _ in range(ROUNDS):
        before = time.thread_time()
        await asyncio.gather(*(caller() for _ in range(IN_FLIGHT)))
        best = min(best, time.thread_time() - before)
    transport.close()
    server.close()
    return best / (EACH * IN_FLIGHT)


def main() -> None:
    inbox.TURN_SECONDS = 60.0  # as in `instructions`
    ours = protocols = float("inf")
    with pinned():
        for _ in range(TURNS):
            with rendezvous_folder() as folder:
                ours = min(ours, trio.run(_ours, Path(folder), strict_exception_groups=True))
                protocols = min(protocols, asyncio.run(_protocols(Path(folder))))
    print(f"ours {ours * 1e6:.1f} us, asyncio protocols {protocols * 1e6:.1f} us a call", end=": ")
    print(f"{protocols / ours:.2f} x")


if __name__ == "__main__":
    main()
