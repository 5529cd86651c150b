"""One client of a socket of dom0's service, of whichever socket: served until its connection
ends."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import trio
from pedos_host.throttle import throttle
from pedos_protocol.errors import RemoteProtocolError
from pedos_vchan.peer import Peer

from pedos_dom0 import PROGRAM
from pedos_dom0.errors import failure

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from pedos_protocol.errors import CallError

    from pedos_dom0.access.callers import Caller
    from pedos_dom0.requests.api import Api

logger = logging.getLogger(__name__)


async def serve_client(
    api: Api,
    caller: Caller,
    stream: trio.abc.Stream,
    turn: Callable[[str], Awaitable[None]] | None = None,
) -> None:
    """Serves it as `caller`. Each request awaits `turn` with its method. Never raises; closes the
    stream."""
    try:
        async with trio.open_nursery() as background:

            async def serve(
                peer: Peer, method: str, untrusted_params: dict[str, Any]
            ) -> dict[str, Any]:
                if turn is not None:
                    await turn(method)
                return await api.dispatch(caller, peer, method, untrusted_params, background)

            peer = Peer(
                stream, program=PROGRAM, handlers={}, default_handler=serve, name="a client"
            )
            await peer.run()
            background.cancel_scope.cancel()
    except* RemoteProtocolError as group:
        if (more := throttle.more(f"a client of {caller.audited}")) is not None:
            logger.warning(
                "a client of %s is disconnected, it broke the protocol: %s%s",
                caller.audited,
                _first(group),
                more,
            )
    except* trio.BrokenResourceError:
        logger.debug("a client went away")
    except* Exception as group:
        logger.error("a client's connection failed", exc_info=group)


def too_many_clients(most: int) -> CallError:
    """As many as a socket serves are connected."""
    return failure(
        "quota",
        f"{most} programs are connected to dom0's service, which is all that it takes",
        hint="end some of them: ss -xp shows which they are",
    )


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first error in a group, however deep."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
