"""The pump moves every byte, ends when either side ends, and can be stopped."""

from __future__ import annotations

import errno
import os
import random
import select
import socket
import time
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from pedos_vchan._native import lib
from pedos_vchan.pump import PumpResult, Why, pump

from tests.patience import PATIENCE

from .closing import close_in_its_thread
from .receiving import receives
from .test_stream import receive_exactly

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pedos_vchan.channel import Channel

    from .conftest import Pairs

MIB = 1 << 20


class Files:
    """Descriptors that are closed after the test."""

    def __init__(self) -> None:
        self._held = ExitStack()

    def own(self, fd: int) -> int:
        self._held.callback(os.close, fd)
        return fd

    def open(self, path: str | Path, flags: int = os.O_RDWR) -> int:
        return self.own(os.open(path, flags | os.O_CLOEXEC, 0o600))

    def silent(self) -> int:
        """Readable some day, perhaps; never ends."""
        reading, writing = os.pipe2(os.O_CLOEXEC)
        self.own(writing)
        return self.own(reading)

    def close(self) -> None:
        self._held.close()


@pytest.fixture
def files() -> Iterator[Files]:
    made = Files()
    yield made
    made.close()


@pytest.fixture
def wires() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A program's socket and the end that is pumped."""
    program, pumped = socket.socketpair()
    with program, pumped:
        yield program, pumped


async def test_a_pump_whose_coroutine_is_closed_ends_before_its_ring_is_unmapped(
    pairs: Pairs, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = await pairs.channels()
    order = []

    class Noted:
        """The C functions of pump.py and channel.py; the thread is slower than its caller."""

        def __getattr__(self, name: str) -> Any:
            function = getattr(lib, name)

            def call(*arguments: Any) -> Any:
                result = function(*arguments)
                if name == "pv_pump_run":
                    time.sleep(0.05)
                order.append(name)
                return result

            return call

    monkeypatch.setattr("pedos_vchan.pump.lib", Noted())
    monkeypatch.setattr("pedos_vchan.channel.lib", Noted())
    await close_in_its_thread(pump(one, files.silent(), files.open("/dev/null")))
    assert one.closed
    assert order[-3:] == ["pv_pump_run", "pv_pump_done", "pv_channel_free"]
    two.close()
    result = await pump((await pairs.channels())[0], files.open("/dev/null"), files.silent())
    assert result.why is Why.INPUT_ENDED  # another one has its place, and the loop goes on


async def test_both_ways_at_once_every_byte_arrives(pairs: Pairs) -> None:
    """socket - pump - ring - pump - socket, with different data each way."""
    one, two = await pairs.channels(18, 14)
    data = [random.Random(seed).randbytes(3 * MIB + seed) for seed in (1, 2)]
    left, left_end = socket.socketpair()
    right, right_end = socket.socketpair()
    results: dict[str, PumpResult] = {}

    async def run(name: str, channel: Channel, end: socket.socket) -> None:
        results[name] = await pump(channel, end.fileno(), end.fileno())
        end.close()

    with trio.fail_after(PATIENCE):
        streams = [trio.SocketStream(trio.socket.from_stdlib_socket(end)) for end in (left, right)]
        async with trio.open_nursery() as pumps:
            pumps.start_soon(run, "left", one, left_end)
            pumps.start_soon(run, "right", two, right_end)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(streams[0].send_all, data[0])
                nursery.start_soon(streams[1].send_all, data[1])
                nursery.start_soon(receives, streams[1], data[0])
                nursery.start_soon(receives, streams[0], data[1])
            await streams[0].aclose()
            assert await streams[1].receive_some() == b""
            await streams[1].aclose()
    assert results == {
        "left": (len(data[0]), len(data[1]), Why.INPUT_ENDED, 0),
        "right": (len(data[1]), len(data[0]), Why.PEER_CLOSED, 0),
    }


async def test_a_file_goes_through_to_the_end(pairs: Pairs, files: Files, tmp_path: Path) -> None:
    one, two = await pairs.channels(18, 11)
    content = random.Random(5).randbytes(2 * MIB + 333)
    source, copy = tmp_path / "source", tmp_path / "copy"
    source.write_bytes(content)
    writing = files.open(copy, os.O_RDWR | os.O_CREAT)
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pump, one, files.silent(), writing)
            result = await pump(two, files.open(source), files.open(os.devnull))
    assert result == (len(content), 0, Why.INPUT_ENDED, 0)
    assert copy.read_bytes() == content


async def test_what_the_peer_sent_before_it_closed_is_written(
    pairs: Pairs, wires: tuple[socket.socket, socket.socket]
) -> None:
    program, pumped = wires
    one, two = await pairs.streams(18, 18)
    await two.send_all(b"z" * 200_000)
    await two.aclose()
    got = bytearray()

    def read_slowly() -> None:
        while part := program.recv(1000):
            got.extend(part)

    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, read_slowly)
            result = await pump(one._channel, pumped.fileno(), pumped.fileno())
            pumped.close()
    assert result == (0, 200_000, Why.PEER_CLOSED, 0)
    assert got == b"z" * 200_000


async def test_a_programs_last_words_reach_the_peer(
    pairs: Pairs, wires: tuple[socket.socket, socket.socket]
) -> None:
    program, pumped = wires
    one, two = await pairs.streams()
    program.send(b"good bye")
    program.close()
    result = await pump(one._channel, pumped.fileno(), pumped.fileno())
    assert result == (8, 0, Why.INPUT_ENDED, 0)
    assert await receive_exactly(two, 8) == b"good bye"
    assert await two.receive_some() == b""


