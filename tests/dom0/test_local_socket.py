"""The socket of dom0's command line: who may connect, and what one client can do to others."""

from __future__ import annotations

import os
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
from pedos_cli import client
from pedos_dom0.connections import local_socket
from pedos_dom0.connections.local_socket import LocalSocket, listening
from pedos_host.throttle import LINES, Throttle
from pedos_host.unix import connect_unix
from pedos_vchan.peer import open_peer

from tests.dom0.fakes import World, fails


@pytest.fixture
async def path(tmp_path: Path, nursery: trio.Nursery) -> AsyncIterator[Path]:
    world = World(tmp_path, nursery)
    world.dom0_agent()
    await world.start()
    path = tmp_path / "dom0.sock"
    async with listening(str(path)) as listener:
        world.service_nursery.start_soon(LocalSocket(world.api).serve, listener)
        yield path
        await world.kill()


async def works(path: Path) -> bool:
    stream = await connect_unix(path)
    async with open_peer(stream, program="test", handlers={}) as peer:
        return bool(await peer.call("service.status", {}, timeout=5))


def ask(path: Path) -> None:
    with client.connect(str(path)) as connected:
        connected.call("service.status", {}, 5)


async def test_its_owner_is_served_and_nobody_else_can_open_it(path: Path) -> None:
    assert await works(path)
    assert stat.S_IMODE(os.lstat(path).st_mode) == 0o600


async def test_a_process_of_another_user_is_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_socket, "peer_uid", lambda _stream: os.getuid() + 12345)
    with fails("denied", "root and its own user"):
        await trio.to_thread.run_sync(ask, path)


async def test_a_client_that_sends_garbage_is_disconnected_alone(path: Path) -> None:
    async with await connect_unix(path) as stream:
        await stream.send_all(b"\xff" * 100)
        with pytest.raises((trio.BrokenResourceError, StopAsyncIteration)):
            while await stream.receive_some():
                pass
            raise StopAsyncIteration
    assert await works(path)


async def test_more_clients_than_the_bound_are_refused_until_one_leaves(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(local_socket, "throttle", Throttle())
    monkeypatch.setattr(local_socket, "CLIENTS_MAX", 1)
    stream = await connect_unix(path)
    async with open_peer(stream, program="test", handlers={}):
        for _ in range(3 * LINES):  # however many they are
            with fails("quota", "1 programs are connected", "ss -xp"):
                await trio.to_thread.run_sync(ask, path)
    assert len(caplog.records) == LINES
    await trio.testing.wait_all_tasks_blocked(0.05)
    assert await works(path)


async def test_only_its_own_socket_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "own.sock"
    async with listening(str(path)):
        assert path.exists()
    assert not path.exists()
    async with listening(str(path)):
        path.unlink()
        path.write_text("somebody else's")
    assert path.read_text() == "somebody else's"


async def test_a_second_service_does_not_take_over_the_socket(tmp_path: Path) -> None:
    path = tmp_path / "own.sock"
    async with listening(str(path)):
        with pytest.raises(OSError, match="listens"):
            async with listening(str(path)):
                pass
        assert path.exists()
