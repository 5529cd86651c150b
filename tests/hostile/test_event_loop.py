"""No peer holds our event loop, makes it spin, or fills its memory."""

from __future__ import annotations

import contextlib
import functools
import gc
import socket
import subprocess
import time
import tracemalloc
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from pedos_host.plain_unix import short_path
from pedos_protocol.connection import PENDING_MAX, VERSIONS, Connection
from pedos_protocol.errors import RemoteProtocolError
from pedos_protocol.events import Hello, Notice, Request
from pedos_vchan import shm
from pedos_vchan.peer import Peer
from pedos_vchan.quota import FRAMES_BURST
from pedos_vchan.stream import VchanStream
from trio.abc import Clock

from tests.longest_step import LongestStep, more_than_once
from tests.patience import PATIENCE
from tests.yardstick import slowness

from . import build

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

pytestmark = pytest.mark.alone

SERVER, CLIENT, PORT = 7, 3, 5
NOTICED_MAX = 1.0  # s until an end must show
MIB = 1 << 20


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build.peer(tmp_path_factory.mktemp("hostile"))


@pytest.fixture
def longest_step() -> Iterator[LongestStep]:
    """In force while the test runs; the collector of the tests' own garbage is not."""
    gc.disable()
    yield LongestStep()
    gc.enable()


@asynccontextmanager
async def attacked(
    directory: Path, program: Path, job: str, number: int = 1
) -> AsyncIterator[VchanStream]:
    """A stream whose peer is the malicious process."""
    listener = await shm.listen(directory, SERVER, CLIENT, PORT)
    with socket.socket(socket.AF_UNIX) as connection:
        with short_path(directory / f"{SERVER}-{CLIENT}-{PORT}.sock") as short:
            connection.connect(short)
        fd = connection.fileno()
        command = [program, str(fd), job, str(number)]
        process = subprocess.Popen(command, pass_fds=[fd])  # noqa: ASYNC220 (it blocks for a moment)
    try:
        with trio.fail_after(PATIENCE):
            stream = VchanStream(await listener.accept())
            yield stream
            await stream.aclose()
    finally:
        listener.close()
        process.kill()
        process.wait()


async def receive_all(stream: VchanStream, most: int) -> int:
    got = 0
    while got < most and (part := await stream.receive_some()):
        got += len(part)
    return got


@more_than_once
async def test_sending_to_a_peer_that_always_makes_room_lets_others_run(
    tmp_path: Path, program: Path, longest_step: LongestStep
) -> None:
    data = bytes(64 * MIB)
    async with attacked(tmp_path, program, "liar") as stream:
        await longest_step.begin()
        with contextlib.suppress(trio.BrokenResourceError):  # its events may become a flood
            await stream.send_all(data)
        await longest_step.end()
    longest_step.check()


