"""B1 and B2: bulk transfer from one process to another, on one core.

Ours goes through the pump, hosted in Python as in the agent. B1 copies a file into another file,
against splice(2) and against read and write over a pipe in C, with pipes as large as the ring. B2
moves an endless source into a sink, against trio's SocketStream: with files at the ends, their
copies would take most of the time. The files are in memory and stay there.
"""

from __future__ import annotations

import math
import os
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import trio
from pedos_vchan import shm
from pedos_vchan.pump import pump
from pedos_vchan.stream import VchanStream

from .processes import compiled, output_of, pinned
from .row import Row, medians_in_turn
from .two_processes import CLIENT_DOMAIN, SERVER_DOMAIN, Child, rendezvous_folder

SIZE = 512 * 1024 * 1024
PIECE = 1024 * 1024
SPELL = 0.3  # seconds that an endless source is read
CHUNK = 65536  # what a program over a stream reads and writes at a time
PORT = 7
ZEROS = "/dev/zero"

Ready = Callable[[], None]
Send = Callable[[shm.Channel], Awaitable[None]]
Receive = Callable[[shm.Channel], Awaitable[float]]


@contextmanager
def two_files() -> Iterator[tuple[int, int]]:
    """Two files of SIZE bytes in memory, with all their pages allocated."""
    source, target = (os.memfd_create(name) for name in ("source", "target"))
    try:
        piece = os.urandom(PIECE)
        for fd in (source, target):
            for _ in range(SIZE // PIECE):
                os.write(fd, piece)
        yield source, target
    finally:
        os.close(source)
        os.close(target)


@contextmanager
def _opened(file: int | str, flags: int) -> Iterator[int]:
    """A descriptor of the file, if it is not one already."""
    if isinstance(file, int):
        yield file
        return
    fd = os.open(file, flags)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def _silent_pipe() -> Iterator[int]:
    """A descriptor that never delivers anything."""
    readable, writable = os.pipe()
    try:
        yield readable
    finally:
        os.close(readable)
        os.close(writable)


def _rewind(*fds: int) -> None:
    for fd in fds:
        os.lseek(fd, 0, os.SEEK_SET)


def c_seconds(program: Path, mode: str, source: int, target: int, core: int) -> float:
    """The time that `mode` of file_to_file.c takes."""
    _rewind(source, target)
    words = [mode, source, target, core, core, 1 << shm.DATA_ORDER]
    return int(output_of([program, *map(str, words)], pass_fds=(source, target))) / 1e9


def _over_channel(send: Send, receive: Receive, order: int) -> tuple[float, float]:
    """Runs the two in processes of their own: the bytes that `receive` counted, and seconds."""
    with rendezvous_folder() as folder:

        async def server(ready: Ready) -> tuple[float, float]:
            listener = await shm.listen(
                folder, SERVER_DOMAIN, CLIENT_DOMAIN, PORT, order_left=order, order_right=order
            )
            ready()
            return await receive(await listener.accept()), time.perf_counter()

        async def client(ready: Ready) -> tuple[float]:
            channel = await shm.connect(folder, CLIENT_DOMAIN, SERVER_DOMAIN, PORT)
            ready()
            start = time.perf_counter()
            await send(channel)
            return (start,)

        receiver = Child(lambda ready: trio.run(server, ready))
        (start,) = Child(lambda ready: trio.run(client, ready)).result()
        count, end = receiver.result()
        return count, end - start


def _over_socket() -> tuple[float, float]:
    """The same with a SocketStream in Python, from the endless source to the sink."""
    ours, theirs = socket.socketpair()

    async def server(ready: Ready) -> tuple[float, float]:
        ours.close()
        ready()
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(theirs))
        return await _receive_all(stream), time.perf_counter()

    async def client(ready: Ready) -> tuple[float]:
        theirs.close()
        ready()
        start = time.perf_counter()
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
        await _send_zeros(stream)
        await stream.send_eof()  # the parent has the socket open, too
        return (start,)

    with ours, theirs:
        receiver = Child(lambda ready: trio.run(server, ready))
        (start,) = Child(lambda ready: trio.run(client, ready)).result()
        count, end = receiver.result()
    return count, end - start


