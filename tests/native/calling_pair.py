"""Both ends of a call in one process, with the ends of all pipes and sockets in hand."""

from __future__ import annotations

import ctypes
import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Literal

import pytest
import trio
from pedos_vchan.call_pump import CallEnd, CallPump, Event

from tests.patience import PATIENCE

if TYPE_CHECKING:
    from pedos_vchan.channel import Channel

    from .conftest import Pairs

CALL = b"0123456789abcdef"
PIECE = 1 << 20
ORDER = 17  # of a call's rings

each_kind = pytest.mark.parametrize("kind", ["sockets", "pipes", "foreign"])

#: "foreign": pipes that this process may not open anew, as they are another user's.
Plumbing = Literal["sockets", "pipes", "foreign"]

_CAPABILITIES_3 = 0x20080522
_OVERRIDES = 1 << 1 | 1 << 2  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def without_overrides() -> Iterator[None]:
    """This thread obeys the modes of files, as an agent does, also when root runs it."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITIES_3, 0)
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; and their upper halves
    assert _libc.capget(header, sets) == 0
    before = sets[0]
    sets[0] = before & ~_OVERRIDES
    assert _libc.capset(header, sets) == 0
    try:
        yield
    finally:
        sets[0] = before
        assert _libc.capset(header, sets) == 0


@pytest.fixture
def modest() -> Iterator[None]:
    """The test obeys the modes of files."""
    with without_overrides():
        yield


async def channels(pairs: Pairs, order: int = ORDER) -> tuple[Channel, Channel]:
    """The caller's, which is the server, and the service's."""
    return await pairs.channels(order, order)


def plumb(kind: Plumbing) -> tuple[int, int]:
    """A stream's reading and writing end."""
    if kind != "sockets":
        read, write = os.pipe2(os.O_CLOEXEC)
        os.fchmod(read, 0 if kind == "foreign" else 0o600)
        return read, write
    one, two = socket.socketpair()
    one.shutdown(socket.SHUT_WR)
    return one.detach(), two.detach()


class Ends:
    """What programs hold: the caller writes `stdin` and reads the others; the service has the same
    names for its own ends. Each is non-blocking, in a description that the pumps do not share."""

    def __init__(self, kind: Plumbing) -> None:
        read, write = zip(*(plumb(kind) for _ in range(6)), strict=True)
        # of the caller's stdin, of the service's stdin, of stdout and stderr likewise
        self.for_caller = (read[0], write[1], write[2])
        self.for_service = (write[3], read[4], read[5])
        self.stdin, self.stdout, self.stderr = write[0], read[1], read[2]
        self.service_stdin, self.service_stdout, self.service_stderr = read[3], write[4], write[5]
        self.open = {
            self.stdin,
            self.stdout,
            self.stderr,
            self.service_stdin,
            self.service_stdout,
            self.service_stderr,
        }
        for fd in self.open:
            os.set_blocking(fd, False)

    def close(self, *fds: int) -> None:
        """Those, or all that are left."""
        for fd in fds or tuple(self.open):
            self.open.discard(fd)
            os.close(fd)


class Call:
    """A running call. `events` are those of both sides, in their order."""

    def __init__(
        self,
        nursery: trio.Nursery,
        channels: tuple[Channel, Channel],
        kind: Plumbing = "sockets",
        call: bytes = CALL,
    ) -> None:
        self.events: list[tuple[str, Event]] = []
        self.news = trio.Event()
        self.ends = Ends(kind)
        self.caller = CallPump(channels[0], "caller", call, self._listener("caller"))
        self.service = CallPump(channels[1], "service", call, self._listener("service"))
        self.results: dict[str, CallEnd] = {}
        self._over = trio.Event()
        nursery.start_soon(self._run, "caller", self.caller, self.ends.for_caller)
        nursery.start_soon(self._run, "service", self.service, self.ends.for_service)

    def _listener(self, side: str) -> Callable[[Event], None]:
        def listen(event: Event) -> None:
            self.events.append((side, event))
            self.news.set()
            self.news = trio.Event()

        return listen

    async def _run(self, side: str, pump: CallPump, fds: tuple[int, int, int]) -> None:
        self.results[side] = await pump.run(*fds)
        if len(self.results) == 2:
            self._over.set()

    async def told(self, side: str, event: Event) -> None:
        """Waits until this was told."""
        while (side, event) not in self.events:
            await self.news.wait()

    async def over(self) -> tuple[CallEnd, CallEnd]:
        """The ends of the caller's and of the service's side."""
        await self._over.wait()
        self.ends.close()
        return self.results["caller"], self.results["service"]


async def read(fd: int, count: int) -> bytes:
    """So many bytes, or all until the end of the file."""
    got = bytearray()
    while len(got) < count:
        try:
            part = os.read(fd, min(count - len(got), PIECE))
        except BlockingIOError:
            await trio.lowlevel.wait_readable(fd)
            continue
        if not part:
            break
        got += part
    return bytes(got)


async def fill(fd: int) -> int:
    """Writes until nothing more is taken for good; how many bytes."""
    written = 0
    with trio.move_on_after(PATIENCE):
        while True:
            with trio.move_on_after(0.1) as waited:
                await trio.lowlevel.wait_writable(fd)
            if waited.cancelled_caught:
                return written
            written += os.write(fd, bytes(4096))
    raise AssertionError("it takes bytes without end")


async def read_all(fd: int) -> bytes:
    return await read(fd, sys.maxsize)


async def write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            await trio.lowlevel.wait_writable(fd)


async def is_closed(fd: int) -> None:
    """Waits until writing to it fails, because nobody reads."""
    with suppress(BrokenPipeError):
        while True:
            await write(fd, b"more")
            await trio.lowlevel.checkpoint()
