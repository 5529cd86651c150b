"""Calls that go on over a restart of dom0's service: adopted by what the agents of both sides tell.

Each agent is asked once after it has connected, before it is used. A call that both sides tell
alike is a call again, which is recorded. A service whose caller's side is not known after a while
is told that its caller is gone. A caller's side waits for the other one, however long that takes,
and is not ended: if there is none, its channel ends, or has brought all that there was. Channels
without a call are closed: the pool begins empty.

Nothing of this survives in a file: an agent can invent a call only together with another agent, and
what these two could do with it they can do without.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import attrs
import trio
from pedos_protocol.errors import CallError, RemoteProtocolError
from pedos_protocol.messages import CallRunning, ServiceKill, parse_result, to_wire
from pedos_protocol.words import request_to

from pedos_dom0.tables.ports import Channel as PortUse

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pedos_protocol.messages import CallsRunning, RunningCall, Side

    from pedos_dom0.calls.broker import Broker
    from pedos_dom0.state import State
    from pedos_dom0.tables.agents import AgentLink

logger = logging.getLogger(__name__)

# Seconds for one page of an answer; an agent has it at hand.
RUNNING_TIMEOUT = 5.0
# Calls of one agent that are read: those of a caller and those of a target, as many as may run.
CALLS_MAX = 256
# Seconds for the other side's agent to connect: longer than a live one takes to come back.
OTHER_SIDE_TIMEOUT = 10.0

CALLER_GONE = "the caller does not know the call any more"


@attrs.frozen
class _Known:
    """One side, as its agent tells it."""

    link: AgentLink
    call: RunningCall


class Adoption:
    """Asks agents, and adopts."""

    def __init__(self, state: State, nursery: trio.Nursery, broker: Broker) -> None:
        self._state = state
        self._nursery = nursery
        self._broker = broker
        self._sides: dict[str, dict[Side, _Known]] = {}

    async def greet(self, link: AgentLink) -> None:
        """A new connection: sees to what its agent has, which is then told of calls."""
        if not link.serves("call.running"):
            return
        try:
            calls, ports = await running_calls(link)
        except CallError as error:
            # Later requests for what it has are as good as those for what has ended.
            logger.info("%s does not tell which calls it has: %s", link.name, error.message)
            return
        for port in ports:
            self._nursery.start_soon(self._broker.channels.tell_to_close, link, port)
        waiting = [call for call in calls if not self._take(link, call)]
        if served := [call for call in waiting if call.side == "service"]:
            self._nursery.start_soon(self._give_up_later, link, served)

    def ended(self, link: AgentLink, call_id: str) -> RunningCall | None:
        """A side ended by itself, that was not adopted; returns what one of both sides has told of
        the call, if one has."""
        sides = self._sides.get(call_id, {})
        told = next((known.call for known in sides.values()), None)
        for side, known in list(sides.items()):
            if known.link is link:
                self._forget(call_id, side)
        return told

    def agent_gone(self, link: AgentLink) -> None:
        for call_id in list(self._sides):
            self.ended(link, call_id)

    def _take(self, link: AgentLink, call: RunningCall) -> bool:
        """Adopts the call if the other side is known; otherwise keeps this side until it is."""
        if self._broker.table.get(call.call) is not None:
            return False  # of a connection that dom0 has lost: its sides are over
        sides = self._sides.setdefault(call.call, {})
        if call.side in sides:
            return False  # another VM says that this side is its own, or this one says it twice
        sides[call.side] = _Known(link, call)
        # So that the port is not used for another channel meanwhile.
        domids = (link.domid, call.peer) if call.side == "caller" else (call.peer, link.domid)
        self._state.leases.ports.open(_owner(call.call, call.side), PortUse(call.port, *domids))
        if len(sides) < 2 or not _agree(sides["caller"], sides["service"]):
            return False
        self._forget(call.call, "caller")
        self._forget(call.call, "service")
        self._broker.adopt(sides["caller"].link, sides["service"].link, sides["service"].call)
        return True

    def _forget(self, call_id: str, side: Side) -> None:
        sides = self._sides[call_id] = {
            each: known for each, known in self._sides[call_id].items() if each != side
        }
        if not sides:
            del self._sides[call_id]
        self._state.leases.ports.close(_owner(call_id, side))

    async def _give_up_later(self, link: AgentLink, calls: Iterable[RunningCall]) -> None:
        await trio.sleep(OTHER_SIDE_TIMEOUT)
        for call in calls:
            known = self._sides.get(call.call, {}).get(call.side)
            if known is None or known.link is not link:
                if self._is_adopted(link, call):
                    continue
            else:
                self._forget(call.call, call.side)
            if not link.lost:
                self._nursery.start_soon(self._kill, link, call)

    def _is_adopted(self, link: AgentLink, call: RunningCall) -> bool:
        adopted = self._broker.table.get(call.call)
        return adopted is not None and adopted.side_of(link) is not None

    async def _kill(self, link: AgentLink, call: RunningCall) -> None:
        params = to_wire(ServiceKill(call.call, "lost", 0, CALLER_GONE))
        try:
            await link.call("service.kill", params, timeout=RUNNING_TIMEOUT)
        except CallError as error:
            logger.info("%s does not end a call: %s", link.name, error.message)


async def running_calls(link: AgentLink) -> tuple[list[RunningCall], tuple[int, ...]]:
    """All calls of an agent, and the ports of its idle channels. CallError; a malformed answer ends
    the connection, and is CallError too."""
    calls: list[RunningCall] = []
    ports: tuple[int, ...] = ()
    while True:
        after = calls[-1].call if calls else None
        untrusted_answer = await link.call(
            "call.running", to_wire(CallRunning(after)), timeout=RUNNING_TIMEOUT
        )
        try:
            page = parse_result("call.running", untrusted_answer)
            _check(page, after)
        except RemoteProtocolError as error:
            link.disconnect(f"its answer to {request_to('call.running')} is malformed: {error}")
            raise CallError("failed", f"{link.name} gave a malformed answer") from error
        ports = ports or page.ports
        calls += page.calls
        if len(calls) > CALLS_MAX:
            link.disconnect(f"it has more than {CALLS_MAX} calls")
            raise CallError("failed", f"{link.name} has more than {CALLS_MAX} calls")
        if not page.more:
            return calls, ports


def _check(page: CallsRunning, after: str | None) -> None:
    """RemoteProtocolError if calls are not in order, or none: an agent could go on for ever."""
    last = after or ""
    if page.more and not page.calls:
        raise RemoteProtocolError("there are more calls than on a page that has none")
    for call in page.calls:
        if call.call <= last:
            raise RemoteProtocolError(f"call {call.call} is told out of order")
        last = call.call


def _agree(caller: _Known, service: _Known) -> bool:
    ours, theirs = caller.call, service.call
    return (
        (ours.peer, theirs.peer) == (service.link.domid, caller.link.domid)
        and ours.port == theirs.port
        and (ours.service, ours.argument) == (theirs.service, theirs.argument)
        and caller.link is not service.link
    )


def _owner(call_id: str, side: Side) -> str:
    """The name of the channel that a side tells in the table of ports, until it is adopted."""
    return f"{side} of call {call_id}"
