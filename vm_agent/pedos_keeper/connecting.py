"""Connects to a service that listens: on a Unix socket, or on a TCP port."""

from __future__ import annotations

import errno
import os
import socket
import struct
from typing import Final, TypeAlias

from pedos_host.plain_unix import short_path

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


def connect(service: Listening, before: bytes) -> socket.socket:
    """A connection to the service, to which `before` has been sent. OSError.

    The socket is a blocking one without a time-out.
    """
    family = service.family if isinstance(service, TcpPort) else socket.AF_UNIX
    connected = socket.socket(family, socket.SOCK_STREAM)
    try:
        # The kernel's time-out and not Python's: the descriptor stays a blocking one. It is also
        # the only one that a full backlog of a Unix socket heeds.
        _set_timeout(connected, CONNECT_SECONDS)
        if isinstance(service, TcpPort):
            connected.connect((service.host, service.port))
            # Requests and answers of a few bytes, which the pump gathers already.
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        else:
            with short_path(service.path) as path:
                connected.connect(path)
        if before:
            connected.sendall(before, socket.MSG_NOSIGNAL)
        _set_timeout(connected, 0)
    except (BlockingIOError, InterruptedError) as error:
        connected.close()
        raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)) from error
    except BaseException:
        connected.close()
        raise
    return connected


def _set_timeout(connected: socket.socket, seconds: int) -> None:
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _TIMEVAL.pack(seconds, 0))
