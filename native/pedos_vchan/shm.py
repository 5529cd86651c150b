"""Vchan between processes of one machine: a listener and a connector by (domain, port).

The rendezvous is a Unix socket `SERVER-CLIENT-PORT.sock`. The server sends a sealed memfd and two
eventfds over it, the client checks and maps them and answers with one byte. The connection then
stays open and silent: its hang-up is how each side learns that the other one died.
"""

from __future__ import annotations

import array
import contextlib
import errno
import os
import socket
import struct
from typing import TYPE_CHECKING

import trio
from pedos_host.plain_unix import bind_unix, short_path

from ._native import ffi, lib
from .addresses import (
    CONTROL_ORDER,
    CONTROL_PORT,
    DATA_ORDER,
    check_address,
    check_orders,
    is_data_port,
)
from .channel import Channel

if TYPE_CHECKING:
    from pathlib import Path

    from . import _native

__all__ = [
    "CONTROL_ORDER",
    "CONTROL_PORT",
    "DATA_ORDER",
    "Channel",
    "Listener",
    "connect",
    "listen",
]

# Both sides answer at once or not at all; this only bounds a peer that hangs.
HANDSHAKE_TIMEOUT = 5.0  # seconds
# A server serves one client; the others only wait for the refusal.
BACKLOG = 8

_MAGIC = b"PVCHAN\x00\x01"  # the last byte is the version of this handshake
_OFFER = struct.Struct("<8sIII")  # magic, server, client, port
_ACCEPTED = b"\x01"
_DESCRIPTORS = 3  # memfd, the eventfd that the client waits on, the one that it notifies


async def listen(
    directory: str | Path,
    domain: int,
    peer: int,
    port: int,
    *,
    order_left: int = CONTROL_ORDER,
    order_right: int = CONTROL_ORDER,
) -> Listener:
    """Makes domain's server for the one client domain peer; the socket exists when this returns.

    The orders are log2 of the bytes from client to server (left) and back (right), 10 to 20. A
    socket that a dead server left behind is replaced; a live one is ``OSError`` (EADDRINUSE).
    ``ValueError`` for impossible numbers or orders, or for a channel to oneself.
    """
    check_address(domain, peer, port)
    check_orders(order_left, order_right)
    await trio.lowlevel.checkpoint()
    name = f"{domain}-{peer}-{port}.sock"
    path = os.path.join(os.path.abspath(directory), name)
    listening = bind_unix(path, 0o600, BACKLOG)
    try:
        inode = os.lstat(path).st_ino
    except BaseException:
        listening.close()
        raise
    return Listener(
        listening,
        path,
        inode,
        (domain, peer, port),
        (order_left, order_right),
    )


def clear_data_ports(directory: str | Path, domain: int) -> None:
    """Removes the sockets that a killed program of this domain left on the ports that dom0 assigns.
    ``OSError``."""
    for name in os.listdir(directory):
        owner, _, rest = name.removesuffix(".sock").partition("-")
        if owner == str(domain) and is_data_port(rest.rpartition("-")[2]):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(directory, name))


class Listener:
    """A server that waits for its one client. Made by `listen`."""

    def __init__(
        self,
        listening: socket.socket,
        path: str,
        inode: int,
        address: tuple[int, int, int],
        orders: tuple[int, int],
    ) -> None:
        self._socket = trio.socket.from_stdlib_socket(listening)
        self._path = path
        self._inode = inode
        self._address = address
        self._orders = orders
        self._closed = False

    async def accept(self) -> Channel:
        """Waits for the client; closes the listener when it came.

        A client that does not finish the handshake within HANDSHAKE_TIMEOUT seconds is dropped, and
        the next one may try. ``trio.ClosedResourceError`` when the listener was or gets closed.
        """
        while True:
            if self._closed:
                raise trio.ClosedResourceError("this listener was already closed")
            try:
                connection, _ = await self._socket.accept()
            except OSError as error:
                if error.errno == errno.EBADF:
                    raise trio.ClosedResourceError("this listener was closed") from None
                if error.errno == errno.ECONNABORTED:
                    continue
                raise
            with connection:
                channel = await self._serve(connection)
            if channel is not None:
                self.close()
                return channel

    async def _serve(self, connection: trio.socket.SocketType) -> Channel | None:
        """One handshake, with rings of its own; None if the client did not complete it."""
        domain, peer, port = self._address
        holder = ffi.new("struct pv_channel **")
        fds = ffi.new("int[3]")
        error = lib.pv_shm_create(*self._orders, holder, fds)
        if error < 0:
            raise OSError(-error, os.strerror(-error))
        native = holder[0]
        try:
            try:
                offer = _OFFER.pack(_MAGIC, domain, peer, port)
                rights = array.array("i", list(fds))
                with trio.move_on_after(HANDSHAKE_TIMEOUT):
                    await connection.sendmsg(
                        [offer], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)]
                    )
                    answer = await connection.recv(1)
                    if answer == _ACCEPTED and lib.pv_channel_client_came(native):
                        live = socket.socket(fileno=connection.detach())
                        taken, native = native, None
                        with live:
                            return Channel(taken, live, domain=domain, peer_domain=peer, port=port)
            finally:
                os.close(fds[0])
                if native is not None:
                    lib.pv_channel_free(native)
        except (BrokenPipeError, ConnectionResetError):
            pass
        return None

    def close(self) -> None:
        """Stops listening and removes the socket's file, if it is still this listener's."""
        if self._closed:
            return
        self._closed = True
        with contextlib.suppress(OSError):
            if os.lstat(self._path).st_ino == self._inode:
                os.unlink(self._path)
        self._socket.close()

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


