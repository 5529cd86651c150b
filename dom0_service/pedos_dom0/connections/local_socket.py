"""The socket of root's command line in dom0: checks each client, then serves it.

The file's mode already keeps other users out. SO_PEERCRED is checked as well, because an
administrator can get the mode of a folder wrong, and the socket gives all of dom0's authority over
devices.
"""

from __future__ import annotations

import contextlib
import logging
import os
from typing import TYPE_CHECKING

from pedos_host.throttle import throttle
from pedos_host.unix import UnixListener, listen_unix, peer_uid
from pedos_host.unix_stream import UnixStream
from pedos_vchan.clients import serve_clients

from pedos_dom0 import PROGRAM
from pedos_dom0.access.callers import DOM0_USER
from pedos_dom0.connections.client import serve_client, too_many_clients
from pedos_dom0.errors import failure

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import trio
    from pedos_protocol.errors import CallError

    from pedos_dom0.requests.api import Api

logger = logging.getLogger(__name__)

# The owner alone.
SOCKET_MODE = 0o600
# A script that runs many commands at once. Each client costs a descriptor and a task.
CLIENTS_MAX = 128


@contextlib.asynccontextmanager
async def listening(
    path: str, mode: int = SOCKET_MODE, gid: int | None = None
) -> AsyncIterator[UnixListener]:
    """The listening socket; at the end its file is removed, if it still belongs to this socket."""
    with contextlib.closing(await listen_unix(path, mode, gid)) as listener:
        yield listener


class LocalSocket:
    """Serves local clients with `api`."""

    def __init__(self, api: Api) -> None:
        self._api = api

    async def serve(self, listener: UnixListener) -> None:
        """Accepts until cancelled."""
        await serve_clients(listener, PROGRAM, _refusal, self.serve_client)

    async def serve_client(self, stream: trio.abc.Stream) -> None:
        """Serves one client until its connection ends."""
        await serve_client(self._api, DOM0_USER, stream)


def _refusal(stream: UnixStream, served: int) -> CallError | None:
    """Why a client is not served; None if it is."""
    if (uid := peer_uid(stream)) not in (0, os.getuid()):
        if (more := throttle.more("a stranger is refused")) is not None:
            why = "not root and not this user"
            logger.warning("a process of uid %d is refused: %s%s", uid, why, more)
        return _not_yours()
    if served >= CLIENTS_MAX:
        if (more := throttle.more("a client is refused")) is not None:
            logger.warning("a client is refused: %d are connected%s", served, more)
        return too_many_clients(CLIENTS_MAX)
    return None


def _not_yours() -> CallError:
    return failure("denied", "dom0's service serves root and its own user alone")
