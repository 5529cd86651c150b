"""Tells the service manager that this program is ready: sd_notify(3)."""

from __future__ import annotations

import contextlib
import os
import socket

import trio

from .plain_unix import short_path

#: Seconds until the next attempt if the manager's queue is full.
READY_RETRY = 0.1


def ready() -> bool:
    """Sends READY=1 to the socket that NOTIFY_SOCKET names; False if it names none.

    Call it from within trio: if the manager does not read now, a task repeats the message until it
    is taken, so that nothing else waits for the manager.

    The variable is removed from the environment, so that children do not speak in this program's
    name. OSError if the socket is gone: the service manager then waits in vain, which the log
    should mention.
    """
    address = os.environ.pop("NOTIFY_SOCKET", "")
    if not address:
        return False
    if not _say(address, b"READY=1"):
        trio.lowlevel.spawn_system_task(_say_again, address)
    return True


async def _say_again(address: str) -> None:
    with contextlib.suppress(OSError):  # a manager that went away
        while True:
            await trio.sleep(READY_RETRY)
            if _say(address, b"READY=1"):
                return


def _say(address: str, words: bytes) -> bool:
    """Sends without waiting; False if the manager's queue is full, and nothing was sent."""
    kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    with socket.socket(socket.AF_UNIX, kind) as sock:
        try:
            if address.startswith("@"):  # Linux's abstract names
                sock.sendto(words, "\0" + address[1:])
            else:
                with short_path(address) as short:
                    sock.sendto(words, short)
        except BlockingIOError:
            return False
        return True
