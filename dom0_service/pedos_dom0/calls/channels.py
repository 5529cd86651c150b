"""The channels of calls: made when a call needs one, kept for a while after it, closed in the end.

A channel belongs to the agents of two VMs: the caller's is its server, so that its own grants pay,
and it carries calls in that direction alone, one at a time. It dies with either connection to these
agents, as its calls do. A new one costs some sixty milliseconds under Xen, an idle one nothing.
"""

from __future__ import annotations

import logging
from itertools import count
from typing import TYPE_CHECKING

import attrs
import trio
from pedos_protocol.errors import CallError
from pedos_protocol.messages import ChannelClose, ChannelListen, to_wire

from pedos_dom0.errors import failure, too_many_set_up
from pedos_dom0.tables.ports import Channel as PortUse

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pedos_dom0.state import State
    from pedos_dom0.tables.agents import AgentLink

logger = logging.getLogger(__name__)

# Log2 of a ring's bytes, both ways: 128 KiB keep a pipe busy, and take 65 of the 1,024 pages that a
# domain may grant by default.
RING_ORDER = 17
# Idle channels of one pair of VMs, which a script's next call takes; and of one VM, whose grants
# they hold.
IDLE_PER_PAIR = 2
IDLE_PER_VM = 8
# Seconds after which an idle channel is closed.
IDLE_SECONDS = 60.0
# Channels that are set up at once for the calls of one VM: the rendezvous of each is transactions
# and watches in xenstore, of which a domain has 10 and 128.
SET_UP_AT_ONCE = 4
# And to one other VM: either can have it hang, and the other one has room for others then.
SET_UP_PER_PAIR = 2
# Seconds for an agent to listen, or to close: milliseconds, unless it hangs.
CHANNEL_TIMEOUT = 10.0


_numbers = count()
_NONE: dict[CallChannel, None] = {}


@attrs.define(eq=False)
class CallChannel:
    """An open channel. `idle_since` is None while a call has it."""

    port: int
    server: AgentLink
    client: AgentLink
    # Until a call has it: the client has not been told of it.
    is_new: bool = True
    idle_since: float | None = None
    is_closed: bool = False

    # Its name in the table of ports. A port alone is none: two VMs may claim one that others use.
    owner: str = attrs.field(factory=lambda: f"calls {next(_numbers)}")

    @property
    def ends(self) -> tuple[AgentLink, AgentLink]:
        return self.server, self.client


@attrs.define(eq=False)
class Permit:
    """See `Channels.permit`."""

    limiters: list[trio.CapacityLimiter] = attrs.field(factory=list)
    # The agent that has been asked for something, and has not answered.
    waits_for: AgentLink | None = None

    def release(self) -> None:
        """Safe to call twice."""
        for limiter in self.limiters:
            limiter.release_on_behalf_of(self)
        self.limiters.clear()


def _too_many(
    limiter: trio.CapacityLimiter, server: AgentLink, client: AgentLink | None, most: int
) -> CallError:
    """So many are being set up already: of the server, or of the pair."""
    holders = [each for each in limiter.statistics().borrowers if isinstance(each, Permit)]
    silent = sorted({each.waits_for.name for each in holders if each.waits_for is not None})
    return too_many_set_up(server.name, None if client is None else client.name, most, silent)


