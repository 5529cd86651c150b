"""VchanStream keeps the promises of trio's streams."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from tests.patience import PATIENCE

if TYPE_CHECKING:
    from pedos_vchan.stream import VchanStream

    from .conftest import Pairs

# Every order once on each side, with partners that libxenvchan could have beside it.
ORDERS = [(10, 11), (11, 10), (10, 19), *((n, n) for n in range(12, 21)), (20, 11), (12, 20)]


async def receive_exactly(stream: VchanStream, count: int) -> bytes:
    got = bytearray()
    while len(got) < count:
        part = await stream.receive_some(count - len(got))
        assert part, "the stream ended early"
        got += part
    return bytes(got)


# This check of trio 0.22 raises through nurseries of its own and expects what comes out as it is.
@pytest.mark.trio(run=trio.run)
async def test_it_is_a_two_way_stream(pairs: Pairs) -> None:
    async def clogged() -> tuple[VchanStream, VchanStream]:
        one, two = await pairs.streams(12, 12)
        await one.send_all(bytes(4096))
        await two.send_all(bytes(4096))
        return one, two

    with trio.fail_after(PATIENCE):
        await trio.testing.check_two_way_stream(pairs.streams, clogged)


@pytest.mark.parametrize(("left", "right"), ORDERS)
async def test_random_chunks_arrive_unchanged_through_rings_of_every_size(
    pairs: Pairs, left: int, right: int
) -> None:
    server, client = await pairs.streams(left, right)
    chance = random.Random(left * 100 + right)

    async def send(stream: VchanStream, data: bytes, largest: int) -> None:
        at = 0
        while at < len(data):
            size = chance.randint(1, largest)
            await stream.send_all(data[at : at + size])
            at += size

    async def receive(stream: VchanStream, data: bytes, largest: int) -> None:
        got = bytearray()
        while len(got) < len(data):
            got += await stream.receive_some(chance.randint(1, largest))
        assert got == data

    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            for one, two, order in ((client, server, left), (server, client, right)):
                data = chance.randbytes((5 << order) + 77)
                nursery.start_soon(send, one, data, 3 << (order - 1))
                nursery.start_soon(receive, two, data, 3 << (order - 1))


@pytest.mark.parametrize("closer_is_server", [True, False])
async def test_bytes_sent_just_before_close_all_arrive(
    pairs: Pairs, closer_is_server: bool
) -> None:
    for size in (1, 17, 2047, 2048):
        for _ in range(25):
            server, client = (
                await pairs.streams(11, 12) if closer_is_server else (await pairs.streams(12, 11))
            )
            closer, reader = (server, client) if closer_is_server else (client, server)
            await closer.send_all(b"x" * size)
            await closer.aclose()
            assert await receive_exactly(reader, size) == b"x" * size
            assert await reader.receive_some() == b""
            with pytest.raises(trio.BrokenResourceError):
                await reader.send_all(b"too late")


async def test_a_cancelled_reader_leaves_the_writer_able_to_go_on(pairs: Pairs) -> None:
    one, two = await pairs.streams(12, 12)
    await one.send_all(bytes(4096))
    async with trio.open_nursery() as nursery:
        # The reader waits first, so it watches the descriptor for the blocked writer as well.
        reading = trio.CancelScope()

        async def read() -> None:
            with reading:
                await one.receive_some()

        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(one.send_all, b"more")
        await trio.testing.wait_all_tasks_blocked()
        reading.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert await receive_exactly(two, 4100) == bytes(4096) + b"more"


async def test_it_knows_its_peer(pairs: Pairs) -> None:
    server, client = await pairs.streams()
    assert (server.peer_domain, client.peer_domain) == (3, 7)
