"""Tells the service manager that this program is ready, and then that it is alive: sd_notify(3).

Only the two words that we need. What is alive is the event loop: a loop that hangs sends nothing,
and systemd, which was told how long to wait (WatchdogSec=), kills the program and starts it again.
"""

from __future__ import annotations

import contextlib
import os
import socket

import trio

from .unix import short_path

#: Pings in the time that the manager waits. sd_watchdog_enabled(3) asks for 2; with one more, a
#: ping that a loaded machine delays does not cost a healthy program its life.
PINGS_PER_WAIT = 3


def ready() -> bool:
    """Sends READY=1 to the socket that NOTIFY_SOCKET names; False if it names none.

    If the manager watches this process (WATCHDOG_USEC, WATCHDOG_PID), WATCHDOG=1 is sent from now
    on for as long as the event loop turns: this must then be called from within trio.

    The variables are taken out of the environment, so that children do not speak in our name.
    OSError if the socket is gone: whoever started us will wait in vain, and should hear of it.
    """
    address = os.environ.pop("NOTIFY_SOCKET", "")
    wait = _watchdog_seconds()
    if not address:
        return False
    _say(address, b"READY=1")
    if wait is not None:
        # A system task: it goes on while everything else is taken down, and ends with the loop.
        trio.lowlevel.spawn_system_task(_stay_alive, address, wait / PINGS_PER_WAIT)
    return True


def _watchdog_seconds() -> float | None:
    """How long the manager waits for a ping of ours; None if it does not wait for any."""
    microseconds = os.environ.pop("WATCHDOG_USEC", "")
    pid = os.environ.pop("WATCHDOG_PID", "")
    if not (microseconds.isdecimal() and int(microseconds) > 0):
        return None
    # A pid that is not ours: it was inherited from a parent that is watched itself.
    return None if pid not in ("", str(os.getpid())) else int(microseconds) / 1_000_000


async def _stay_alive(address: str, seconds: float) -> None:
    while True:
        with contextlib.suppress(OSError):  # a manager that went away, or that is slow to read
            _say(address, b"WATCHDOG=1")
        await trio.sleep(seconds)


def _say(address: str, words: bytes) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        if address.startswith("@"):  # Linux's abstract names
            sock.sendto(words, "\0" + address[1:])
        else:
            with short_path(address) as short:
                sock.sendto(words, short)
