"""Two processes with a channel between them, for the benchmarks: the far end answers calls."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import trio
from pedos_host.unix import connect_unix, listen_unix
from pedos_protocol.events import know_methods
from pedos_vchan import shm
from pedos_vchan.peer import Peer
from pedos_vchan.quota import NO_LIMIT
from pedos_vchan.stream import VchanStream

from .processes import die_with_parent, processor_seconds

if TYPE_CHECKING:
    from collections.abc import Iterator

SERVER_DOMAIN, CLIENT_DOMAIN = 1, 0

PAYLOAD = "x" * 40  # with its framing about 64 bytes on the wire, as the C peer sends


know_methods(["echo"])  # as programs know the methods of their schema


async def _echo(_peer: Peer, params: dict[str, object]) -> dict[str, object]:
    return params


async def _accept_channel(folder: str, ready: Callable[[], None]) -> trio.abc.Stream:
    listener = await shm.listen(folder, SERVER_DOMAIN, CLIENT_DOMAIN, shm.CONTROL_PORT)
    ready()
    return VchanStream(await listener.accept())


async def _accept_socket(folder: str, ready: Callable[[], None]) -> trio.abc.Stream:
    listener = await listen_unix(f"{folder}/socket", 0o600)
    ready()
    return await listener.accept()


async def serve(folder: str, over_socket: bool, ready: Callable[[], None]) -> None:
    stream = await (_accept_socket if over_socket else _accept_channel)(folder, ready)
    await Peer(
        stream, program="bench-server", handlers={"echo": _echo}, frames_per_second=NO_LIMIT
    ).run()


def fork(run: Callable[[Callable[[], None]], None]) -> int:
    """A child that runs `run(ready)` and exits; returns its pid once that has called `ready`."""
    readable, writable = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(readable)
            die_with_parent()
            run(lambda: os.write(writable, b"!") and None)
            status = 0
        finally:
            os._exit(status)
    os.close(writable)
    came = os.read(readable, 1)
    os.close(readable)
    if came != b"!":
        os.waitpid(pid, 0)
        raise RuntimeError("the far end of the benchmark did not come up")
    return pid


class Child:
    """A forked process that runs `run(ready)` and returns the resulting numbers.

    It has called `ready` when the constructor returns. Users of trio's threads run both ends in
    such processes: a process that has used them once cannot fork children that do.
    """

    def __init__(self, run: Callable[[Callable[[], None]], Sequence[float]]) -> None:
        self._readable, writable = os.pipe()

        def report(ready: Callable[[], None]) -> None:
            os.close(self._readable)
            os.write(writable, " ".join(map(repr, run(ready))).encode())

        self._pid = fork(report)
        os.close(writable)

    def result(self) -> list[float]:
        """The result, when the process has ended."""
        with open(self._readable) as file:
            printed = file.read()
        if os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1]) != 0:
            raise RuntimeError("a measured process failed")
        return [float(word) for word in printed.split()]


def fork_server(folder: Path, *, over_socket: bool = False) -> int:
    """A process that answers `echo` over a channel in `folder`; returns its pid once it listens."""
    return fork(
        lambda ready: trio.run(serve, str(folder), over_socket, ready, strict_exception_groups=True)
    )


@asynccontextmanager
async def connected(folder: Path, *, over_socket: bool = False) -> AsyncIterator[Peer]:
    """A Peer that has exchanged hellos with the forked server in `folder`."""
    stream: trio.abc.Stream
    if over_socket:
        stream = await connect_unix(folder / "socket")
    else:
        channel = await shm.connect(folder, CLIENT_DOMAIN, SERVER_DOMAIN, shm.CONTROL_PORT)
        stream = VchanStream(channel)
    peer = Peer(stream, program="bench-client", handlers={}, frames_per_second=NO_LIMIT)
    async with trio.open_nursery() as nursery:
        await nursery.start(peer.run)
        yield peer
        nursery.cancel_scope.cancel()


async def drive(
    peer: Peer, in_flight: int, calls: int, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Seconds of `clock` per call, `in_flight` at a time, after a tenth as many to warm up."""

    async def caller(count: int) -> None:
        for _ in range(count):
            await peer.call("echo", {"data": PAYLOAD}, timeout=10)

    each = max(1, calls // in_flight)
    start = 0.0
    for count in (max(1, each // 10), each):
        start = clock()
        async with trio.open_nursery() as nursery:
            for _ in range(in_flight):
                nursery.start_soon(caller, count)
    return (clock() - start) / (each * in_flight)


def processor_seconds_per_call(in_flight: int, calls: int) -> float:
    """Processor time of a call through the whole stack, both ends together."""

    async def client(folder: Path, server: int) -> float:
        async with connected(folder) as peer:
            return await drive(
                peer, in_flight, calls, lambda: time.process_time() + processor_seconds(server)
            )

    with served() as (folder, server):
        return trio.run(client, folder, server, strict_exception_groups=True)


def seconds_per_call(in_flight: int, calls: int, *, over_socket: bool = False) -> float:
    """One measurement of the whole stack: a fresh pair of processes."""

    async def client(folder: Path) -> float:
        async with connected(folder, over_socket=over_socket) as peer:
            if in_flight > 1:
                return await drive(peer, in_flight, calls)
            for _ in range(calls // 10):
                await peer.call("echo", {"data": PAYLOAD}, timeout=10)
            start = trio.current_time()
            for _ in range(calls):
                await peer.call("echo", {"data": PAYLOAD}, timeout=10)
            return (trio.current_time() - start) / calls

    with served(over_socket=over_socket) as (folder, _):
        return trio.run(client, folder, strict_exception_groups=True)


@contextmanager
def served(*, over_socket: bool = False) -> Iterator[tuple[Path, int]]:
    """A folder with a forked server in it, and its pid; waits for the server's end."""
    with rendezvous_folder() as name:
        folder = Path(name)
        pid = fork_server(folder, over_socket=over_socket)
        try:
            yield folder, pid
        finally:
            os.waitpid(pid, 0)


def rendezvous_folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="pedos-bench-")
