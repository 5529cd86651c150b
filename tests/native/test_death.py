"""The death of a peer is noticed, and what it had sent is not lost."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from pedos_vchan import shm
from pedos_vchan.pump import Why, pump
from pedos_vchan.stream import VchanStream

from tests.patience import PATIENCE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from pedos_vchan.channel import Channel

MORTAL = Path(__file__).with_name("mortal.py")


def start(directory: Path, *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, MORTAL, directory, *arguments], stdout=subprocess.PIPE)


@asynccontextmanager
async def mortal_peer(
    directory: Path, *arguments: str
) -> AsyncIterator[tuple[Channel, subprocess.Popen[bytes]]]:
    """The server's end of a channel to a process, which has sent all that it was told to."""
    listener = await shm.listen(directory, 7, 3, 5)
    with trio.fail_after(PATIENCE), start(directory, *arguments) as process:
        try:
            channel = await listener.accept()
            assert process.stdout
            await trio.lowlevel.wait_readable(process.stdout)
            assert process.stdout.readline() == b"sent\n"
            yield channel, process
            channel.close()
        finally:
            listener.close()
            process.kill()


async def test_bytes_of_a_killed_peer_arrive_and_then_the_stream_is_broken(
    tmp_path: Path,
) -> None:
    async with mortal_peer(tmp_path, "5000") as (channel, process):
        stream = VchanStream(channel)
        process.kill()
        process.wait()
        got = 0
        with pytest.raises(trio.BrokenResourceError, match="gone without closing"):
            while True:
                got += len(await stream.receive_some(999))
        assert got == 5000
        with pytest.raises(trio.BrokenResourceError, match="gone without closing"):
            await stream.send_all(b"x")


async def test_sleeping_tasks_of_both_directions_are_woken_by_the_death(tmp_path: Path) -> None:
    async with mortal_peer(tmp_path, "0") as (channel, process):
        stream = VchanStream(channel)
        ends = []

        async def receive() -> None:
            with pytest.raises(trio.BrokenResourceError):
                await stream.receive_some()
            ends.append("receive")

        async def send() -> None:
            with pytest.raises(trio.BrokenResourceError):
                await stream.send_all(bytes(1 << 20))
            ends.append("send")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            nursery.start_soon(send)
            await trio.testing.wait_all_tasks_blocked()
            process.kill()
        assert sorted(ends) == ["receive", "send"]


async def test_a_peer_that_closed_before_it_was_killed_has_closed(tmp_path: Path) -> None:
    async with mortal_peer(tmp_path, "5000", "close") as (channel, process):
        stream = VchanStream(channel)
        process.kill()
        process.wait()
        got = 0
        while part := await stream.receive_some():
            got += len(part)
        assert got == 5000


async def test_a_pump_passes_on_what_a_killed_peer_had_sent(tmp_path: Path) -> None:
    async with mortal_peer(tmp_path, "5000") as (channel, process):
        silent, keep = os.pipe2(os.O_CLOEXEC)
        out, into = os.pipe2(os.O_CLOEXEC)
        process.kill()
        result = await pump(channel, silent, into)
        os.close(into)
        assert (result.why, result.bytes_to_fd) == (Why.PEER_DIED, 5000)
        assert os.read(out, 9999) == b"m" * 5000
        for fd in (silent, keep, out):
            os.close(fd)
