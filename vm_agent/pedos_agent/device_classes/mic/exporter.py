"""The source's side of a lent microphone: the user's session records it while somebody listens, and
the pump joins that to the target."""

from __future__ import annotations

import socket

from pedos_host.faultpoints import reach
from pedos_protocol.agent_messages import ExportStart
from pedos_protocol.sound_link import Device
from pedos_vchan.channel import Channel

from pedos_agent.device_classes.base import Host
from pedos_agent.device_classes.data_channel import carry, serve_target
from pedos_agent.device_classes.hearing import Hearing
from pedos_agent.device_classes.lifetime import Lifetime
from pedos_agent.device_classes.mic.session import Session
from pedos_agent.device_classes.mic.stream import RING_ORDERS, Stream, end_after_pump, ends


async def lend(
    lifetime: Lifetime, params: ExportStart, device: Device, session: Session, host: Host
) -> None:
    """Lend `device` to the peer domain until an event ends `lifetime`. CallError, OSError."""
    hearing = lifetime.hearing = Hearing(host.heard, params.muted)
    vm = params.vm or f"domain-{params.peer}"  # an older dom0 does not name it
    ours, theirs = ends()
    with ours:
        with theirs:
            stream = session.lend(
                device,
                vm,
                hearing.muted,
                theirs.fileno(),
                ended=lifetime.end,
                heard=hearing.now,
            )
        hearing.tell = stream.mute
        try:
            await _lent(lifetime, params, host, stream, ours)
        finally:
            # Nothing goes to the target any more.
            await stream.close()
    await reach("export.stopped")


async def _lent(
    lifetime: Lifetime, params: ExportStart, host: Host, stream: Stream, ours: socket.socket
) -> None:
    await stream.ready()
    await reach("export.opened")

    async def use(channel: Channel) -> None:
        result = await carry(channel, ours)
        await end_after_pump(lifetime, result.why, stream)

    await serve_target(lifetime, host.transport, params, RING_ORDERS, {}, use)
