"""R6, R7 and R8: what a running call costs its streams, on one core.

A call is carried by two processes, one for each agent, between programs in C that know nothing of
it (call_ends.c). R6 sends 64 bytes to and fro, against the same two programs on a Unix socket. R7
moves a file through a service's stdin into a file, against splice(2) from file to file by way of a
pipe, and against the raw pump in the place of the call's. R8 reads what a service writes to stdout
for as long as one likes, with a stderr that nobody reads and is full, against one that is empty.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Literal, NamedTuple

import trio
from pedos_vchan import shm
from pedos_vchan.call_pump import CallPump
from pedos_vchan.pump import pump

from .bulk import PIECE, SIZE, c_seconds, two_files
from .processes import compiled, guarded, output_of, pinned
from .row import Row, medians_in_turn
from .two_processes import CLIENT_DOMAIN, SERVER_DOMAIN, fork, rendezvous_folder

CALL = bytes(16)
PORT = 7
ORDER = 17  # of a call's rings: 128 KiB
TRIPS = 10_000
SPELL = 300  # milliseconds that stdout is read
PIPE = 1 << 20  # what a program that copies files makes its pipes hold, and what splice gets

Carrier = Literal["call", "raw"]


class Ends(NamedTuple):
    """Descriptors that the programs have: the caller writes stdin, and reads the others."""

    stdin: int
    stdout: int
    stderr: int
    service_stdin: int
    service_stdout: int
    service_stderr: int


def _pipe() -> tuple[int, int]:
    read, write = os.pipe()
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, PIPE)
    return read, write


def _socketpair() -> tuple[int, int]:
    one, two = socket.socketpair()
    return one.detach(), two.detach()


async def _carry(
    carrier: Carrier,
    side: Literal["caller", "service"],
    channel: shm.Channel,
    fds: tuple[int, int, int],
) -> None:
    if carrier == "call":
        await CallPump(channel, side, CALL).run(*fds)
    elif side == "caller":
        await pump(channel, fds[0], fds[1])
    else:
        await pump(channel, fds[1], fds[0])


@contextmanager
def carried(carrier: Carrier, make: Callable[[], tuple[int, int]]) -> Iterator[Ends]:
    """A running call; `make` makes the caller's ends. A service has sockets, and a pipe for stderr.

    Ends in neither process are closed in time for an end of file: what runs here needs none.
    """
    with rendezvous_folder() as folder, ExitStack() as stack:
        pairs = [make(), make(), make(), _socketpair(), _socketpair(), _pipe()]
        for fd in [fd for pair in pairs for fd in pair]:
            stack.callback(os.close, fd)
        read, write = zip(*pairs, strict=True)

        async def caller(ready: Callable[[], None]) -> None:
            listener = await shm.listen(
                folder, SERVER_DOMAIN, CLIENT_DOMAIN, PORT, order_left=ORDER, order_right=ORDER
            )
            ready()
            fds = (read[0], write[1], write[2])
            await _carry(carrier, "caller", await listener.accept(), fds)

        async def service(ready: Callable[[], None]) -> None:
            channel = await shm.connect(folder, CLIENT_DOMAIN, SERVER_DOMAIN, PORT)
            ready()
            await _carry(carrier, "service", channel, (write[3], read[4], read[5]))

        for side in (caller, service):
            pid = fork(lambda ready, side=side: trio.run(side, ready))  # type: ignore[misc]
            stack.callback(os.waitpid, pid, 0)
            stack.callback(os.kill, pid, signal.SIGKILL)
        yield Ends(write[0], read[1], read[2], read[3], write[4], write[5])


@contextmanager
def running(program: Path, *words: object, fds: tuple[int, ...]) -> Iterator[None]:
    """The program, until the end of the block."""
    with subprocess.Popen(guarded([program, *map(str, words)]), pass_fds=fds) as process:
        try:
            yield
        finally:
            process.kill()


def _measured(program: Path, *words: object, fds: tuple[int, ...]) -> int:
    return int(output_of([program, *map(str, words)], pass_fds=fds))


def call_trip(program: Path) -> float:
    """Seconds per round trip in an open call."""
    with carried("call", _socketpair) as ends:
        service = (ends.service_stdin, ends.service_stdout)
        with running(program, "echo", *service, fds=service):
            fds = (ends.stdout, ends.stdin)
            return _measured(program, "trips", *fds, TRIPS, fds=fds) / 1e9


def socket_trip(program: Path) -> float:
    """The same between the two programs alone."""
    one, two = socket.socketpair()
    with one, two:
        here, there = one.fileno(), two.fileno()
        with running(program, "echo", there, there, fds=(there,)):
            return _measured(program, "trips", here, here, TRIPS, fds=(here,)) / 1e9


def file_seconds(program: Path, carrier: Carrier, source: int, target: int) -> float:
    """The time that a file takes into a service that writes it to a file."""
    for fd in (source, target):
        os.lseek(fd, 0, os.SEEK_SET)
    with carried(carrier, _pipe) as ends:
        words = ("send", source, ends.stdin, SIZE)
        with running(program, *words, fds=(source, ends.stdin)):
            fds = (ends.service_stdin, target)
            return _measured(program, "take", *fds, SIZE, fds=fds) / 1e9


def stdout_speed(program: Path, *, blocks_stderr: bool) -> float:
    """Bytes a second from a service's stdout."""
    with carried("call", _pipe) as ends:
        if blocks_stderr:
            os.set_blocking(ends.service_stderr, False)
            _fill(ends.service_stderr)
        with running(program, "zeros", ends.service_stdout, fds=(ends.service_stdout,)):
            count = _measured(program, "gulp", ends.stdout, SPELL, fds=(ends.stdout,))
        return count / (SPELL / 1e3)