async def connect(directory: str | Path, domain: int, peer: int, port: int) -> Channel:
    """Opens domain's end of the channel whose server is the domain peer.

    ``FileNotFoundError`` or ``ConnectionRefusedError`` if no server is there (any more),
    ``TimeoutError`` if it does not answer within HANDSHAKE_TIMEOUT seconds, ``ConnectionError`` if
    what it sends is no channel that is safe to map, ``ValueError`` as for `listen`.
    """
    check_address(domain, peer, port)
    await trio.lowlevel.checkpoint()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as plain:
        with short_path(os.path.join(directory, f"{peer}-{domain}-{port}.sock")) as short:
            try:
                plain.connect(short)
            except BlockingIOError:
                raise ConnectionRefusedError(
                    errno.ECONNREFUSED, "too many clients wait for this server"
                ) from None
        connection = trio.socket.from_stdlib_socket(plain)
        with connection, trio.move_on_after(HANDSHAKE_TIMEOUT):
            try:
                native = await _join(connection, _OFFER.pack(_MAGIC, peer, domain, port))
            except (BrokenPipeError, ConnectionResetError):
                raise _gone() from None
            live = socket.socket(fileno=connection.detach())
            with live:
                return Channel(native, live, domain=domain, peer_domain=peer, port=port)
    raise TimeoutError(errno.ETIMEDOUT, f"no answer within {HANDSHAKE_TIMEOUT:g} seconds")


def _gone() -> ConnectionRefusedError:
    return ConnectionRefusedError(errno.ECONNREFUSED, "the server serves another client already")


async def _join(connection: trio.socket.SocketType, expected: bytes) -> _native.Channel:
    """The client's half of the handshake: checks everything that came, then attaches."""
    room = socket.CMSG_SPACE(_DESCRIPTORS * array.array("i").itemsize)
    untrusted_offer, untrusted_control, flags, _ = await connection.recvmsg(
        _OFFER.size, room, socket.MSG_CMSG_CLOEXEC
    )
    fds = array.array("i")
    for level, kind, payload in untrusted_control:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
    kept: set[int] = set()
    try:
        if not untrusted_offer and not fds:
            raise _gone()
        if untrusted_offer != expected:
            raise ConnectionError("the server offers another channel than was asked for")
        if flags & socket.MSG_CTRUNC or len(fds) != _DESCRIPTORS:
            raise ConnectionError("the server sent other descriptors than a channel needs")
        holder = ffi.new("struct pv_channel **")
        error = lib.pv_shm_join(fds[0], fds[1], fds[2], holder)
        if error == -errno.EPROTO:
            raise ConnectionError("the server's shared memory is not a sealed vchan ring")
        if error < 0:
            raise OSError(-error, os.strerror(-error))
        kept.update(fds[1:])
    finally:
        for fd in fds:
            if fd not in kept:
                os.close(fd)
    native: _native.Channel = holder[0]
    try:
        # One byte fits any socket buffer, so nothing can be cancelled half way here.
        await connection.send(_ACCEPTED)
    except BaseException:
        lib.pv_channel_free(native)
        raise
    return native