async def _send_zeros(stream: trio.abc.SendStream) -> None:
    with _opened(ZEROS, os.O_RDONLY) as source, trio.move_on_after(SPELL):
        while True:
            await stream.send_all(os.read(source, CHUNK))


async def _receive_all(stream: trio.abc.ReceiveStream) -> int:
    count = 0
    with _opened(os.devnull, os.O_WRONLY) as sink:
        while piece := await stream.receive_some(CHUNK):
            count += os.write(sink, piece)
    return count


async def _pump_in(channel: shm.Channel, source: int | str, seconds: float = math.inf) -> None:
    """Pumps a file, from its descriptor or path, into the channel; to its end or for a time."""
    with (
        _opened(source, os.O_RDONLY) as fd_in,
        _opened(os.devnull, os.O_WRONLY) as fd_out,
        trio.move_on_after(seconds),
    ):
        await pump(channel, fd_in, fd_out)


async def _pump_out(channel: shm.Channel, target: int | str) -> int:
    """Pumps the channel to its end into a file; how many bytes."""
    with _silent_pipe() as fd_in, _opened(target, os.O_WRONLY) as fd_out:
        return (await pump(channel, fd_in, fd_out)).bytes_to_fd


def pump_seconds(source: int, target: int, order: int = shm.DATA_ORDER) -> float:
    """The time that a pump at each end of a channel with rings of 2^order bytes takes for the
    file."""
    _rewind(source, target)
    count, seconds = _over_channel(
        lambda channel: _pump_in(channel, source),
        lambda channel: _pump_out(channel, target),
        order,
    )
    if count != SIZE:
        raise RuntimeError(f"only {count} of {SIZE} bytes came")
    return seconds


def pump_speed(order: int = shm.DATA_ORDER) -> float:
    """Bytes per second from the endless source to the sink, with rings of 2^order bytes."""
    count, seconds = _over_channel(
        lambda channel: _pump_in(channel, ZEROS, SPELL),
        lambda channel: _pump_out(channel, os.devnull),
        order,
    )
    return count / seconds


def stream_speed() -> float:
    """The same through a VchanStream, written and read in Python."""

    async def send(channel: shm.Channel) -> None:
        async with VchanStream(channel) as stream:
            await _send_zeros(stream)

    count, seconds = _over_channel(
        send, lambda channel: _receive_all(VchanStream(channel)), shm.DATA_ORDER
    )
    return count / seconds


def socket_speed() -> float:
    """The same through trio's SocketStream."""
    count, seconds = _over_socket()
    return count / seconds


def measure() -> list[Row]:
    with compiled("file_to_file.c") as program, two_files() as files, pinned() as core:
        speeds = medians_in_turn(
            {
                "pump": lambda: SIZE / pump_seconds(*files),
                "splice": lambda: SIZE / c_seconds(program, "splice", *files, core),
                "c_pipe": lambda: SIZE / c_seconds(program, "pipe", *files, core),
                "pump_to_sink": pump_speed,
                "trio_socket_stream_to_sink": socket_speed,
                "vchan_stream_to_sink": stream_speed,
            }
        )
    detail = {f"{name}_mb_per_s": speed / 1e6 for name, speed in speeds.items()}
    file, sink = "file to file through the pump", "bulk through the pump"
    peer = "trio_socket_stream_to_sink"
    return [
        Row(gate, what, speeds[ours] / speeds[theirs], limit, "x", detail, at_least=True)
        for gate, what, ours, theirs, limit in (
            ("B1", f"{file}, against splice", "pump", "splice", 0.65),
            ("B1", f"{file}, against a C pipe", "pump", "c_pipe", 1.4),
            ("B2", f"{sink}, against trio's SocketStream", "pump_to_sink", peer, 8),
        )
    ]
