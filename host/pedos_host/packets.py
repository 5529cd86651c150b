"""A connection over which whole messages pass, with descriptors (Unix, SOCK_SEQPACKET)."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Hashable, Iterator, Sequence

import trio

from ._packets import receive, send
from .passed import closer
from .plain_unix import uid_at
from .taking import until_room
from .unix import Peer, credentials_at


class PacketSocket:
    """One end of such a connection. What the other end passes beside its messages is taken, and
    closed by `passed.closer` unless it was asked for: it keeps this process waiting by no means,
    and cannot fill its table of descriptors."""

    def __init__(self, connected: socket.socket | int, owner: Hashable = None) -> None:
        """Takes the socket over, or a descriptor that does not block. `owner` is the one for
        `closer`, if it is not the user's id."""
        if isinstance(connected, socket.socket):
            connected.setblocking(False)
            connected = connected.detach()
        self._descriptor = connected  # -1 once closed
        self._owner = self.uid if owner is None else owner
        self._waiting = 0  # tasks that wait for a message

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)

    @property
    def uid(self) -> int:
        """The user of the process at the other end, as the kernel noted it at the connection."""
        with self._socket() as connected:
            return uid_at(connected)

    @property
    def credentials(self) -> Peer:
        """As `uid`, with its groups. OSError as `unix.peer_credentials`."""
        with self._socket() as connected:
            return credentials_at(connected)

    @contextlib.contextmanager
    def _socket(self) -> Iterator[socket.socket]:
        """It as Python has sockets, for what is rare. OSError once it is closed."""
        if self._descriptor < 0:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        connected = socket.socket(fileno=self._descriptor)
        try:
            yield connected
        finally:
            connected.detach()

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
        taken = receive(self._descriptor, limit + 1)
        passed = taken[1]
        if len(passed) > most + 1:
            self.discard(passed[most + 1 :])
            del passed[most + 1 :]
        return taken

    def discard(self, passed: Sequence[int]) -> None:
        """Close what has come."""
        if passed:
            closer.close(self._owner, passed)

    def fileno(self) -> int:
        """For waiting only; -1 once closed."""
        return self._descriptor

    def has_room(self) -> bool:
        """Whether what the other end passes may be taken; `until_room` waits for that."""
        return closer.has_room(self._owner)

    async def _take(self, limit: int, most: int) -> tuple[bytes, list[int]]:
        """The next message. Other tasks run once, and no more than once if nothing has come yet: an
        agent waits twice for each call of a service."""
        await trio.lowlevel.checkpoint_if_cancelled()
        is_first = True
        while True:
            if self._descriptor < 0:
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
                    await trio.lowlevel.wait_readable(self._descriptor)
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
        if self._descriptor < 0:
            raise trio.ClosedResourceError
        send(self._descriptor, message, descriptors)

    def finish(self) -> None:
        """Say that nothing more will be sent."""
        self._shut(socket.SHUT_WR)

    def hang_up(self) -> None:
        """End the connection, and keep the descriptor: a thread that reads it finds the end."""
        self._shut(socket.SHUT_RDWR)

    def _shut(self, how: int) -> None:
        with contextlib.suppress(OSError), self._socket() as connected:  # it has gone
            connected.shutdown(how)

    def close(self) -> None:
        """End the connection; a task that waits in `receive` gets trio.ClosedResourceError."""
        descriptor = self._descriptor
        if descriptor >= 0:
            if self._waiting:
                trio.lowlevel.notify_closing(descriptor)
            self._descriptor = -1
            closer.hang_up(self._owner, descriptor)
