"""A stream between programs of one machine, one of which may be hostile."""

from __future__ import annotations

import socket
from typing import Final

import trio

from .passed import closer
from .plain_unix import uid_at
from .taking import ROOM, descriptors, until_room

# Bytes of a read for which nobody asks for a number.
_READ: Final = 65536


class UnixStream(trio.abc.HalfCloseableStream):
    """As trio.SocketStream, for an accepted connection: what its other end passes beside the bytes
    is closed by `passed.closer`, and keeps nobody waiting."""

    def __init__(self, connected: socket.socket) -> None:
        """Takes the socket over."""
        # Else what comes with MSG_OOB is passed over unseen, and closed in this thread.
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        self._raw = connected
        self._stream = trio.SocketStream(trio.socket.from_stdlib_socket(connected))
        self._owner = uid_at(connected)

    @property
    def socket(self) -> trio.socket.SocketType:
        """trio's."""
        return self._stream.socket

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """See trio.abc.SendStream."""
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        """See trio.abc.SendStream."""
        await self._stream.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        """See trio.abc.HalfCloseableStream."""
        await self._stream.send_eof()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """See trio.abc.ReceiveStream."""
        size = _READ if max_bytes is None else max_bytes
        try:
            if not closer.has_room(self._owner):
                await until_room(self._owner)
            data, rights, _, _ = await self.socket.recvmsg(size, ROOM, socket.MSG_CMSG_CLOEXEC)
        except OSError as error:
            if self._raw.fileno() < 0:
                raise trio.ClosedResourceError from error
            raise trio.BrokenResourceError(f"socket connection broken: {error}") from error
        if rights:
            closer.close(self._owner, descriptors(rights))
        return data

    async def aclose(self) -> None:
        """See trio.abc.AsyncResource."""
        if self._raw.fileno() >= 0:
            trio.lowlevel.notify_closing(self._raw)
            closer.hang_up(self._owner, self._raw.detach())
        await trio.lowlevel.checkpoint()
