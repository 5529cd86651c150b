"""What a peer publishes or offers is checked, and a bad peer harms only its own channel."""

from __future__ import annotations

import errno
import fcntl
import os
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from pedos_vchan import shm
from pedos_vchan.pump import Why, pump
from pedos_vchan.stream import VchanStream

from tests.patience import PATIENCE

from . import raw

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

SERVER, CLIENT, PORT = 7, 3, 5
SIZE = 1 << 16


@asynccontextmanager
async def served(
    directory: Path, order_left: int = 16, order_right: int = 16
) -> AsyncIterator[tuple[VchanStream, raw.RawClient]]:
    """A stream whose peer is a client made by hand."""
    listener = await shm.listen(
        directory, SERVER, CLIENT, PORT, order_left=order_left, order_right=order_right
    )
    streams: list[VchanStream] = []

    async def accept() -> None:
        streams.append(VchanStream(await listener.accept()))

    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept)
            client = await trio.to_thread.run_sync(raw.RawClient, directory, SERVER, CLIENT, PORT)
        with client:
            yield streams[0], client
            await streams[0].aclose()


@pytest.mark.parametrize("prod", [SIZE + 1, 1 << 31, -1])
async def test_more_bytes_than_the_ring_holds_break_the_channel(tmp_path: Path, prod: int) -> None:
    async with served(tmp_path) as (stream, client):
        client.page.set("left.prod", prod)
        client.notify()
        for _ in range(2):  # for good
            with pytest.raises(trio.BrokenResourceError, match="impossible"):
                await stream.receive_some()
            with pytest.raises(trio.BrokenResourceError, match="impossible"):
                await stream.send_all(b"x")
        assert client.page.get("srv_live") == 0


@pytest.mark.parametrize("cons", [1, SIZE, 1 << 31, -SIZE - 1])
async def test_reading_what_was_never_written_breaks_the_channel(tmp_path: Path, cons: int) -> None:
    async with served(tmp_path) as (stream, client):
        client.page.set("right.cons", cons)
        with pytest.raises(trio.BrokenResourceError, match="impossible"):
            await stream.send_all(b"x")


async def test_an_index_that_goes_back_breaks_the_channel(tmp_path: Path) -> None:
    async with served(tmp_path) as (stream, client):
        client.page.set("left.prod", 100)
        assert len(await stream.receive_some(10)) == 10
        client.page.set("left.prod", 50)
        with pytest.raises(trio.BrokenResourceError, match="impossible"):
            await stream.receive_some(10)


async def test_a_sleeping_reader_is_woken_by_the_bad_index(tmp_path: Path) -> None:
    async with served(tmp_path) as (stream, client):

        async def read() -> None:
            with pytest.raises(trio.BrokenResourceError):
                await stream.receive_some()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await trio.testing.wait_all_tasks_blocked()
            client.page.set("left.prod", SIZE + 1)
            client.notify()


async def test_our_own_indices_are_never_read_from_the_page(tmp_path: Path) -> None:
    async with served(tmp_path) as (stream, client):
        await stream.send_all(b"one")
        client.page.set("right.prod", 12345)  # ours, overwritten by the peer
        client.page.set("left.cons", 54321)
        await stream.send_all(b"two")
        assert client.page.get("right.prod") == 6
        client.page.set("left.prod", 4)
        assert len(await stream.receive_some()) == 4
        assert client.page.get("left.cons") == 4


async def test_orders_that_change_later_change_nothing(tmp_path: Path) -> None:
    async with served(tmp_path) as (stream, client):
        client.page.set("right_order", 30)
        client.page.set("left_order", 30)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send_all, bytes(2 * SIZE))
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        assert client.page.get("right.prod") == SIZE


async def test_a_peer_that_comes_back_to_life_after_closing_stays_closed(
    tmp_path: Path,
) -> None:
    async with served(tmp_path) as (stream, client):
        client.page.set("left.prod", 3)
        client.page.set("cli_live", 0)
        assert len(await stream.receive_some()) == 3
        assert await stream.receive_some() == b""
        client.page.set("cli_live", 1)
        client.page.set("left.prod", 9)
        assert await stream.receive_some() == b""


async def test_a_pump_stops_at_a_bad_index(tmp_path: Path) -> None:
    listener = await shm.listen(tmp_path, SERVER, CLIENT, PORT)
    results = []
    reading, writing = os.pipe2(os.O_CLOEXEC)

    async def serve() -> None:
        results.append(await pump(await listener.accept(), reading, writing))

    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            client = await trio.to_thread.run_sync(raw.RawClient, tmp_path, SERVER, CLIENT, PORT)
            client.page.set("left.prod", SIZE + 1)
            client.notify()
    with client:
        assert results == [(0, 0, Why.PEER_BROKEN, 0)]
        assert client.page.get("srv_live") == 0
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize("orders", [(16, 16), (11, 10), (12, 20)])
async def test_a_plain_peer_that_reads_its_indices_from_the_page_works(
    tmp_path: Path, orders: tuple[int, int]
) -> None:
    data = bytes(range(256)) * 40
    async with served(tmp_path, *orders) as (stream, client):

        async def send() -> None:
            await stream.send_all(data)

        async def receive() -> None:
            got = b""
            while len(got) < len(data):
                got += await stream.receive_some()
            assert got == data

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            assert await trio.to_thread.run_sync(client.read, len(data)) == data
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            await trio.to_thread.run_sync(client.write, data)
        client.close()
        assert await stream.receive_some() == b""


