"""The units have WatchdogSec=: a program that is ready pings, in time, and only if it is asked."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest
import trio
from pedos_vchan import notify

WAIT_S = 30


@pytest.fixture
def manager(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The socket of a service manager that waits WAIT_S for a ping of this process."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
        sock.bind("")  # the kernel chooses a name
        monkeypatch.setenv("NOTIFY_SOCKET", "@" + sock.getsockname()[1:].decode())
        monkeypatch.setenv("WATCHDOG_USEC", str(WAIT_S * 1_000_000))
        monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
        yield sock


def heard(manager: socket.socket) -> list[bytes]:
    words = []
    while True:
        try:
            words.append(manager.recv(100))
        except BlockingIOError:
            return words


async def test_a_ready_program_pings_often_enough_for_one_ping_to_be_late(
    manager: socket.socket, autojump_clock: trio.testing.MockClock
) -> None:
    assert notify.ready()
    await trio.testing.wait_all_tasks_blocked()
    assert heard(manager) == [b"READY=1", b"WATCHDOG=1"]
    await trio.sleep(WAIT_S / 2 + 1)
    assert b"WATCHDOG=1" in heard(manager)
    await trio.sleep(WAIT_S)
    assert heard(manager).count(b"WATCHDOG=1") >= 2


async def test_children_are_not_told_of_the_watchdog(manager: socket.socket) -> None:
    notify.ready()
    assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} & set(os.environ)


@pytest.mark.parametrize(
    ("name", "value"),
    [("WATCHDOG_PID", "1"), ("WATCHDOG_USEC", ""), ("WATCHDOG_USEC", "0"), ("WATCHDOG_USEC", "x")],
)
async def test_a_program_that_is_not_watched_only_says_that_it_is_ready(
    name: str,
    value: str,
    manager: socket.socket,
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: trio.testing.MockClock,
) -> None:
    monkeypatch.setenv(name, value)
    assert notify.ready()
    await trio.sleep(2 * WAIT_S)
    assert heard(manager) == [b"READY=1"]


async def test_a_manager_that_goes_away_does_no_harm(
    manager: socket.socket, autojump_clock: trio.testing.MockClock
) -> None:
    notify.ready()
    manager.close()
    await trio.sleep(2 * WAIT_S)
