"""The data channel of a device that the agents carry: the source listens, the target connects."""

from __future__ import annotations

import logging
import socket
from typing import Final

import trio
from pedos_protocol.agent_messages import ImportStart
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
    channel: Channel, ours: socket.socket, *, check: UsbipCheck | None = None
) -> PumpResult:
    """Move all bytes between the channel and a socket, as `pump` does; the log says how many."""
    result = await pump(channel, ours.fileno(), ours.fileno(), check=check)
    log.info("sent %d and received %d bytes", result.bytes_to_ring, result.bytes_to_fd)
    return result