@more_than_once
async def test_room_that_never_ends_does_not_hold_the_loop(
    tmp_path: Path, longest_step: LongestStep, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same without a second processor: the peer reads whenever we have written."""
    listener = await shm.listen(tmp_path, SERVER, CLIENT, PORT)
    ends: list[VchanStream] = []

    async def accept() -> None:
        ends.append(VchanStream(await listener.accept()))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(accept)
        client = VchanStream(await shm.connect(tmp_path, CLIENT, SERVER, PORT))
    from pedos_vchan import stream as module

    class Reads:
        """The library, with a peer that reads at once."""

        def __getattr__(self, name: str) -> object:
            return getattr(library, name)

        def pv_channel_send(self, native: object, data: object, count: int) -> int:
            sent: int = library.pv_channel_send(native, data, count)
            theirs = client._channel.native()
            while (got := library.pv_channel_peek(theirs, MIB, span)) > 0:
                library.pv_channel_consume(theirs, got)
            return sent

    library, span = module.lib, module.ffi.new("uint8_t **")
    with monkeypatch.context() as reading:  # a second try is to find the library as it is
        reading.setattr(module, "lib", Reads())
        await longest_step.begin()
        await ends[0].send_all(bytes(256 * MIB))
        await longest_step.end()
    await client.aclose()
    await ends[0].aclose()
    longest_step.check()


@more_than_once
async def test_receiving_without_end_lets_others_run_and_keeps_no_memory(
    tmp_path: Path, program: Path, longest_step: LongestStep
) -> None:
    async with attacked(tmp_path, program, "liar") as stream:
        await longest_step.begin()
        with contextlib.suppress(trio.BrokenResourceError):
            await receive_all(stream, 64 * MIB)
        await longest_step.end()
        tracemalloc.start()
        with contextlib.suppress(trio.BrokenResourceError):
            await receive_all(stream, 8 * MIB)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    longest_step.check()
    assert peak < MIB


@more_than_once
async def test_an_event_flood_breaks_the_stream_before_it_costs_much(
    tmp_path: Path, program: Path, longest_step: LongestStep
) -> None:
    async with attacked(tmp_path, program, "flood") as stream:
        await longest_step.begin()
        before = time.thread_time()
        error = ""
        with trio.move_on_after(NOTICED_MAX) as scope:
            try:
                await stream.receive_some()
            except trio.BrokenResourceError as broken:
                error = str(broken)
        spent = time.thread_time() - before
        await longest_step.end()
    # On one processor the flood may be too slow to be one, and then it costs as little.
    assert "flood" in error or scope.cancelled_caught
    assert spent < 0.5 * slowness()
    longest_step.check()


@pytest.mark.parametrize("number", range(6))
@more_than_once
async def test_a_scribbled_page_ends_both_directions_within_a_second(
    tmp_path: Path, program: Path, longest_step: LongestStep, number: int
) -> None:
    async with attacked(tmp_path, program, "scribble", number) as stream:
        ends = []

        async def send() -> None:
            with pytest.raises(trio.BrokenResourceError):
                while True:
                    await stream.send_all(bytes(9999))
            ends.append("send")

        async def receive() -> None:
            with contextlib.suppress(trio.BrokenResourceError):
                await receive_all(stream, 1 << 62)
            ends.append("receive")

        await longest_step.begin()
        with trio.fail_after(NOTICED_MAX):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send)
                nursery.start_soon(receive)
        await longest_step.end()
    assert sorted(ends) == ["receive", "send"]
    longest_step.check()


@pytest.mark.parametrize(
    "event", [Notice("x.y", {}), Request(1, "x.y", {}, 1000)], ids=["notices", "requests"]
)
@more_than_once
async def test_a_ring_full_of_short_frames_does_not_hold_the_loop(
    longest_step: LongestStep, event: Notice | Request
) -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    counted = []

    async def count(_: Peer, params: object) -> None:
        counted.append(params)

    attacker = Connection()
    hello = attacker.send(Hello(VERSIONS, "hostile"))
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            peer = Peer(ours, program="test", handlers={"x.y": count})
            await theirs.send_all(hello)
            await nursery.start(peer.run)
            attacker.receive_data(bytes(await theirs.receive_some()))
            attacker.next_event()
            frame = attacker.send(event)
            if isinstance(event, Notice):
                frames = frame * (65536 // len(frame))
            else:  # as many as may be in flight
                more = (Request(i, "x.y", {}, 1000) for i in range(2, PENDING_MAX + 1))
                frames = frame + b"".join(map(attacker.send, more))
            await trio.testing.wait_all_tasks_blocked()
            await longest_step.begin()
            await theirs.send_all(frames)
            await trio.testing.wait_all_tasks_blocked()
            await longest_step.end()
            peer.close()
    assert len(counted) >= PENDING_MAX
    longest_step.check()


@pytest.mark.parametrize(
    "event",
    [Notice("x.y", {"text": "once"}), Request(1, "x.y", {"text": "once"}, 1000)],
    ids=["notice", "request"],
)
async def test_nothing_of_a_frame_is_kept_while_its_peer_says_no_more(
    event: Notice | Request,
) -> None:
    """A frame of 64 KiB is far more when it is read, and there is a peer for each VM."""
    ours, theirs = trio.testing.memory_stream_pair()
    served = []

    async def serve(_: Peer, params: dict[str, object]) -> None:
        served.append(len(params))

    attacker = Connection()
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            peer = Peer(ours, program="test", handlers={"x.y": serve})
            await theirs.send_all(attacker.send(Hello(VERSIONS, "hostile")))
            await nursery.start(peer.run)
            await theirs.send_all(attacker.send(event))
            await trio.testing.wait_all_tasks_blocked()
            gc.collect()
            kept = [
                held
                for held in gc.get_objects()
                if type(held) is type(event) and held == event and held is not event
            ]
            peer.close()
    assert served == [1]
    assert kept == []


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(b"\xdc\x00\x3c" + (b"\xdc\x03\xe8" + b"\x90" * 1000) * 60, id="lists"),
        pytest.param(b"\xdc\x00\x3c" + (b"\xdc\x03\xe8" + b"\x80" * 1000) * 60, id="maps"),
        pytest.param(b"\xdc\x00\x3c" + (b"\xdc\x03\xe8" + b"\x01" * 1000) * 60, id="numbers"),
    ],
)
@more_than_once
async def test_a_frame_of_very_many_values_does_not_hold_the_loop(
    longest_step: LongestStep, payload: bytes
) -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    hello = Connection().send(Hello(VERSIONS, "hostile"))
    ended = trio.Event()

    async def run(peer: Peer, *, task_status: trio.TaskStatus[None]) -> None:
        with pytest.raises(RemoteProtocolError):
            await peer.run(task_status=task_status)
        ended.set()

    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            peer = Peer(ours, program="test", handlers={})
            await theirs.send_all(hello)
            await nursery.start(functools.partial(run, peer))
            await trio.testing.wait_all_tasks_blocked()
            await longest_step.begin()
            await theirs.send_all(len(payload).to_bytes(4, "little") + payload)
            await ended.wait()
            await longest_step.end()
    longest_step.check()


async def test_a_frame_that_comes_byte_by_byte_is_a_flood(mock_clock: Clock) -> None:
    """In no time: what a slow machine drips is slow enough to be none."""
    ours, theirs = trio.testing.memory_stream_pair()
    attacker = Connection()
    frame = attacker.send(Hello(VERSIONS, "hostile"))
    attacker.receive_data(frame)
    attacker.next_event()
    long = attacker.send(Notice("x.y", {"text": "x" * 60000}))
    sent = 0

    async def drip() -> None:
        nonlocal sent
        for byte in long:
            await theirs.send_all(bytes([byte]))
            await trio.testing.wait_all_tasks_blocked()
            sent += 1

    async with trio.open_nursery() as nursery:
        peer = Peer(ours, program="test", handlers={})
        await theirs.send_all(frame)
        await nursery.start(_expect_flood, peer)
        with contextlib.suppress(trio.BrokenResourceError):
            await drip()
    assert FRAMES_BURST - 100 < sent < len(long)


async def _expect_flood(
    peer: Peer, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    with pytest.raises(RemoteProtocolError, match="flood"):
        await peer.run(task_status=task_status)
