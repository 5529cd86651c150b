"""The target's side of a borrowed microphone: the user's session offers it to programs, and the
pump joins it to the source.

It is borrowed by the VM and not by a session: where no user is logged in it waits for one. It ends
with the session that has it, so that no other user inherits it.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from typing import Final

import attrs
import trio
from pedos_host.faultpoints import reach
from pedos_protocol.agent_messages import ImportStart
from pedos_protocol.errors import CallError
from pedos_vchan.channel import Channel

from pedos_agent.device_classes.base import Host
from pedos_agent.device_classes.data_channel import carry, source_channel
from pedos_agent.device_classes.lifetime import Lifetime
from pedos_agent.device_classes.mic.link_server import LinkServer
from pedos_agent.device_classes.mic.session import Session
from pedos_agent.device_classes.mic.stream import Stream, end_after_pump, ends

#: Told with the reason, where no session could offer it yet.
WAITS: Final = "it is heard when that changes"


@attrs.define(eq=False)
class BorrowedMic:
    """A microphone of another VM; sound servers know it by a name of their own."""

    params: ImportStart
    host: Host
    link: LinkServer
    stream: Stream | None = None
    name: None = None

    async def run(self, lifetime: Lifetime) -> None:
        """See Borrowing."""
        ours, theirs = ends()
        with ours, theirs:
            try:
                note = None
                # Before the channel: a source never hears of what fails here.
                if (session := self.link.usable) is not None:
                    await self._offer(lifetime, session, theirs)
                else:
                    note = f"{self.link.lack}: {WAITS}"
                async with source_channel(self.host.transport, self.params) as channel:
                    await self._use(lifetime, channel, ours, theirs, note)
            finally:
                if self.stream is not None:
                    await self.stream.close()
        await reach("import.stopped")

    async def _use(
        self,
        lifetime: Lifetime,
        channel: Channel,
        ours: socket.socket,
        theirs: socket.socket,
        note: str | None,
    ) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._pump, lifetime, channel, ours)
            if note is not None:
                nursery.start_soon(self._offer_later, lifetime, theirs)
            await reach("import.ready")
            lifetime.ready({"note": note})
            await lifetime.ending()
            nursery.cancel_scope.cancel()

    async def _pump(self, lifetime: Lifetime, channel: Channel, ours: socket.socket) -> None:
        result = await carry(channel, ours)
        await end_after_pump(lifetime, result.why, self.stream)

    async def _offer(self, lifetime: Lifetime, session: Session, theirs: socket.socket) -> None:
        """Have a session offer it. CallError."""
        params = self.params
        self.stream = session.borrow(
            params.backend,
            params.device,
            params.description,
            theirs.fileno(),
            ended=lifetime.end,
        )
        theirs.close()
        await self.stream.ready()

    async def _offer_later(self, lifetime: Lifetime, theirs: socket.socket) -> None:
        session = await self.link.until_usable()
        try:
            await self._offer(lifetime, session, theirs)
        except CallError as error:
            lifetime.end(error.message)

    async def why_busy(self, lifetime: Lifetime) -> str | None:
        """See Borrowing. Never: nothing is lost when a microphone goes, and whoever takes it away
        wants not to be heard."""
        return None

    async def give_back(
        self,
        lifetime: Lifetime,
        *,
        may_refuse: bool,
        still_asked: Callable[[], Awaitable[None]],
    ) -> None:
        """See Borrowing."""
        await still_asked()
