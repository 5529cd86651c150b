"""The clients of a local socket: accepted for as long as it listens, served or refused."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import trio
from pedos_host.system_errors import what_is_wrong
from pedos_host.throttle import throttle
from pedos_host.unix import UnixListener
from pedos_host.unix_stream import UnixStream
from pedos_protocol.errors import CallError

from pedos_vchan.refusal import refuse

logger = logging.getLogger(__name__)

#: Seconds until the next accept when the process is out of descriptors.
ACCEPT_RETRY = 0.1


async def serve_clients(
    listener: UnixListener,
    program: str,
    refusal: Callable[[UnixStream, int], CallError | None],
    serve: Callable[[UnixStream], Awaitable[None]],
) -> None:
    """Accepts until cancelled. The end of one client, however bad, does not affect others: `serve`
    must not raise, and closes the stream.

    `refusal` returns why a client is not served, given how many are served now; `program` is the
    name in the refusal.
    """
    served = 0

    async def client(stream: UnixStream) -> None:
        nonlocal served
        if (why := refusal(stream, served)) is not None:
            await refuse(stream, program, why)
            return
        served += 1
        try:
            await serve(stream)
        finally:
            served -= 1

    async with trio.open_nursery() as nursery:
        while True:
            try:
                stream = await listener.accept()
            except OSError as error:
                # Out of descriptors: connected clients continue, and free some.
                if (more := throttle.more("a client could not be accepted")) is not None:
                    logger.error("a client could not be accepted: %s%s", what_is_wrong(error), more)
                await trio.sleep(ACCEPT_RETRY)
            else:
                nursery.start_soon(client, stream)
