"""How a pump ends while its output is stuck: a full pipe, and more behind it in the ring."""

from __future__ import annotations

import os
import select
from contextlib import contextmanager
from typing import TYPE_CHECKING

import trio
from pedos_vchan.pump import PumpResult, Why, pump

from tests.patience import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .conftest import Pairs

MUCH = 200_000  # more than a pipe takes (64 KiB), less than the ring of order 18 holds


@contextmanager
def pipe() -> Iterator[tuple[int, int]]:
    """Two blocking descriptors, as a program leaves them; the test may close them earlier."""
    ends = os.pipe2(os.O_CLOEXEC)
    try:
        yield ends
    finally:
        for fd in ends:
            os.close(fd)


def read_all(fd: int, count: int) -> int:
    """Reads count bytes, or what there is until one second passes without any."""
    got = 0
    while got < count and select.select([fd], [], [], 1)[0]:
        got += len(os.read(fd, count - got))
    return got


async def test_when_the_input_ends_the_peer_knows_at_once_and_its_bytes_are_still_written(
    pairs: Pairs,
) -> None:
    one, two = await pairs.streams(18, 18)
    await two.send_all(bytes(MUCH))
    results: list[PumpResult] = []

    async def pumping(fd_in: int, fd_out: int) -> None:
        results.append(await pump(one._channel, fd_in, fd_out))

    ended = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    with pipe() as (out, into), trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pumping, ended, into)
            assert await two.receive_some() == b""
            assert results == []  # it waits for the pipe
            assert await trio.to_thread.run_sync(read_all, out, MUCH) == MUCH
    os.close(ended)
    assert results == [(0, MUCH, Why.INPUT_ENDED, 0)]


async def test_a_pump_that_waits_for_a_full_pipe_can_be_cancelled(pairs: Pairs) -> None:
    one, two = await pairs.streams(18, 18)
    await two.send_all(bytes(MUCH))
    with pipe() as (_, into), pipe() as (silent, _), trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pump, one._channel, silent, into)
            while select.select([], [into], [], 0)[1]:
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        assert os.get_blocking(into)  # as it was
