"""Unix sockets in trio; their paths may have any length (`plain_unix`)."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import struct
from typing import NamedTuple

import trio

from ._packets import accept_now
from .passed import closer
from .plain_unix import UCRED, bind_unix, short_path, uid_at
from .unix_stream import UnixStream

logger = logging.getLogger(__name__)

_GID = struct.Struct("I")  # a gid_t

#: asm-generic/socket.h (Linux 4.13); Python has no name for it.
SO_PEERGROUPS = 59

#: Bytes that Python's getsockopt takes: 256 groups, and a user is in a dozen.
GROUPS_SIZE = 1024

#: Seconds after which a listener without clients checks that its socket still has its name.
NAME_LOOK = 2.0

#: Seconds between two attempts to connect to a socket whose backlog is full.
BACKLOG_RETRY = 0.01


class _NamedSocket:
    """A listening socket that keeps its name, by which alone clients find it.

    If the name is deleted, or given to another file, the listener takes it again as soon as it
    notices, and logs that. If a live program listens there by then, it logs that and tries again.
    """

    _kind = socket.SOCK_STREAM

    def __init__(self, path: str | os.PathLike[str], mode: int, gid: int | None = None) -> None:
        """As `listen_unix`."""
        self._path = os.fspath(path)
        self._mode = mode
        self._gid = gid
        self._complaint = ""
        self._bind()

    def _bind(self) -> None:
        self._socket = bind_unix(self._path, self._mode, kind=self._kind, gid=self._gid)
        self._socket.setblocking(False)
        found = os.lstat(self._path)
        self._file = (found.st_dev, found.st_ino)

    async def accept_socket(self) -> socket.socket:
        """The next client's, which is non-blocking. OSError, trio.ClosedResourceError."""
        await trio.lowlevel.checkpoint_if_cancelled()
        has_waited = False
        while True:
            try:
                accepted = self.accept_now()
            except BlockingIOError:
                has_waited = True
                with trio.move_on_after(NAME_LOOK) as waiting:
                    await trio.lowlevel.wait_readable(self._socket)
                if waiting.cancelled_caught:
                    self.keep_name()
            else:
                if not has_waited:
                    await trio.lowlevel.cancel_shielded_checkpoint()
                return accepted

    def accept_now(self) -> socket.socket:
        """As `accept_socket`, without waiting: BlockingIOError if there is none."""
        client = socket.socket(socket.AF_UNIX, self._kind, 0, self.take_now()[0])
        client.setblocking(False)
        return client

    def take_now(self) -> tuple[int, int]:
        """As `accept_now`: the descriptor alone, and the user at the other end. Who waits without a
        task calls `keep_name` each NAME_LOOK seconds, after which `fileno` is another one."""
        if closer.is_full():
            raise OSError(errno.EMFILE, "what clients have passed is still being closed")
        try:
            return accept_now(self._socket.fileno())
        except BlockingIOError:
            raise
        except OSError:
            if self._socket.fileno() < 0:
                raise trio.ClosedResourceError from None
            raise

    def fileno(self) -> int:
        """For waiting only; -1 once closed."""
        return self._socket.fileno()

    async def aclose(self) -> None:
        """Stops listening, and leaves the socket's file."""
        self._stop()
        await trio.lowlevel.checkpoint()

    def close(self) -> None:
        """Stops listening, and removes the socket's file if it still belongs to this listener."""
        self._stop()
        if self._has_name():
            with contextlib.suppress(OSError):
                os.unlink(self._path)

    def _stop(self) -> None:
        if self._socket.fileno() >= 0:
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()

    def _has_name(self) -> bool:
        try:
            found = os.lstat(self._path)
        except OSError:
            return False
        return (found.st_dev, found.st_ino) == self._file

    def keep_name(self) -> None:
        """Take the name again if it is lost."""
        if self._has_name():
            return
        nameless = self._socket
        try:
            self._bind()
        except OSError as error:
            if str(error) != self._complaint:
                self._complaint = str(error)
                logger.critical(
                    "the socket %s was deleted or replaced, so that no client finds this program; "
                    "a new one cannot be made: %s",
                    self._path,
                    error,
                )
            return
        self._complaint = ""
        logger.warning("the socket %s was deleted or replaced; there is a new one", self._path)
        nameless.close()


class UnixListener(_NamedSocket, trio.abc.Listener[UnixStream]):
    """A listener for streams; see `_NamedSocket`."""

    async def accept(self) -> UnixStream:
        return UnixStream(await self.accept_socket())


class PacketListener(_NamedSocket):
    """A listener for connections of whole messages (SOCK_SEQPACKET); see `_NamedSocket`."""

    _kind = socket.SOCK_SEQPACKET


async def listen_unix(
    path: str | os.PathLike[str], mode: int, gid: int | None = None
) -> UnixListener:
    """A listening socket at `path` with the permission bits `mode`, and of the group `gid` if that
    is not this process's own.

    A stale socket is replaced in one step; OSError EADDRINUSE if a live program listens there,
    FileExistsError if the file is no socket. No client connects before the mode is right.
    """
    await trio.lowlevel.checkpoint()
    return UnixListener(path, mode, gid)


async def listen_packets(path: str | os.PathLike[str], mode: int) -> PacketListener:
    """As `listen_unix`, for clients that send and receive whole messages."""
    await trio.lowlevel.checkpoint()
    return PacketListener(path, mode)


async def connect_unix(path: str | os.PathLike[str]) -> trio.SocketStream:
    """A stream to the program that listens at `path`.

    FileNotFoundError if there is no socket, ConnectionRefusedError if it has no listener.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        while True:
            await trio.lowlevel.checkpoint()
            try:
                with short_path(path) as short:
                    sock.connect(short)
            except BlockingIOError:
                # The backlog is full; unlike for TCP, poll(2) cannot wait for room.
                await trio.sleep(BACKLOG_RETRY)
            else:
                return trio.SocketStream(trio.socket.from_stdlib_socket(sock))
    except BaseException:
        sock.close()
        raise


def peer_uid(stream: UnixStream | trio.SocketStream) -> int:
    """The user of the process at the other end, as the kernel noted it at the connection."""
    return uid_at(stream.socket)


class Peer(NamedTuple):
    """Whose process is at the other end, as the kernel noted it at the connection; `groups` are
    both its own and its supplementary ones."""

    uid: int
    groups: frozenset[int]


def peer_credentials(stream: UnixStream | trio.SocketStream) -> Peer:
    """The user and the groups at the other end. OSError: the kernel does not tell all groups, as
    they are too many (ERANGE) or it is too old (ENOPROTOOPT)."""
    return credentials_at(stream.socket)


def credentials_at(connected: socket.socket | trio.socket.SocketType) -> Peer:
    """As `peer_credentials`, of a socket."""
    raw = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, UCRED.size)
    _, uid, gid = UCRED.unpack(raw)
    groups = connected.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, GROUPS_SIZE)
    more = (each for (each,) in _GID.iter_unpack(groups))
    return Peer(uid, frozenset((gid, *more)))
