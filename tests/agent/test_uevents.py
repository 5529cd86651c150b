"""Which of the kernel's events make discovery look again."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from functools import partial

import pytest
import trio
import trio.testing
from pedos_agent.system import uevents
from pedos_agent.system.uevents import heard

from tests.patience import PATIENCE

# As the kernel sends it, and as udev does: with a header that is not text.
UNPLUGGED = b"remove@/devices/x/block/sda\0ACTION=remove\0SUBSYSTEM=block\0SEQNUM=7\0"
KNOWN = b"libudev\0\xfe\xed\xca\xfe\0\0\0\x28SUBSYSTEM=block\0DEVNAME=/dev/sda\0"
CUT_OFF = b"x" * 9000
BACKEND = b"add@/devices/vbd-2-51840\0ACTION=add\0SUBSYSTEM=xen-backend\0"
BACKEND_KNOWN = b"libudev\0\xfe\xed\xca\xfe\0\0\0\x28SUBSYSTEM=xen-backend\0"
OTHERS = [
    b"add@/devices/vbd-1\0ACTION=add\0SUBSYSTEM=xen\0",
    b"add@/block/sda\0ACTION=add\0SUBSYSTEM=blocks\0",
    b"",
]


@pytest.fixture
async def kernel(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[socket.socket, ...]]:
    """Where the events are sent to, and the socket on which they are heard."""
    monkeypatch.setattr(uevents, "SETTLE_SECONDS", 0)
    sends, hears = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    hears.setblocking(False)
    with sends, hears:
        yield sends, hears


@pytest.mark.parametrize("event", [UNPLUGGED, KNOWN, CUT_OFF])
async def test_a_look_is_due_after_an_event_of_the_subsystem(
    kernel: tuple[socket.socket, socket.socket], event: bytes
) -> None:
    sends, hears = kernel
    for other in (event, *OTHERS):
        sends.send(other)
    with trio.fail_after(PATIENCE):
        await heard(hears, ["net", "block"])
    with pytest.raises(BlockingIOError):
        hears.recv(1)  # a burst is one


async def test_other_events_are_passed_over(kernel: tuple[socket.socket, socket.socket]) -> None:
    sends, hears = kernel
    async with trio.open_nursery() as nursery:
        nursery.start_soon(heard, hears, ["block"])
        for other in OTHERS:
            sends.send(other)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert nursery.child_tasks
        sends.send(UNPLUGGED)


async def test_of_some_subsystems_only_the_kernels_events_count(
    kernel: tuple[socket.socket, socket.socket],
) -> None:
    sends, hears = kernel
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(heard, hears, ["block"], of_kernel=["xen-backend"]))
        sends.send(BACKEND_KNOWN)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert nursery.child_tasks
        sends.send(BACKEND)


class Overflown:
    """A socket whose queue was full: the kernel says so once."""

    def __init__(self) -> None:
        self._answers = iter([OSError("no buffer space"), BlockingIOError()])

    def recv(self, _size: int) -> bytes:
        raise next(self._answers)


def test_what_was_lost_may_have_been_one() -> None:
    wanted = [b"SUBSYSTEM=block\0"]
    assert uevents._drain(Overflown(), wanted, wanted)  # type: ignore[arg-type]
