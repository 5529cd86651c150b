"""A pump alone has the socket that it pumps, so that this ends with the process in any case."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio
from pedos_vchan import running, shm
from pedos_vchan.pump import Why, pump
from pedos_vchan.stream import VchanStream

from tests.patience import PATIENCE

from .hanging_fuse import HangingFuse
from .test_stream import receive_exactly

if TYPE_CHECKING:
    from .conftest import Pairs

PUMPING = Path(__file__).with_name("pumping.py")
# Short, but more than a busy machine holds up an event loop.
HANG_SECONDS = "3"
# Above all that a test has open, which is below some of what the pump needs otherwise.
HIGH = 400


@pytest.fixture
def hanging(tmp_path: Path) -> Iterator[HangingFuse]:
    point = tmp_path / "hanging"
    point.mkdir()
    try:
        mounted = HangingFuse(point)
    except OSError as error:
        pytest.skip(f"a file system that hangs cannot be mounted here: {error}")
    with contextlib.closing(mounted):
        yield mounted


def names_in(folder: str) -> list[str]:
    """What the descriptors of a table are."""
    names = []
    for each in os.listdir(folder):
        with contextlib.suppress(FileNotFoundError):  # it was that of the listing
            names.append(os.readlink(f"{folder}/{each}"))
    return names


@pytest.mark.parametrize("lowest", [3, HIGH])
async def test_meanwhile_nobody_else_has_the_socket_which_is_back_then(
    pairs: Pairs, lowest: int
) -> None:
    one, two = await pairs.channels()
    program, pumped = socket.socketpair()
    stream = VchanStream(two)
    number = fcntl.fcntl(pumped, fcntl.F_DUPFD_CLOEXEC, lowest)
    pumped.close()
    pumped = socket.socket(fileno=number)
    name = os.readlink(f"/proc/self/fd/{number}")
    with program, pumped, trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            ended = []

            async def run() -> None:
                ended.append((await pump(one, number, number, alone=True)).why)

            nursery.start_soon(run)
            program.send(b"to the ring")
            assert await receive_exactly(stream, 11) == b"to the ring"
            assert name not in names_in("/proc/self/fd")
            tables = [
                names_in(f"/proc/self/task/{each}/fd") for each in os.listdir("/proc/self/task")
            ]
            (alone,) = [table for table in tables if name in table]
            assert alone.count(name) == 1
            assert len(alone) <= 3 + 7, "the standard streams, and what a pump needs"
            await stream.aclose()
        assert ended == [Why.PEER_CLOSED]
        assert os.readlink(f"/proc/self/fd/{number}") == name
        pumped.send(b"it goes on")
        assert program.recv(99) == b"it goes on"


def start(*command: str | Path, end: socket.socket) -> subprocess.Popen[bytes]:
    environment = os.environ | {running.HANG_VARIABLE: HANG_SECONDS}
    return subprocess.Popen(
        [sys.executable, *command],
        pass_fds=[end.fileno()],
        stderr=subprocess.PIPE,
        env=environment,
    )


@asynccontextmanager
async def pumping(
    directory: Path, file: Path, *before: str | Path
) -> AsyncIterator[tuple[socket.socket, VchanStream, subprocess.Popen[bytes]]]:
    """A process that pumps between these two, and looks at a file; `before` is the program that
    starts it."""
    listener = await shm.listen(directory, 7, 3, 5)
    program, pumped = socket.socketpair()
    with trio.fail_after(PATIENCE), program:
        with pumped:
            command = [*before, PUMPING, directory, str(pumped.fileno()), file]
            process = start(*command, end=pumped)
        with process:
            try:
                stream = VchanStream(await listener.accept())
                yield program, stream, process
                await stream.aclose()
            finally:
                listener.close()
                process.kill()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGABRT], ids=["killed", "hangs"])
async def test_it_is_closed_when_the_process_ends_while_a_thread_waits_in_the_kernel(
    tmp_path: Path, hanging: HangingFuse, number: signal.Signals
) -> None:
    """It is killed, or its event loop hangs, so that it ends itself."""
    async with pumping(tmp_path, hanging.point / "file") as (program, stream, process):
        program.send(b"x")
        assert await receive_exactly(stream, 1) == b"x"
        await trio.to_thread.run_sync(hanging.wait_until_asked)
        process.send_signal(number if number == signal.SIGKILL else signal.SIGUSR1)
        await trio.lowlevel.wait_readable(program)
        assert program.recv(1) == b""
        assert process.poll() is None, "that thread does not hang"
        hanging.answer()
        assert await trio.to_thread.run_sync(process.wait) == -number


# Refuses one system call with EPERM, as seccomp(2) of a container may; the numbers are the same on
# all of Linux's machines.
REFUSING = """
import ctypes, runpy, struct, sys

number = int(sys.argv.pop(1))
load, jump, give = 0x20, 0x15, 0x06
steps = [(load, 0, 0, 0), (jump, 0, 1, number), (give, 0, 0, 0x00050001), (give, 0, 0, 0x7FFF0000)]
code = b"".join(struct.pack("=HBBI", *step) for step in steps)
code = ctypes.create_string_buffer(code)
program = struct.pack("@HP", len(steps), ctypes.addressof(code))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, program, 0, 0) == 0
sys.argv.pop(0)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize(
    "refused",
    [
        pytest.param(436, id="close_range"),
        pytest.param(434, id="pidfd_open"),
        pytest.param(438, id="pidfd_getfd"),
    ],
)
async def test_where_that_is_not_allowed_it_pumps_all_the_same(
    tmp_path: Path, refused: int
) -> None:
    script = tmp_path / "refusing.py"
    script.write_text(REFUSING)
    async with pumping(tmp_path, Path("/"), script, str(refused)) as (program, stream, process):
        program.send(b"there")
        assert await receive_exactly(stream, 5) == b"there"
        await stream.send_all(b"back")
        await trio.lowlevel.wait_readable(program)
        assert program.recv(9) == b"back"
        await stream.aclose()
        assert process.stderr is not None
        said = await trio.to_thread.run_sync(process.stderr.read)
    assert said.startswith(
        b"an agent that is killed may wait for a disk that it has borrowed: Opera"
    )
