"""A connection over which whole messages pass, with descriptors (Unix, SOCK_SEQPACKET)."""

from __future__ import annotations

import array
import contextlib
import socket
from collections.abc import Callable, Sequence
from typing import Final

import trio

from .plain_unix import uid_at
from .unix import Peer, credentials_at

_DESCRIPTOR: Final = array.array("i").itemsize


def _descriptors(rights: Sequence[tuple[int, int, bytes]]) -> list[int]:
    found = array.array("i")
    for level, kind, data in rights:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            found.frombytes(data[: len(data) - len(data) % _DESCRIPTOR])
    return found.tolist()


class PacketSocket:
    """One end of such a connection. What the other end passes beside its messages is closed by the
    kernel, unseen, unless it was asked for: nobody can fill this process's table of descriptors."""

    def __init__(self, connected: socket.socket) -> None:
        """Takes the socket over."""
        self._socket = connected
        connected.setblocking(False)

    @property
    def uid(self) -> int:
        """The user of the process at the other end, as the kernel noted it at the connection."""
        return uid_at(self._socket)

    @property
    def credentials(self) -> Peer:
        """As `uid`, with its groups. OSError as `unix.peer_credentials`."""
        return credentials_at(self._socket)

    async def receive(self, limit: int) -> bytes:
        """The next message; b"" when the other end has closed, and for an empty one. Of a message
        with more than `limit` bytes, one more than these. OSError, trio.ClosedResourceError."""
        message, _ = await self._take(lambda: (self._socket.recv(limit + 1), []))
        return message

    async def receive_passing(self, limit: int, most: int) -> tuple[bytes, list[int]]:
        """As `receive`, with the descriptors that came with the message: at most so many, of more
        one too many. They are the caller's to close."""
        room = socket.CMSG_LEN((most + 1) * _DESCRIPTOR)  # the kernel closes what is more

        def take() -> tuple[bytes, list[int]]:
            flags = socket.MSG_CMSG_CLOEXEC
            message, rights, _, _ = self._socket.recvmsg(limit + 1, room, flags)
            return message, _descriptors(rights)

        return await self._take(take)

    async def _take(self, take: Callable[[], tuple[bytes, list[int]]]) -> tuple[bytes, list[int]]:
        """What `take` gets of the socket. Other tasks run once, and no more than once if nothing
        has come yet: an agent waits twice for each call of a service."""
        await trio.lowlevel.checkpoint_if_cancelled()
        is_first = True
        while True:
            if self._socket.fileno() < 0:
                raise trio.ClosedResourceError
            try:
                taken = take()
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._socket)
                is_first = False
                continue
            if is_first:
                await trio.lowlevel.cancel_shielded_checkpoint()
            return taken

    def send_now(self, message: bytes, descriptors: Sequence[int] = ()) -> None:
        """Send a message without waiting. BlockingIOError if the other end has not read enough of
        what was sent before; other OSError, trio.ClosedResourceError."""
        if self._socket.fileno() < 0:
            raise trio.ClosedResourceError
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
        flags = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
        self._socket.sendmsg([message], rights if descriptors else [], flags)

    def finish(self) -> None:
        """Say that nothing more will be sent."""
        with contextlib.suppress(OSError):  # it has gone
            self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """End the connection; a task that waits in `receive` gets trio.ClosedResourceError."""
        if self._socket.fileno() >= 0:
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()
