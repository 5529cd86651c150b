"""A descriptor whose close(2) waits, as a hostile program may pass it."""

from __future__ import annotations

import array
import contextlib
import os
import socket
import struct
from collections.abc import Callable

import trio
from pedos_host._closing import open_in_all

from tests.patience import PATIENCE

#: A test that waits for this has failed.
SECONDS = 30


class Lingering:
    """A TCP socket with data that its other end does not read before `release`."""

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self._socket = socket.create_connection(listener.getsockname())
            self._other, _ = listener.accept()
        self._socket.setblocking(False)
        try:
            while True:
                self._socket.send(b"x" * 65536)
        except BlockingIOError:
            pass
        linger = struct.pack("ii", 1, SECONDS)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

    def fileno(self) -> int:
        return self._socket.fileno()

    def pass_by(
        self, connection: socket.socket, message: bytes = b"x", times: int = 1, flags: int = 0
    ) -> None:
        """Send it so that the receiver has the last reference."""
        rights = array.array("i", [self.fileno()] * times)
        connection.sendmsg([message], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)], flags)
        self.close()

    def close(self) -> None:
        """Ours, which is not the last."""
        self._socket.close()

    def release(self) -> None:
        """Whoever closes it does not wait any more."""
        # With bytes unread: that resets the connection.
        self._other.close()


def descriptors() -> int:
    """How many this process has."""
    return len(os.listdir("/proc/self/fd"))


def held(fd: int) -> Callable[[], int]:
    """Tells how many this process has of what `fd` is now, also after `fd` was closed. What other
    tests have left, which a thread may close meanwhile, does not count."""
    what = os.readlink(f"/proc/self/fd/{fd}")

    def count() -> int:
        found = 0
        for number in os.listdir("/proc/self/fd"):
            with contextlib.suppress(FileNotFoundError):
                found += os.readlink(f"/proc/self/fd/{number}") == what
        return found

    return count


def closing() -> int:
    """How many the threads of this process have still to close."""
    return open_in_all()


async def until(is_so: Callable[[], bool]) -> None:
    """Wait for what a thread that closes brings about."""
    with trio.fail_after(PATIENCE):
        while not is_so():  # noqa: ASYNC110
            await trio.sleep(0.001)