def _fill(fd: int) -> None:
    """Writes until nobody takes more: the pipes at both ends, and the credit."""
    idle = 0
    while idle < 50:
        try:
            os.write(fd, bytes(PIECE))
            idle = 0
        except BlockingIOError:
            idle += 1
            with suppress(InterruptedError):
                os.sched_yield()


def measure() -> list[Row]:
    with (
        compiled("call_ends.c") as program,
        compiled("file_to_file.c") as splicer,
        pinned() as core,
        two_files() as files,
    ):
        medians = medians_in_turn(
            {
                "call_trip": lambda: call_trip(program),
                "socket_trip": lambda: socket_trip(program),
                "call": lambda: SIZE / file_seconds(program, "call", *files),
                "raw_pump": lambda: SIZE / file_seconds(program, "raw", *files),
                "splice": lambda: SIZE / c_seconds(splicer, "splice", *files, core),
                "stdout_alone": lambda: stdout_speed(program, blocks_stderr=False),
                "stdout_beside_stderr": lambda: stdout_speed(program, blocks_stderr=True),
            }
        )
    trips = {f"{name}_us": medians[name] * 1e6 for name in ("call_trip", "socket_trip")}
    files_ = {f"{name}_mb_per_s": medians[name] / 1e6 for name in ("call", "raw_pump", "splice")}
    both = ("stdout_alone", "stdout_beside_stderr")
    outputs = {f"{name}_mb_per_s": medians[name] / 1e6 for name in both}
    trip = medians["call_trip"] / medians["socket_trip"]
    return [
        Row("R6", "64 bytes to and fro in a call, against a Unix socket", trip, 4.5, "x", trips),
        *(
            Row("R7", what, medians["call"] / medians[peer], limit, "x", files_, at_least=True)
            for what, peer, limit in (
                ("file to service to file, against splice", "splice", 0.6),
                ("file to service to file, against the raw pump", "raw_pump", 0.95),
            )
        ),
        Row(
            "R8",
            "stdout of a call while its stderr is blocked, against not",
            medians["stdout_beside_stderr"] / medians["stdout_alone"],
            0.95,
            "x",
            outputs,
            at_least=True,
        ),
    ]