@contextmanager
def descriptors(memory: int) -> Iterator[list[int]]:
    """A set as a server sends it; closed afterwards."""
    fds = [memory, raw.eventfd(), raw.eventfd()]
    yield fds
    for fd in fds:
        os.close(fd)


async def offered(
    directory: Path, fds: list[int], offer: bytes | None = None
) -> tuple[bytes, BaseException | None]:
    """What the client answered to such an offer, and what connect raised."""
    server = raw.RawServer(directory, SERVER, CLIENT, PORT)
    answers: list[bytes] = []
    raised: BaseException | None = None

    async def serve() -> None:
        answers.append(await trio.to_thread.run_sync(server.serve, fds, offer))

    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            try:
                channel = await shm.connect(directory, CLIENT, SERVER, PORT)
            except OSError as error:
                raised = error
            else:
                channel.close()
    server.close()
    return answers[0], raised


SHRINK, GROW, SEAL = fcntl.F_SEAL_SHRINK, fcntl.F_SEAL_GROW, fcntl.F_SEAL_SEAL
WHOLE = raw.PAGE + 2 * SIZE


async def test_a_good_offer_by_hand_is_taken(tmp_path: Path) -> None:
    with descriptors(raw.memfd(WHOLE)) as fds:
        assert await offered(tmp_path, fds) == (b"\x01", None)


@pytest.mark.parametrize(
    ("size", "seals", "left", "right"),
    [
        pytest.param(WHOLE, 0, 16, 16, id="unsealed"),
        pytest.param(WHOLE, GROW | SEAL, 16, 16, id="may shrink"),
        pytest.param(WHOLE, SHRINK | SEAL, 16, 16, id="may grow"),
        pytest.param(WHOLE, SHRINK | GROW, 16, 16, id="may be sealed further"),
        pytest.param(WHOLE, raw.SEALS | fcntl.F_SEAL_WRITE, 16, 16, id="read-only"),
        pytest.param(0, raw.SEALS, 16, 16, id="empty"),
        pytest.param(raw.PAGE - 1, raw.SEALS, 11, 10, id="less than a page"),
        pytest.param(WHOLE - raw.PAGE, raw.SEALS, 16, 16, id="a page short"),
        pytest.param(WHOLE + raw.PAGE, raw.SEALS, 16, 16, id="a page long"),
        pytest.param(1 << 32, raw.SEALS, 16, 16, id="enormous"),
        pytest.param(raw.PAGE, raw.SEALS, 10, 10, id="two small rings"),
        pytest.param(raw.PAGE, raw.SEALS, 11, 11, id="two in-page rings"),
        pytest.param(WHOLE, raw.SEALS, 9, 16, id="order too low"),
        pytest.param(WHOLE, raw.SEALS, 16, 21, id="order too high"),
        pytest.param(WHOLE, raw.SEALS, 65535, 65535, id="order absurd"),
    ],
)
async def test_memory_that_could_hurt_is_refused(
    tmp_path: Path, size: int, seals: int, left: int, right: int
) -> None:
    with descriptors(raw.memfd(size, seals=seals, left=left, right=right)) as fds:
        answer, raised = await offered(tmp_path, fds)
    assert answer == b""
    assert isinstance(raised, ConnectionError)
    assert "not a sealed vchan ring" in str(raised)


async def test_a_plain_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(WHOLE))
    with descriptors(os.open(path, os.O_RDWR | os.O_CLOEXEC)) as fds:
        answer, raised = await offered(tmp_path, fds)
    assert (answer, type(raised)) == (b"", ConnectionError)


async def test_event_descriptors_that_could_block_are_refused(tmp_path: Path) -> None:
    for which in (1, 2):
        directory = tmp_path / str(which)
        directory.mkdir()
        with descriptors(raw.memfd(WHOLE)) as fds:
            os.set_blocking(fds[which], True)
            answer, raised = await offered(directory, fds)
        assert (answer, type(raised)) == (b"", ConnectionError)


async def test_other_numbers_of_descriptors_are_refused_and_closed(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for count in (0, 1, 2, 4, 7):
        directory = tmp_path / str(count)
        directory.mkdir()
        fds = [raw.eventfd() for _ in range(count)]
        answer, raised = await offered(directory, fds)
        assert (answer, type(raised)) == (b"", ConnectionError)
        for fd in fds:
            os.close(fd)
    assert len(os.listdir("/proc/self/fd")) == before


async def test_an_offer_of_another_channel_is_refused(tmp_path: Path) -> None:
    with descriptors(raw.memfd(WHOLE)) as fds:
        offer = raw.OFFER.pack(raw.MAGIC, SERVER, CLIENT, PORT + 1)
        answer, raised = await offered(tmp_path, fds, offer)
    assert (answer, type(raised)) == (b"", ConnectionError)


async def test_a_server_that_says_nothing_is_given_up(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    server = raw.RawServer(tmp_path, SERVER, CLIENT, PORT)
    with pytest.raises(TimeoutError) as caught:
        await shm.connect(tmp_path, CLIENT, SERVER, PORT)
    assert caught.value.errno == errno.ETIMEDOUT
    server.close()
