"""service.call, call.list and call.end: what agents and dom0's user ask about calls of services."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pedos_dom0.calls import story
from pedos_dom0.calls.adoption import Adoption
from pedos_dom0.calls.broker import Broker
from pedos_dom0.calls.listing import CallListing
from pedos_dom0.errors import no_call

if TYPE_CHECKING:
    import trio
    from pedos_protocol.messages import (
        CallsListed,
        ChannelClosed,
        ServiceEnded,
        ServiceStarted,
    )

    from pedos_dom0.access.authorizer import Authorizer
    from pedos_dom0.access.callers import Caller
    from pedos_dom0.calls.ready import StartVm
    from pedos_dom0.state import State
    from pedos_dom0.tables.agents import AgentLink


class Calls:
    """Serves these, and takes what agents tell."""

    def __init__(
        self, state: State, nursery: trio.Nursery, authorizer: Authorizer, start_vm: StartVm
    ) -> None:
        self._state = state
        self.broker = Broker(state, nursery, authorizer, start_vm)
        self._adoption = Adoption(state, nursery, self.broker)
        self._listing = CallListing(self.broker.table)

    async def list(self, after: int | None) -> CallsListed:
        """See `CallListing`."""
        return await self._listing(after)

    async def end(self, caller: Caller, call_id: str) -> None:
        """Ends a call, whose last line in the audit log says who did. CallError(not_found) if there
        is none of that id."""
        call = self.broker.table.get(call_id)
        if call is None:
            raise no_call(call_id)
        await self.broker.ends.end(call, caller.audited)

    # What agents tell

    async def greet(self, link: AgentLink) -> None:
        """An agent has connected, and is not used yet."""
        await self._adoption.greet(link)

    def agent_gone(self, link: AgentLink) -> None:
        """The connection to an agent is over."""
        self._adoption.agent_gone(link)
        self.broker.ends.agent_gone(link)

    def started(self, link: AgentLink, said: ServiceStarted) -> None:
        self.broker.started(link, said.call)

    def ended(self, link: AgentLink, said: ServiceEnded) -> None:
        if not self.broker.ends.ended(link, said):
            story.ended_untold(self._state, link.name, said, self._adoption.ended(link, said.call))

    def channel_closed(self, link: AgentLink, said: ChannelClosed) -> None:
        self.broker.channels.closed(link, said.port)
