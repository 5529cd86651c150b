"""The data channel of a device that the agents carry: the source listens, the target connects."""

from __future__ import annotations

import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import trio
from pedos_host.faultpoints import reach
from pedos_protocol.agent_messages import ExportStart, ImportStart
from pedos_protocol.errors import CallError
from pedos_vchan.channel import Channel
from pedos_vchan.pump import PumpResult, pump
from pedos_vchan.transport import Listener, Transport
from pedos_vchan.usbip import UsbipCheck

from pedos_agent.device_classes.lifetime import Lifetime

log = logging.getLogger(__name__)

# dom0 tells the target to connect as soon as the source listens; this is for a target that died
# meanwhile.
CLIENT_SECONDS: Final = 30.0
# The source already listens when dom0 tells the target to connect. If it does not, it has just
# failed, or its backlog is full for a moment.
CONNECT_SECONDS: Final = 1.0
RETRY_SECONDS: Final = 0.02


async def serve_target(
    lifetime: Lifetime,
    transport: Transport,
    params: ExportStart,
    orders: tuple[int, int],
    result: dict[str, Any],
    use: Callable[[Channel], Awaitable[None]],
    *beside: Callable[[], Awaitable[None]],
) -> None:
    """Listen for the one target, and have `use` move what goes over its channel, until an event
    ends `lifetime`. That is ready with `result` as soon as the target can connect, and `beside` run
    from then on. OSError."""
    with await transport.listen(params.peer, params.port, orders) as listener:
        await reach("export.listening")
        lifetime.ready(result)
        async with trio.open_nursery() as nursery:
            for each in beside:
                nursery.start_soon(each)
            nursery.start_soon(_serve, lifetime, listener, use)
            await lifetime.ending()
            nursery.cancel_scope.cancel()


async def _serve(
    lifetime: Lifetime, listener: Listener, use: Callable[[Channel], Awaitable[None]]
) -> None:
    channel = await from_target(listener, lifetime)
    if channel is None:
        return
    try:
        await reach("export.connected")
        await use(channel)
    finally:
        channel.close()


async def from_target(listener: Listener, lifetime: Lifetime) -> Channel | None:
    """The channel to the target; None if the target did not connect, which ends `lifetime`.
    OSError."""
    try:
        with trio.move_on_after(CLIENT_SECONDS):
            return await listener.accept()
    except trio.BrokenResourceError as error:  # the target's doing, and no fault of this agent
        lifetime.end(f"the target cannot connect: {error}")
        return None
    lifetime.end(f"the target did not connect within {CLIENT_SECONDS:g} s")
    return None


@asynccontextmanager
async def source_channel(transport: Transport, params: ImportStart) -> AsyncIterator[Channel]:
    """The channel to the source, which is closed at the end. Raises as `to_source`."""
    channel = await to_source(transport, params)
    try:
        await reach("import.connected")
        yield channel
    finally:
        channel.close()


async def to_source(transport: Transport, params: ImportStart) -> Channel:
    """The channel to the source; CallError if the source does not listen, OSError."""
    problem: OSError | None = None
    with trio.move_on_after(CONNECT_SECONDS):
        while True:
            try:
                return await transport.connect(params.peer, params.port)
            except (FileNotFoundError, ConnectionRefusedError) as error:
                problem = error
            await trio.sleep(RETRY_SECONDS)
    raise CallError(
        "failed", f"no channel to {params.backend}: {problem.strerror if problem else 'no answer'}"
    )


async def carry(
    channel: Channel, ours: socket.socket, *, check: UsbipCheck | None = None, alone: bool = False
) -> PumpResult:
    """Move all bytes between the channel and a socket, as `pump` does; the log says how many."""
    result = await pump(channel, ours.fileno(), ours.fileno(), check=check, alone=alone)
    log.info("sent %d and received %d bytes", result.bytes_to_ring, result.bytes_to_fd)
    return result
