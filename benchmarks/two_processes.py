"""Two processes with a channel between them, for the benchmarks: the far end answers calls."""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio
from pedos_vchan import shm
from pedos_vchan.peer import Peer
from pedos_vchan.stream import VchanStream

SERVER_DOMAIN, CLIENT_DOMAIN = 1, 0


async def _echo(_peer: Peer, params: dict[str, object]) -> dict[str, object]:
    return params


async def _serve(folder: str, ready: int) -> None:
    listener = await shm.listen(folder, SERVER_DOMAIN, CLIENT_DOMAIN, shm.CONTROL_PORT)
    os.write(ready, b"!")
    stream = VchanStream(await listener.accept())
    await Peer(stream, program="bench-server", handlers={"echo": _echo}).run()


def fork_server(folder: Path) -> int:
    """A process that answers `echo` over a channel in `folder`; returns its pid once it listens."""
    readable, writable = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(readable)
            trio.run(_serve, str(folder), writable, strict_exception_groups=True)
            status = 0
        finally:
            os._exit(status)
    os.close(writable)
    if os.read(readable, 1) != b"!":
        raise RuntimeError("the far end of the benchmark did not come up")
    os.close(readable)
    return pid


@asynccontextmanager
async def connected(folder: Path) -> AsyncIterator[Peer]:
    """A Peer that is past its hello with the forked server in `folder`."""
    channel = await shm.connect(folder, CLIENT_DOMAIN, SERVER_DOMAIN, shm.CONTROL_PORT)
    peer = Peer(VchanStream(channel), program="bench-client", handlers={})
    async with trio.open_nursery() as nursery:
        await nursery.start(peer.run)
        yield peer
        nursery.cancel_scope.cancel()


def rendezvous_folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="pedos-bench-")
