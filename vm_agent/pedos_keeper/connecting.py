"""Connects to a service that listens: on a Unix socket, or on a TCP port."""

from __future__ import annotations

import errno
import os
import socket
import struct
from typing import Final, TypeAlias

from pedos_host import _link
from pedos_host.plain_unix import SUN_PATH_MAX, short_path

from pedos_keeper.lookup import TcpPort, UnixSocket

# Seconds. A service that listens is connected to at once; one with a full backlog, or behind a
# firewall that says nothing, must leave time for the answer within dom0's ten.
CONNECT_SECONDS: Final = 5
_TIMEVAL: Final = struct.Struct("@ll")

#: A service that is no process of the keeper's.
Listening: TypeAlias = UnixSocket | TcpPort


def name_of(service: Listening) -> str:
    """Where it listens, for people."""
    if isinstance(service, UnixSocket):
        return service.path
    return f"port {service.port} of {service.host}"


def connect(service: Listening, before: bytes) -> int:
    """A connection to the service, to which `before` has been sent: a blocking socket without a
    time-out. OSError."""
    if isinstance(service, TcpPort):
        return _connect_to_port(service, before)
    milliseconds = int(CONNECT_SECONDS * 1000)
    path = os.fsencode(service.path)
    if len(path) <= SUN_PATH_MAX:
        return _link.connect(path, before, milliseconds)
    with short_path(service.path) as short:
        return _link.connect(os.fsencode(short), before, milliseconds)


def _connect_to_port(service: TcpPort, before: bytes) -> int:
    connected = socket.socket(service.family, socket.SOCK_STREAM)
    try:
        # The kernel's time-out and not Python's: the descriptor stays a blocking one.
        _set_timeout(connected, CONNECT_SECONDS)
        connected.connect((service.host, service.port))
        # Requests and answers of a few bytes, which the pump gathers already.
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if before:
            connected.sendall(before, socket.MSG_NOSIGNAL)
        _set_timeout(connected, 0)
    except (BlockingIOError, InterruptedError) as error:
        connected.close()
        raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)) from error
    except BaseException:
        connected.close()
        raise
    return connected.detach()


def _set_timeout(connected: socket.socket, seconds: int) -> None:
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _TIMEVAL.pack(seconds, 0))
