"""Telling a client that it is not served, at no more cost than hanging up on it.

An answer would need the client's request, and waiting for that needs a task, a deadline and a bound
on the number of waits. A notice needs nothing of the client. It is in the client's buffer before
the connection ends, and a client first reads what is there, whatever becomes of what it sends.
"""

from __future__ import annotations

import contextlib
import os

import trio
from pedos_host.unix_stream import UnixStream
from pedos_protocol.connection import VERSIONS, Connection
from pedos_protocol.errors import CallError
from pedos_protocol.events import REFUSED, Hello, Notice


async def refuse(stream: UnixStream, program: str, why: CallError) -> None:
    """Says hello and the reason for the refusal, and hangs up; nothing that the client sends is
    read."""
    connection = Connection()
    said = connection.send(Hello(VERSIONS, program))
    params = {"code": why.code, "message": why.message, "data": why.data}
    said += connection.send(Notice(REFUSED, params))
    with contextlib.suppress(OSError):  # it has gone
        os.write(stream.socket.fileno(), said)  # far less than the buffer of a new socket
    await trio.aclose_forcefully(stream)
