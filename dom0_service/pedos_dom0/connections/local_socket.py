"""The socket of dom0's command line and widget: checks each client, then serves it.

The file's mode already keeps other users out. SO_PEERCRED is checked as well, because an
administrator can get the mode of a folder wrong, and the socket gives all of dom0's authority over
devices.
"""

from __future__ import annotations

import contextlib
import logging
import os
from typing import TYPE_CHECKING, Any

import trio
from pedos_host.throttle import throttle
from pedos_host.unix import UnixListener, listen_unix, peer_uid
from pedos_protocol.errors import RemoteProtocolError
from pedos_vchan.clients import serve_clients
from pedos_vchan.peer import Peer

from pedos_dom0 import PROGRAM
from pedos_dom0.access.callers import DOM0_USER
from pedos_dom0.errors import failure

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from pedos_protocol.errors import CallError

    from pedos_dom0.requests.api import Api

logger = logging.getLogger(__name__)

# The owner alone.
SOCKET_MODE = 0o600
# A widget and a script that runs many commands at once. Each client costs a descriptor and a task.
CLIENTS_MAX = 128


@contextlib.asynccontextmanager
async def listening(path: str) -> AsyncIterator[UnixListener]:
    """The listening socket; at the end its file is removed, if it still belongs to this socket."""
    with contextlib.closing(await listen_unix(path, SOCKET_MODE)) as listener:
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
        try:
            async with trio.open_nursery() as background:

                async def serve(
                    peer: Peer, method: str, untrusted_params: dict[str, Any]
                ) -> dict[str, Any]:
                    return await self._api.dispatch(
                        DOM0_USER, peer, method, untrusted_params, background
                    )

                peer = Peer(
                    stream, program=PROGRAM, handlers={}, default_handler=serve, name="a client"
                )
                await peer.run()
                background.cancel_scope.cancel()
        except* RemoteProtocolError as group:
            logger.warning("a client is disconnected, it broke the protocol: %s", _first(group))
        except* trio.BrokenResourceError:
            logger.debug("a client went away")
        except* Exception as group:
            logger.error("a client's connection failed", exc_info=group)


def _refusal(stream: trio.SocketStream, served: int) -> CallError | None:
    """Why a client is not served; None if it is."""
    if (uid := peer_uid(stream)) not in (0, os.getuid()):
        if (more := throttle.more("a stranger is refused")) is not None:
            why = "not root and not this user"
            logger.warning("a process of uid %d is refused: %s%s", uid, why, more)
        return _not_yours()
    if served >= CLIENTS_MAX:
        if (more := throttle.more("a client is refused")) is not None:
            logger.warning("a client is refused: %d are connected%s", served, more)
        return _full()
    return None


def _not_yours() -> CallError:
    return failure("denied", "dom0's service serves root and its own user alone")


def _full() -> CallError:
    return failure(
        "quota",
        f"{CLIENTS_MAX} programs are connected to dom0's service, which is all that it takes",
        hint="end some of them: ss -xp shows which they are",
    )


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first error in a group, however deep."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
