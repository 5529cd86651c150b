"""How server and client find each other."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from collections import Counter
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from pedos_host.plain_unix import short_path
from pedos_vchan import shm

from tests.patience import PATIENCE

from .conftest import CLIENT, SERVER

if TYPE_CHECKING:
    from pathlib import Path

    from .conftest import Pairs


async def meet(directory: Path, port: int) -> tuple[shm.Channel, shm.Channel]:
    listener = await shm.listen(directory, SERVER, CLIENT, port)
    return await meet_at(listener, directory, port)


async def meet_at(
    listener: shm.Listener, directory: Path, port: int
) -> tuple[shm.Channel, shm.Channel]:
    ends: list[shm.Channel] = []

    async def accept() -> None:
        ends.append(await listener.accept())

    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept)
            ends.append(await shm.connect(directory, CLIENT, SERVER, port))
    one, two = ends
    return (one, two) if one.domain == SERVER else (two, one)


def close(*channels: shm.Channel) -> None:
    for channel in channels:
        channel.close()


async def test_both_ends_know_who_is_there(tmp_path: Path) -> None:
    server, client = await meet(tmp_path, 9)
    assert (server.domain, server.peer_domain, server.port) == (SERVER, CLIENT, 9)
    assert (client.domain, client.peer_domain, client.port) == (CLIENT, SERVER, 9)
    assert repr(client) == "<Channel 3 to 7, port 9, open>"
    close(server, client)
    close(server, client)
    assert server.closed
    with pytest.raises(trio.ClosedResourceError):
        server.fileno()


async def test_a_path_longer_than_a_socket_address_works(tmp_path: Path) -> None:
    directory = tmp_path / ("d" * 120) / ("e" * 200)
    directory.mkdir(parents=True)
    close(*await meet(directory, 1))


async def test_a_server_serves_one_client_once(tmp_path: Path) -> None:
    server, client = await meet(tmp_path, 1)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileNotFoundError):
        await shm.connect(tmp_path, CLIENT, SERVER, 1)
    close(server, client)


async def test_a_second_client_that_waits_in_line_is_refused(tmp_path: Path) -> None:
    listener = await shm.listen(tmp_path, SERVER, CLIENT, 1)
    outcomes: list[object] = []

    async def connect() -> None:
        try:
            outcomes.append(await shm.connect(tmp_path, CLIENT, SERVER, 1))
        except ConnectionRefusedError as error:
            outcomes.append(error)

    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connect)
            nursery.start_soon(connect)
            await trio.testing.wait_all_tasks_blocked()
            channel = await listener.accept()
    assert sorted(type(outcome).__name__ for outcome in outcomes) == [
        "Channel",
        "ConnectionRefusedError",
    ]
    close(channel, *(outcome for outcome in outcomes if isinstance(outcome, shm.Channel)))


async def test_a_client_that_leaves_half_way_does_not_use_up_the_server(tmp_path: Path) -> None:
    listener = await shm.listen(tmp_path, SERVER, CLIENT, 1)
    for farewell in (b"", b"\x01", b"\x02"):  # says nothing; claims to have attached; nonsense
        with socket.socket(socket.AF_UNIX) as stranger:
            with short_path(tmp_path / f"{SERVER}-{CLIENT}-1.sock") as short:
                stranger.connect(short)
            stranger.send(farewell)
    close(*await meet_at(listener, tmp_path, 1))


async def test_a_client_that_hangs_is_dropped(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    listener = await shm.listen(tmp_path, SERVER, CLIENT, 1)
    with socket.socket(socket.AF_UNIX) as stranger:
        with short_path(tmp_path / f"{SERVER}-{CLIENT}-1.sock") as short:
            stranger.connect(short)
        with trio.move_on_after(60):
            await listener.accept()
        stranger.setblocking(False)
        assert stranger.recv(99)  # the offer
        assert stranger.recv(99) == b""  # and the end
    listener.close()


async def test_the_socket_of_a_dead_server_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / f"{SERVER}-{CLIENT}-1.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        with short_path(path) as short:
            dead.bind(short)
        dead.listen()
    with pytest.raises(ConnectionRefusedError):
        await shm.connect(tmp_path, CLIENT, SERVER, 1)
    close(*await meet(tmp_path, 1))


async def test_the_socket_of_a_living_server_is_left_alone(tmp_path: Path) -> None:
    listener = await shm.listen(tmp_path, SERVER, CLIENT, 1)
    with pytest.raises(OSError, match="already listens") as caught:
        await shm.listen(tmp_path, SERVER, CLIENT, 1)
    assert caught.value.errno == errno.EADDRINUSE
    close(*await meet_at(listener, tmp_path, 1))


async def test_only_the_data_ports_of_one_domain_are_cleared(tmp_path: Path) -> None:
    kept = ["7-3-1.sock", "3-7-16.sock", "77-3-16.sock", "7-3-x.sock", "7-3-15.sock"]
    for name in ["7-3-16.sock", "7-12-65535.sock", *kept]:
        (tmp_path / name).touch()
    shm.clear_data_ports(tmp_path, SERVER)
    assert sorted(os.listdir(tmp_path)) == sorted(kept)


async def test_a_closed_listener_leaves_no_file_and_refuses(tmp_path: Path) -> None:
    with await shm.listen(tmp_path, SERVER, CLIENT, 1) as listener:
        assert stat.S_IMODE((tmp_path / f"{SERVER}-{CLIENT}-1.sock").stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(trio.ClosedResourceError):
        await listener.accept()


async def test_closing_the_listener_wakes_accept(tmp_path: Path) -> None:
    listener = await shm.listen(tmp_path, SERVER, CLIENT, 1)

    async def accept() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await listener.accept()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(accept)
        await trio.testing.wait_all_tasks_blocked()
        listener.close()


async def test_a_listener_never_removes_its_successors_socket(tmp_path: Path) -> None:
    first = await shm.listen(tmp_path, SERVER, CLIENT, 1)
    path = tmp_path / f"{SERVER}-{CLIENT}-1.sock"
    path.unlink()
    second = await shm.listen(tmp_path, SERVER, CLIENT, 1)
    first.close()
    assert path.exists()
    second.close()


async def test_no_server_is_an_error_at_once(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await shm.connect(tmp_path, CLIENT, SERVER, 1)
    with pytest.raises(FileNotFoundError):
        await shm.connect(tmp_path / "missing", CLIENT, SERVER, 1)


async def test_a_domain_has_no_channel_to_itself(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="to itself"):
        await shm.listen(tmp_path, 4, 4, 1)
    with pytest.raises(ValueError, match="to itself"):
        await shm.connect(tmp_path, 4, 4, 1)


@pytest.mark.parametrize(
    ("domain", "peer", "port"), [(-1, 2, 1), (1, 0x7FF0, 1), (1, 2, -1), (1, 2, 1 << 32)]
)
async def test_numbers_that_cannot_be_are_refused(
    tmp_path: Path, domain: int, peer: int, port: int
) -> None:
    with pytest.raises(ValueError, match="is not between"):
        await shm.listen(tmp_path, domain, peer, port)
    with pytest.raises(ValueError, match="is not between"):
        await shm.connect(tmp_path, domain, peer, port)


@pytest.mark.parametrize(
    "orders", [(9, 12), (12, 21), (10, 10), (11, 11), (10, 20), (-1, 12), (1 << 40, 12)]
)
async def test_orders_that_cannot_be_are_refused(tmp_path: Path, orders: tuple[int, int]) -> None:
    left, right = orders
    with pytest.raises(ValueError, match="ring orders"):
        await shm.listen(tmp_path, SERVER, CLIENT, 1, order_left=left, order_right=right)
    assert list(tmp_path.iterdir()) == []


async def test_nothing_stays_open_after_many_channels(pairs: Pairs) -> None:
    before = open_files()
    for _ in range(20):
        close(*await pairs.channels())
    assert open_files() - before == Counter()


def open_files() -> Counter[str]:
    """What this process has open. Things of earlier tests may still be closed, so that there are
    fewer of them later; new ones would be ours."""
    found = Counter[str]()
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # that of the listing itself
            found[os.readlink(f"/proc/self/fd/{fd}")] += 1
    return found
