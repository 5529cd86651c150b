"""The end of calls: each of the two agents tells the end of its side, once.

When a connection to an agent ends, its sides of calls are over, and the agents of the other sides
are told. The audit log has the end of a call when both sides are over, or a while after the first.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import trio
from pedos_protocol.errors import CallError
from pedos_protocol.messages import ServiceKill, to_wire
from pedos_protocol.names import END_TEXT_MAX, harmless_text

from pedos_dom0 import errors
from pedos_dom0.calls import story
from pedos_dom0.calls.call import ended_without_a_word
from pedos_dom0.calls.wire import outcome_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from pedos_protocol.messages import EndKind, ServiceEnded, Side

    from pedos_dom0.calls.call import Call, CallTable
    from pedos_dom0.calls.channels import Channels
    from pedos_dom0.calls.slots import Slots
    from pedos_dom0.state import State
    from pedos_dom0.tables.agents import AgentLink

logger = logging.getLogger(__name__)

# Seconds for an agent to begin with the end of a call: milliseconds, unless it hangs. Then it is
# told again, as long as it is connected and has the call: when it goes on, it drops what is not
# waited for any more.
KILL_TIMEOUT = 10.0
# Seconds for both agents to tell that their sides are over, which dom0's user waits for: a command
# gives up after 10, and is to hear before that who has not.
CONFIRMED_SECONDS = 8.0
# Seconds that the service's agent has before the caller's is told that dom0's user ends a call. To
# an agent that hears it first from the other side, the caller has gone: which ends no service.
AHEAD = 1.0
# Seconds after the end of one side until the audit log has the end of the call, whatever the other
# side does: it may have a slow reader.
LATE_SECONDS = 5.0

# Ends that are remembered: an agent that has lost its connection tells its last 256 again, and two
# agents tell each.
HEARD_MAX = 1024

OTHER_GONE = "the agent of the other VM went away"
SIDES: tuple[Side, Side] = ("service", "caller")


class Ends:
    """Ends all calls."""

    def __init__(
        self,
        state: State,
        nursery: trio.Nursery,
        table: CallTable,
        slots: Slots,
        channels: Channels,
        service_over: Callable[[Call], None],
    ) -> None:
        """`service_over` is called when the service's side of a call is over."""
        self._state = state
        self._nursery = nursery
        self._table = table
        self._slots = slots
        self._channels = channels
        self._service_over = service_over
        # Calls of which one side has ended, and when the log has to have that.
        self._half_ended: dict[Call, float] = {}
        self._tells_late = False
        self._ending: set[Call] = set()  # whose agents are being told of what dom0's user wants
        # The ends that agents have told, by call and VM; the last ones.
        self._heard: dict[tuple[str, str], None] = {}

    def ended(self, link: AgentLink, ended: ServiceEnded) -> bool:
        """An agent tells the end of its side; False if dom0 does not know the call. One that was
        told before its connection was lost may be told again."""
        call = self._table.get(ended.call)
        if call is None:
            return (ended.call, link.name) in self._heard
        side = call.side_of(link)
        if side is None or call.channel is None:
            link.disconnect("it says that a call has ended which it does not have")
        else:
            self._heard[ended.call, link.name] = None
            if len(self._heard) > HEARD_MAX:
                del self._heard[next(iter(self._heard))]
            self.side_over(call, side, ended)
        return True

    def side_over(self, call: Call, side: Side, ended: ServiceEnded) -> None:
        """The last word about one side; any further one is none."""
        if side in call.ends:
            return
        call.ends[side] = ended
        call.state = "ending"
        if call.is_over:
            self._over(call)
        else:
            self._log_late(call)
        # After the channel is idle, so that a call which waits for the place takes that.
        assert call.target is not None
        if side == "caller":
            self._slots.caller_ended(call.source.name)
        else:
            self._slots.service_ended(call.source.name, call.target)
            self._service_over(call)

    def _over(self, call: Call) -> None:
        assert call.channel is not None
        self._table.remove(call)
        self._half_ended.pop(call, None)
        if call.ends["service"].reusable and call.ends["caller"].reusable:
            self._channels.give_back(call.channel)
        else:
            self._channels.close(call.channel)
        self._log_end(call)

    def _log_end(self, call: Call) -> None:
        ended = call.ends.get("service") or call.ends["caller"]
        if not call.began_is_told:
            is_known = ended.started_s is not None or ended.kind in ("exited", "signalled")
            story.began(
                self._state,
                call,
                "started"
                if is_known
                else outcome_of(call.failure)
                if call.failure is not None
                else f"{ended.kind}: {ended.text}",
            )
        story.ended(self._state, call)

    def _log_late(self, call: Call) -> None:
        """Has the end in the log after a while, if the other side does not end before."""
        self._half_ended[call] = self._state.time() + LATE_SECONDS
        if not self._tells_late:
            self._tells_late = True
            self._nursery.start_soon(self._late)

    async def _late(self) -> None:
        while self._half_ended:
            call, due = next(iter(self._half_ended.items()))
            await trio.sleep_until(due)
            if self._half_ended.pop(call, None) is None:
                continue
            self._log_end(call)
            if "service" not in call.ends and call.server is not None:
                # One that waits for something looks at no channel, and its agent would not notice.
                self.kill_soon(call.server, call, "lost", "the caller is gone")
        self._tells_late = False

    async def end(self, call: Call, by: str) -> None:
        """Ends a call for dom0's user: returns when it is over. CallError(timeout) names those
        whose agents have not told that by then; they have been asked."""
        text = "dom0's user ended the call"
        call.ended_by = by
        if not call.decided.is_set:
            call.stop(text)
        elif call not in self._ending:
            self._ending.add(call)
            self._nursery.start_soon(self._end_both, call, text)  # also if the user goes away
        with trio.move_on_after(CONFIRMED_SECONDS):
            await call.over.wait()
        if not call.over.is_set:
            links = [call.link_of(side) for side in SIDES if side not in call.ends]
            names = [link.name for link in links if link is not None]
            raise errors.call_goes_on(names, CONFIRMED_SECONDS)

    async def _end_both(self, call: Call, text: str) -> None:
        try:
            await call.answered.wait()  # or the caller's agent would not know it yet
            async with trio.open_nursery() as nursery:
                for side in SIDES:
                    link = call.link_of(side)
                    if side not in call.ends and link is not None:
                        is_told = trio.Event()
                        nursery.start_soon(self._kill, link, call, "problem", text, is_told)
                        with trio.move_on_after(AHEAD):
                            await is_told.wait()
        finally:
            self._ending.discard(call)

    def agent_gone(self, link: AgentLink) -> None:
        """The connection to an agent is over: the other sides of its calls end."""
        for call in self._table.of(link):
            if call.channel is None:
                call.stop(f"the agent of {link.name} went away")  # the caller's, before the answer
                continue
            for side in SIDES:
                if call.link_of(side) is link:
                    self._side_lost(call, side, link)
        self._channels.agent_gone(link)

    def _side_lost(self, call: Call, side: Side, link: AgentLink) -> None:
        if side in call.ends:
            return  # and the other side ends in its own time: a slow reader has all that was sent
        why = f"the agent of {link.name} went away"
        if side == "service" and not call.answered.is_set:
            call.failure = call.failure or errors.target_unreachable(
                link.name, "its agent went away"
            )
        self.side_over(call, side, ended_without_a_word(call, "lost", why))
        other: Side = "caller" if side == "service" else "service"
        other_link = call.link_of(other)
        if other not in call.ends and other_link is not None and call.answered.is_set:
            # Policy may have sent the call to a VM whose name the caller must not know.
            is_told = other == "service" or call.caller.kind.sees_all
            self.kill_soon(other_link, call, "lost", why if is_told else OTHER_GONE)

    def kill_soon(self, link: AgentLink, call: Call, kind: EndKind, text: str) -> None:
        self._nursery.start_soon(self._kill, link, call, kind, text)

    async def _kill(
        self,
        link: AgentLink,
        call: Call,
        kind: EndKind,
        text: str,
        is_told: trio.Event | None = None,
    ) -> None:
        """Has an agent end its side; never raises."""
        params = to_wire(ServiceKill(call.id, kind, 0, harmless_text(text, END_TEXT_MAX)))
        is_late = False
        while True:
            due = trio.current_time() + KILL_TIMEOUT
            try:
                await link.call("service.kill", params, timeout=KILL_TIMEOUT)
                break
            except CallError as error:
                if not is_late:
                    logger.info("%s does not end a call: %s", link.name, error.message)
                is_late = error.code == "timeout" and call.side_of(link) not in call.ends
                if not is_late:
                    break
            await trio.sleep_until(due)  # an agent may say at once that it is late
        if is_told is not None:
            is_told.set()
