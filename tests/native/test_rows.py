"""What goes wrong with plain libxenvchan, row by row, and that it does not go wrong here.

The rows are those of the list of defects that were reproduced with the library. Each test is the
shortest that shows its row; test_hostile.py, test_death.py, tests/interleave and tests/interop have
the many ways. mutants_table.py names the row that a line of C is there for.

Not here, because only Xen can show them:
 6  on Xen a dead domain gives no event, so a timer and the hypervisor's events must notice; between
    processes the rendezvous connection hangs up, and that half is tested
10  the limits of gntalloc and xenstore are a kernel's and a daemon's
11  the name of the library changes; there is no attachment through the library yet
 3  has two halves: the uninitialised `blocking` exists in the library's own structure alone (see
    tests/interop/interop.c, which sets it); that a failed start leaves everything well is here
"""

from __future__ import annotations

import os
import resource
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from pedos_vchan import shm
from pedos_vchan._native import ffi, lib

from . import raw
from .test_hostile import CLIENT, PORT, SERVER, SIZE, served

if TYPE_CHECKING:
    from pathlib import Path


async def test_row_1_bytes_written_just_before_the_close_are_read(tmp_path: Path) -> None:
    async with served(tmp_path) as (stream, client), trio.open_nursery() as nursery:

        async def read() -> None:
            assert await stream.receive_some() == b"last words"
            assert await stream.receive_some() == b""

        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        client.write(b"last words")
        client.close()


async def test_row_2_a_read_of_more_than_is_left_at_the_close_gives_what_is_left(
    tmp_path: Path,
) -> None:
    async with served(tmp_path) as (stream, client):
        client.write(b"abc")
        client.close()
        assert await stream.receive_some(10) == b"abc"
        assert await stream.receive_some(10) == b""


@pytest.mark.parametrize("free", [0, 1, 2])
def test_row_3_a_server_that_cannot_start_says_so_and_leaves_nothing(free: int) -> None:
    """It needs three descriptors: memory, and an event each way."""
    before = os.listdir("/proc/self/fd")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    held = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(before) + 8, hard))
        with pytest.raises(OSError, match="Too many open files"):
            while True:
                held.append(raw.eventfd())
        for _ in range(free):
            os.close(held.pop())
        assert lib.pv_shm_create(16, 16, ffi.new("struct pv_channel **"), ffi.new("int[3]")) < 0
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in held:
            os.close(fd)
    assert len(os.listdir("/proc/self/fd")) == len(before)


async def test_row_4_bad_indices_are_an_error_and_not_silence(tmp_path: Path) -> None:
    async with served(tmp_path) as (stream, client):
        client.page.set("left.prod", SIZE + 1)
        with pytest.raises(trio.BrokenResourceError, match="impossible"):
            await stream.receive_some()


async def test_row_5_our_own_index_is_not_read_from_the_page(tmp_path: Path) -> None:
    async with served(tmp_path) as (stream, client):
        client.write(b"abc")
        client.page.set("left.cons", 3)  # ours: "you have read it already"
        assert await stream.receive_some() == b"abc"


async def test_row_6_a_peer_that_dies_is_noticed(tmp_path: Path) -> None:
    async with served(tmp_path) as (stream, client):
        client.write(b"abc")
        client.die()
        assert await stream.receive_some() == b"abc"
        with pytest.raises(trio.BrokenResourceError, match="gone without closing"):
            await stream.receive_some()


async def test_row_7_a_reader_asks_before_it_sleeps_and_is_woken(tmp_path: Path) -> None:
    async with served(tmp_path) as (stream, client):
        for word in (b"one", b"two", b"three"):
            async with trio.open_nursery() as nursery:

                async def read(expected: bytes) -> None:
                    assert await stream.receive_some() == expected

                nursery.start_soon(read, word)
                await trio.testing.wait_all_tasks_blocked()
                assert client.page.get("cli_notify") & raw.NOTIFY_WRITE
                client.write(word)


async def test_row_8_a_server_serves_one_client_and_the_next_has_a_new_one(
    tmp_path: Path,
) -> None:
    for word in (b"first", b"second"):
        async with served(tmp_path) as (stream, client):
            with pytest.raises(FileNotFoundError):
                await shm.connect(tmp_path, CLIENT, SERVER, PORT)
            client.write(word)
            assert await stream.receive_some() == word


async def test_row_9_a_channel_to_oneself_is_refused_before_it_is_tried(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="to itself"):
        await shm.listen(tmp_path, SERVER, SERVER, PORT)
    with pytest.raises(ValueError, match="to itself"):
        await shm.connect(tmp_path, SERVER, SERVER, PORT)
    assert list(tmp_path.iterdir()) == []
