"""A connection over which whole messages pass, with descriptors (Unix, SOCK_SEQPACKET)."""

from __future__ import annotations

import array
import contextlib
import socket
from collections.abc import Hashable, Sequence
from typing import Final

import trio

from .passed import closer
from .plain_unix import uid_at
from .taking import ROOM, descriptors, until_room
from .unix import Peer, credentials_at

# As numbers: to combine the flags themselves takes a dozen function calls.
_RECEIVE: Final = int(socket.MSG_CMSG_CLOEXEC)
_SEND: Final = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)


class PacketSocket:
    """One end of such a connection. What the other end passes beside its messages is taken, and
    closed by `passed.closer` unless it was asked for: it keeps this process waiting by no means,
    and cannot fill its table of descriptors."""

    def __init__(self, connected: socket.socket, owner: Hashable = None) -> None:
        """Takes the socket over. `owner` is the one for `closer`, if it is not the user's id."""
        self._socket = connected
        self._owner = uid_at(connected) if owner is None else owner
        self._waiting = 0  # tasks that wait for a message
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
        message, _ = await self.receive_passing(limit, -1)
        return message

    async def receive_passing(self, limit: int, most: int) -> tuple[bytes, list[int]]:
        """As `receive`, with the descriptors that came with the message: at most so many, of more
        one too many. `discard` is for those of no use."""
        return await self._take(limit, most)

    def receive_passing_now(self, limit: int, most: int) -> tuple[bytes, list[int]]:
        """As `receive_passing`, without waiting, once `has_room`. BlockingIOError if no message is
        there."""
        message, rights, _, _ = self._socket.recvmsg(limit + 1, ROOM, _RECEIVE)
        if not rights:
            return message, []
        passed = descriptors(rights)
        if len(passed) > most + 1:
            self.discard(passed[most + 1 :])
            del passed[most + 1 :]
        return message, passed

    def discard(self, passed: Sequence[int]) -> None:
        """Close what has come."""
        if passed:
            closer.close(self._owner, passed)

    def fileno(self) -> int:
        """For waiting only; -1 once closed."""
        return self._socket.fileno()

    def has_room(self) -> bool:
        """Whether what the other end passes may be taken; `until_room` waits for that."""
        return closer.has_room(self._owner)

    async def _take(self, limit: int, most: int) -> tuple[bytes, list[int]]:
        """The next message. Other tasks run once, and no more than once if nothing has come yet: an
        agent waits twice for each call of a service."""
        await trio.lowlevel.checkpoint_if_cancelled()
        is_first = True
        while True:
            if self._socket.fileno() < 0:
                raise trio.ClosedResourceError
            if not self.has_room():
                await self.until_room()
                is_first = False
                continue
            try:
                taken = self.receive_passing_now(limit, most)
            except BlockingIOError:
                self._waiting += 1
                try:
                    await trio.lowlevel.wait_readable(self._socket)
                finally:
                    self._waiting -= 1
                is_first = False
                continue
            if is_first:
                await trio.lowlevel.cancel_shielded_checkpoint()
            return taken

    async def until_room(self) -> None:
        """Wait for it. OSError if what it has passed before holds up its end."""
        await until_room(self._owner)

    def send_now(self, message: bytes, descriptors: Sequence[int] = ()) -> None:
        """Send a message without waiting. BlockingIOError if the other end has not read enough of
        what was sent before; other OSError, trio.ClosedResourceError."""
        try:
            if descriptors:
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
                self._socket.sendmsg([message], rights, _SEND)
            else:
                self._socket.send(message, _SEND)
        except OSError:
            if self._socket.fileno() < 0:
                raise trio.ClosedResourceError from None
            raise

    def finish(self) -> None:
        """Say that nothing more will be sent."""
        with contextlib.suppress(OSError):  # it has gone
            self._socket.shutdown(socket.SHUT_WR)

    def hang_up(self) -> None:
        """End the connection, and keep the descriptor: a thread that reads it finds the end."""
        with contextlib.suppress(OSError):  # it has gone
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End the connection; a task that waits in `receive` gets trio.ClosedResourceError."""
        if self._socket.fileno() >= 0:
            if self._waiting:
                trio.lowlevel.notify_closing(self._socket)
            closer.hang_up(self._owner, self._socket.detach())