class Channels:
    """All channels of calls. `nursery` has the tasks that tell agents to close some."""

    def __init__(self, state: State, nursery: trio.Nursery) -> None:
        self._state = state
        self._nursery = nursery
        self._all: dict[CallChannel, None] = {}
        # The idle ones of each agent, at most IDLE_PER_VM, in the order of their last use.
        self._idle: dict[AgentLink, dict[CallChannel, None]] = {}
        # Of a server, and of a server and a client.
        self._setting_up: dict[tuple[AgentLink, ...], trio.CapacityLimiter] = {}
        self._sweeps = False

    def __iter__(self) -> Iterator[CallChannel]:
        return iter(list(self._all))

    def take_idle(self, server: AgentLink, client: AgentLink) -> CallChannel | None:
        """The one of this pair that was used last; it is a call's now."""
        for channel in reversed(self._idle.get(server, _NONE)):
            if channel.server is server and channel.client is client:
                self._use(channel)
                return channel
        return None

    def _use(self, channel: CallChannel) -> None:
        """It is not idle any more."""
        channel.idle_since = None
        for link in (channel.server, channel.client):
            idle = self._idle[link]
            del idle[channel]
            if not idle:
                del self._idle[link]

    async def permit(self, server: AgentLink, client: AgentLink, timeout: float) -> Permit:
        """The right to make and connect a channel between these agents, until it is released.
        CallError(busy) if others are being set up for longer than `timeout`.

        One that hangs, which either agent can bring about, takes places of the server and of the
        pair, so that a server holds up no other one in the client.
        """
        permit = Permit()
        deadline = self._state.time() + timeout
        # That of the pair first: what waits for it is not set up, and keeps no place of the server.
        for key, most in (((server, client), SET_UP_PER_PAIR), ((server,), SET_UP_AT_ONCE)):
            for link in (server, client):
                if link.lost:
                    permit.release()
                    raise failure("unavailable", f"{link.name} went away")
            limiter = self._setting_up.setdefault(key, trio.CapacityLimiter(most))
            try:
                with trio.move_on_at(deadline) as scope:
                    await limiter.acquire_on_behalf_of(permit)
                    permit.limiters.append(limiter)
            except trio.Cancelled:
                permit.release()
                raise
            if scope.cancelled_caught:
                permit.release()
                raise _too_many(limiter, server, client if len(key) == 2 else None, most)
        return permit

    async def make(self, server: AgentLink, client: AgentLink) -> CallChannel:
        """A new one, on which the server listens. CallError: it cannot."""
        try:
            return await self._listen(server, client)
        except CallError as error:
            if error.code != "quota" or not self._close_oldest_of(server):
                raise
        return await self._listen(server, client)

    async def _listen(self, server: AgentLink, client: AgentLink) -> CallChannel:
        ports = self._state.leases.ports
        channel = CallChannel(ports.next(), server, client)
        ports.open(channel.owner, PortUse(channel.port, server.domid, client.domid))
        self._all[channel] = None
        asked = ChannelListen(client.domid, channel.port, RING_ORDER, RING_ORDER)
        try:
            await server.call("channel.listen", to_wire(asked), timeout=CHANNEL_TIMEOUT)
        except BaseException:
            self.close(channel)
            raise
        if channel.is_closed:  # with one of the agents
            raise failure("unavailable", f"{server.name} or {client.name} went away")
        return channel

    def adopt(self, port: int, server: AgentLink, client: AgentLink) -> CallChannel:
        """One that a call has which an earlier run of this service has begun."""
        channel = CallChannel(port, server, client, is_new=False)
        self._state.leases.ports.open(channel.owner, PortUse(port, server.domid, client.domid))
        self._all[channel] = None
        return channel

    def give_back(self, channel: CallChannel) -> None:
        """Its call is over, and it may carry another one. It is kept if there is room, and for as
        long as its agents are connected."""
        if channel.is_closed:
            return
        server, client = channel.server, channel.client
        of_pair = 0
        for each in self._idle.get(server, _NONE):
            of_pair += each.client is client and each.server is server
        if server.lost or client.lost or of_pair >= IDLE_PER_PAIR:
            self.close(channel)
            return
        for link in (server, client):
            if len(idle := self._idle.get(link, _NONE)) >= IDLE_PER_VM:
                self.close(next(iter(idle)))
        channel.is_new, channel.idle_since = False, self._state.time()
        for link in (server, client):
            self._idle.setdefault(link, {})[channel] = None
        if not self._sweeps:
            self._sweeps = True
            self._nursery.start_soon(self._sweep)

    def unused(self, channel: CallChannel) -> None:
        """A call that has taken or made it does not begin."""
        if channel.is_new:  # nobody is going to connect
            self.close(channel)
        else:
            self.give_back(channel)

    def close(self, channel: CallChannel) -> None:
        """Has the agents that know of it close it, for as long as they are connected."""
        if self._forget(channel):
            for link in (channel.server,) if channel.is_new else channel.ends:
                if not link.lost:
                    self._nursery.start_soon(self.tell_to_close, link, channel.port)

    async def tell_to_close(self, link: AgentLink, port: int) -> None:
        """Has an agent close a channel; never raises."""
        try:
            params = to_wire(ChannelClose(port))
            await link.call("channel.close", params, timeout=CHANNEL_TIMEOUT)
        except CallError as error:
            logger.info("%s does not close a channel of calls: %s", link.name, error.message)

    def closed(self, link: AgentLink, port: int) -> None:
        """An agent says that one of its idle channels has ended."""
        for channel in list(self._idle.get(link, {})):
            if channel.port == port:
                self.close(channel)

    def agent_gone(self, link: AgentLink) -> None:
        """The connection to an agent is over, and with it its idle channels; others are closed when
        their calls are over."""
        for key in [each for each in self._setting_up if link in each]:
            del self._setting_up[key]
        for channel in list(self._idle.get(link, {})):
            self.close(channel)

    def _close_oldest_of(self, server: AgentLink) -> bool:
        """Makes room among the grants of a VM; whether there was an idle channel to close."""
        oldest = next((each for each in self._idle.get(server, {}) if each.server is server), None)
        if oldest is not None:
            self.close(oldest)
        return oldest is not None

    def _forget(self, channel: CallChannel) -> bool:
        if channel.is_closed:
            return False
        if channel.idle_since is not None:
            self._use(channel)
        channel.is_closed = True
        del self._all[channel]
        self._state.leases.ports.close(channel.owner)
        return True

    async def _sweep(self) -> None:
        """Closes what is idle for too long, until nothing is idle."""
        while True:
            idle = [each for each in self if each.idle_since is not None]
            if not idle:
                self._sweeps = False
                return
            now = trio.current_time()
            for channel in idle:
                assert channel.idle_since is not None
                if channel.idle_since + IDLE_SECONDS <= now:
                    self.close(channel)
            left = [each.idle_since for each in self if each.idle_since is not None]
            if left:
                await trio.sleep_until(min(left) + IDLE_SECONDS)