async def test_a_program_that_ended_its_output_still_gets_what_was_sent(
    pairs: Pairs, wires: tuple[socket.socket, socket.socket]
) -> None:
    program, pumped = wires
    one, two = await pairs.streams()
    await two.send_all(b"for you")
    program.shutdown(socket.SHUT_WR)
    result = await pump(one._channel, pumped.fileno(), pumped.fileno())
    assert result == (0, 7, Why.INPUT_ENDED, 0)
    assert program.recv(99) == b"for you"


async def test_an_output_that_goes_away_ends_the_pump_after_the_last_words(pairs: Pairs) -> None:
    one, two = await pairs.streams()
    output, into = os.pipe2(os.O_CLOEXEC)
    source, words = os.pipe2(os.O_CLOEXEC)
    results = []

    async def run() -> None:
        results.append(await pump(one._channel, source, into))

    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            await trio.testing.wait_all_tasks_blocked()
            os.write(words, b"last")
            assert await receive_exactly(two, 4) == b"last"
            os.close(output)  # nobody writes; the pump sees it all the same
        assert results == [(4, 0, Why.OUTPUT_FAILED, errno.EPIPE)]
        assert await two.receive_some() == b""
    for fd in (into, source, words):
        os.close(fd)


async def test_an_output_that_fails_ends_the_pump_though_its_input_is_silent(
    pairs: Pairs, wires: tuple[socket.socket, socket.socket]
) -> None:
    """poll(2) says nothing of an end that is read no more; only write(2) does."""
    program, pumped = wires
    one, two = await pairs.streams()
    results = []

    async def run() -> None:
        results.append(await pump(one._channel, pumped.fileno(), pumped.fileno()))

    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            program.send(b"first")
            assert await receive_exactly(two, 5) == b"first"
            program.shutdown(socket.SHUT_RD)
            await two.send_all(b"for nobody")
    assert results == [(5, 0, Why.OUTPUT_FAILED, errno.EPIPE)]


async def test_an_input_without_end_does_not_outlive_the_output(pairs: Pairs, files: Files) -> None:
    one, two = await pairs.streams()
    output, into = os.pipe2(os.O_CLOEXEC)
    os.close(output)
    got = 0
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pump, one._channel, files.open("/dev/zero"), files.own(into))
            while part := await two.receive_some():
                got += len(part)
    assert got >= MIB


async def test_a_failing_input_is_reported_with_its_errno(
    pairs: Pairs, files: Files, tmp_path: Path
) -> None:
    one, _ = await pairs.channels()
    folder = files.open(tmp_path, os.O_RDONLY)
    result = await pump(one, folder, files.open(os.devnull))
    assert result == (0, 0, Why.INPUT_FAILED, errno.EISDIR)
    assert one.closed


async def test_a_descriptor_that_is_none_is_reported(pairs: Pairs) -> None:
    one, _ = await pairs.channels()
    assert await pump(one, 12345, 12345) == (0, 0, Why.FAILED, errno.EBADF)


async def test_cancelling_stops_an_idle_pump_and_closes_the_channel(
    pairs: Pairs, wires: tuple[socket.socket, socket.socket]
) -> None:
    _, pumped = wires
    one, two = await pairs.streams()
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pump, one._channel, pumped.fileno(), pumped.fileno())
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        assert one.closed
        assert await two.receive_some() == b""
    assert pumped.getblocking()


async def test_cancelling_stops_a_pump_whose_output_is_stuck(
    pairs: Pairs, wires: tuple[socket.socket, socket.socket]
) -> None:
    _, pumped = wires
    one, two = await pairs.streams()

    async def send() -> None:
        # The pump may have closed the channel before the cancellation comes here.
        with suppress(trio.BrokenResourceError):
            await two.send_all(bytes(4 * MIB))

    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pump, one._channel, pumped.fileno(), pumped.fileno())
            nursery.start_soon(send)
            while select.select([], [pumped], [], 0)[1]:
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
    assert one.closed


async def test_cancelling_stops_a_busy_pump(pairs: Pairs, files: Files) -> None:
    one, two = await pairs.channels()
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            for channel in (one, two):
                zero, null = files.open("/dev/zero"), files.open(os.devnull)
                nursery.start_soon(pump, channel, zero, null)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
    assert one.closed
    assert two.closed


async def test_a_pump_cancelled_before_it_starts_still_closes(pairs: Pairs) -> None:
    one, two = await pairs.streams()
    with trio.CancelScope() as scope:
        scope.cancel()
        await pump(one._channel, 0, 1)
    assert scope.cancelled_caught
    assert await two.receive_some() == b""


async def test_a_channel_is_pumped_by_one_task_only(
    pairs: Pairs, wires: tuple[socket.socket, socket.socket]
) -> None:
    _, pumped = wires
    one, _ = await pairs.channels()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pump, one, pumped.fileno(), pumped.fileno())
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await pump(one, pumped.fileno(), pumped.fileno())
        with pytest.raises(trio.BusyResourceError):
            one.close()
        nursery.cancel_scope.cancel()
    with pytest.raises(trio.ClosedResourceError):
        await pump(one, pumped.fileno(), pumped.fileno())
