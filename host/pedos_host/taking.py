"""What comes with a message: room for all of it, and when there is none.

With less room than it takes, the kernel would close what is more here and now (`passed`).
"""

from __future__ import annotations

import array
import errno
import socket
from collections.abc import Hashable, Sequence
from typing import Final

import trio

from .passed import closer

_DESCRIPTOR: Final = array.array("i").itemsize
#: For as many descriptors as the kernel passes with one message (SCM_MAX_FD).
ROOM: Final = socket.CMSG_SPACE(253 * _DESCRIPTOR)

# How long what was passed may take until it is closed, if it is too much, and how often to look.
BUSY_SECONDS: Final = 1.0
BUSY_LOOK: Final = 0.01


def descriptors(rights: Sequence[tuple[int, int, bytes]]) -> list[int]:
    """Those that recvmsg has returned."""
    found = array.array("i")
    for level, kind, data in rights:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            found.frombytes(data[: len(data) - len(data) % _DESCRIPTOR])
    return found.tolist()


async def until_room(owner: Hashable) -> None:
    """Wait until something that this owner passes may be taken. OSError if what it has passed
    before holds up its end."""
    for _ in range(round(BUSY_SECONDS / BUSY_LOOK)):
        if closer.has_room(owner):
            return
        await trio.sleep(BUSY_LOOK)
    raise OSError(errno.EBUSY, "what was passed before is still being closed")
