"""A program that a connection to its socket starts."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from pedos_dom0.local.activation import Activation
from pedos_host.plain_unix import short_path

from .conftest import PATIENCE, gone, script

# Answers a client with its pid, and ends when the client hangs up.
ANSWERS = """
with socket.socket(fileno=int(sys.argv[1])) as listener:
    with listener.accept()[0] as client:
        client.send(b"%d" % os.getpid())
        client.recv(1)
"""
FAILS = "sys.exit(1)"
# As ANSWERS, waiting for its clients in accept(2) as the keeper does, and ends by a signal.
IS_KILLED = """
import signal
with socket.socket(fileno=int(sys.argv[1])) as listener:
    listener.setblocking(True)
    with listener.accept()[0] as client:
        client.send(b"%d" % os.getpid())
        client.recv(1)
        os.kill(os.getpid(), signal.SIGKILL)
"""


@asynccontextmanager
async def activated(folder: Path, body: str) -> AsyncIterator[Activation]:
    found = Activation(
        folder / "keeper.sock", lambda number: script("keeper", body, folder, str(number))
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(found.run)
        yield found
        await found.stop()


async def answer(folder: Path, client: socket.socket) -> bytes:
    client.setblocking(False)
    with short_path(folder / "keeper.sock") as path:
        client.connect(path)
    with trio.fail_after(PATIENCE):
        await trio.lowlevel.wait_readable(client)
    return client.recv(100)


def new_client() -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)


async def test_a_connection_starts_it_and_another_one_starts_it_again(tmp_path: Path) -> None:
    async with activated(tmp_path, ANSWERS) as found:
        assert found.pid is None
        pids = []
        for _ in range(2):
            with new_client() as client:
                pids.append(int(await answer(tmp_path, client)))
                assert found.pid == pids[-1]
            await gone(pids[-1])
        assert len(set(pids)) == 2
        assert (tmp_path / "keeper.sock").exists()
    assert not (tmp_path / "keeper.sock").exists()


async def test_who_waits_for_one_that_cannot_start_hears_it_and_it_is_not_tried_for_ever(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with activated(tmp_path, FAILS):
        for _ in range(2):
            with new_client() as client:
                assert await answer(tmp_path, client) == b""
    assert caplog.text.count("exited with status 1") == 2


async def test_one_that_was_killed_is_started_again(tmp_path: Path) -> None:
    async with activated(tmp_path, IS_KILLED) as found:
        pids = []
        for _ in range(2):
            with new_client() as client:
                pids.append(int(await answer(tmp_path, client)))
            with trio.fail_after(PATIENCE):
                # Who connects before that is let go with the others.
                while found.pid is not None:  # noqa: ASYNC110 - it tells nobody
                    await trio.sleep(0.001)
        assert len(set(pids)) == 2


@pytest.mark.parametrize("force", [False, True])
async def test_it_ends_with_its_machine(tmp_path: Path, force: bool) -> None:
    async with activated(tmp_path, ANSWERS) as found:
        with new_client() as client:
            pid = int(await answer(tmp_path, client))
            await found.stop(force=force)
            await gone(pid)


async def test_a_machine_that_is_cancelled_leaves_none(tmp_path: Path) -> None:
    async with activated(tmp_path, ANSWERS) as found:
        pass
    with trio.CancelScope() as scope:
        async with activated(tmp_path, ANSWERS) as found:
            with new_client() as client:
                await answer(tmp_path, client)
                assert found.pid is not None
                os.kill(found.pid, signal.SIGSTOP)  # it would not end by itself
                pid = found.pid
                scope.cancel()
                await trio.lowlevel.checkpoint()
    await gone(pid)
