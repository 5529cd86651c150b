"""Connections to this VM's agent over which calls are made (`pedos_protocol.call_link`)."""

from __future__ import annotations

import array
import errno
import os
import socket
import struct
import threading
from collections.abc import Sequence
from typing import Final

from pedos_protocol.call_link import AGENT, DATAGRAM_MAX, Ended, Started, build, parse
from pedos_protocol.call_link import Call as CallMessage
from pedos_protocol.errors import LocalProtocolError, RemoteProtocolError
from pedos_protocol.sockets import CALL_SOCKETS, DEFAULT_SOCKET, call_socket_beside

# Seconds in which the agent accepts a new connection; one that works does so at once.
CONNECT_SECONDS: Final = 5
# Bytes of path in a sockaddr_un, less the final NUL (unix(7)).
SUN_PATH_MAX: Final = 107
_UCRED: Final = struct.Struct("iII")


class UnreachableError(OSError):
    """No agent can be asked at `filename`, or it has gone during the call."""


class Connection:
    """One connection, for one call after the other."""

    def __init__(self, path: str | None = None) -> None:
        """UnreachableError."""
        self.path, self._socket = _connect(path)
        #: Readable when the agent has said something, or has gone.
        self.fileno: Final = self._socket.fileno()

    def ask(self, message: CallMessage, descriptors: Sequence[int]) -> None:
        """Ask for a call. UnreachableError; ValueError if a text cannot be."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
        try:
            said = build(message)
        except LocalProtocolError as error:
            raise ValueError(str(error)) from error
        try:
            self._socket.sendmsg([said], rights)
        except OSError as error:
            raise self._gone() from error

    def hear(self) -> Started | Ended:
        """What the agent says next; waits for it. UnreachableError."""
        try:
            raw = self._socket.recv(DATAGRAM_MAX + 1)
        except OSError as error:
            raise self._gone() from error
        try:
            message = parse(raw, AGENT)
        except RemoteProtocolError as error:
            raise self._gone() from error
        assert isinstance(message, Started | Ended)
        return message

    def close(self) -> None:
        """Hang up: a call that is not over is aborted."""
        self._socket.close()

    def _gone(self) -> UnreachableError:
        return UnreachableError(errno.ECONNRESET, "this VM's agent has gone away", self.path)


_kept: Final = threading.local()


def take(path: str | None) -> tuple[Connection, bool]:
    """This thread's connection from the call before, or a new one; whether it is new.
    UnreachableError."""
    kept: Connection | None = getattr(_kept, "connection", None)
    asked = (path, os.getpid())  # a child process must not share its parent's
    _kept.connection = None
    if kept is not None and getattr(_kept, "asked", None) == asked:
        return kept, False
    return Connection(path), True


def keep(path: str | None, connection: Connection) -> None:
    """Keep it for this thread's next call."""
    _kept.connection = connection
    _kept.asked = (path, os.getpid())


def _connect(path: str | None) -> tuple[str, socket.socket]:
    last: UnreachableError | None = None
    for each in _places(path):
        try:
            return each, _connected(each)
        except OSError as error:
            why = error.strerror or str(error)
            last = UnreachableError(error.errno, f"cannot reach this VM's agent: {why}", each)
            if error.errno != errno.ENOENT:
                break
    assert last is not None
    raise last


def _places(path: str | None) -> Sequence[str]:
    if path is not None:
        return (path,)
    if named := os.environ.get("PEDOS_CALL_SOCKET"):
        return (named,)
    service = os.environ.get("PEDOS_SOCKET")
    if service and service != DEFAULT_SOCKET:
        return (call_socket_beside(service),)
    return CALL_SOCKETS


def _connected(path: str) -> socket.socket:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        # connect(2) on a Unix socket keeps to this time-out; Python's would make it non-blocking.
        patience = struct.pack("ll", CONNECT_SECONDS, 0)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, patience)
        _connect_to(made, path)
        _, uid, _ = _UCRED.unpack(
            made.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        )
        # The agent is root, or in local mode this user.
        if uid not in (0, os.getuid()):
            raise PermissionError(errno.EPERM, "the socket is another user's", path)
    except BaseException:
        made.close()
        raise
    return made


def _connect_to(made: socket.socket, path: str) -> None:
    if len(os.fsencode(path)) <= SUN_PATH_MAX:
        made.connect(path)
        return
    # The parent folder has a short name while it is open.
    folder, name = os.path.split(path)
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        made.connect(f"/proc/self/fd/{descriptor}/{name}")
    finally:
        os.close(descriptor)
