"""The list of calls for dom0's user, with the bytes that the agents tell now."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio
from pedos_protocol.codec import FRAME_MAX, ITEMS_MAX
from pedos_protocol.errors import CallError
from pedos_protocol.messages import CallInfo, CallsListed
from pedos_protocol.schema import Room

from pedos_dom0.calls.adoption import running_calls
from pedos_dom0.errors import failure

if TYPE_CHECKING:
    from pedos_protocol.messages import RunningCall

    from pedos_dom0.calls.call import Call, CallTable
    from pedos_dom0.tables.agents import AgentLink

# Seconds for the agents to tell their bytes: a list does not wait for a VM that hangs.
BYTES_TIMEOUT = 1.0
# Lists that are made at once: each asks all agents that have calls.
LISTS_MAX = 8
# Bytes of a frame that are not the list.
ENVELOPE_MAX = 256


class CallListing:
    """Serves call.list."""

    def __init__(self, table: CallTable) -> None:
        self._table = table
        self._lists = 0

    async def __call__(self, after: int | None) -> CallsListed:
        """The calls after the one of that number, as many as one frame holds. CallError(busy)."""
        if self._lists >= LISTS_MAX:
            raise failure("busy", f"{LISTS_MAX} programs list calls already", hint="try again")
        self._lists += 1
        try:
            calls = self._table.after(-1 if after is None else after, ITEMS_MAX)
            told = await _told(calls)
        finally:
            self._lists -= 1
        room, listed = Room(FRAME_MAX - ENVELOPE_MAX), list[CallInfo]()
        for call in calls:
            info = _info(call, told.get(call.id))
            if not room.takes(info):
                break
            listed.append(info)
        last = listed[-1].number if listed else 0
        return CallsListed(tuple(listed), more=bool(listed) and bool(self._table.after(last, 1)))


async def _told(calls: list[Call]) -> dict[str, RunningCall]:
    """By call, what an agent says of it; the caller's, which sees all that has arrived, if both
    do."""
    told: dict[str, RunningCall] = {}
    by_id = {call.id: call for call in calls}
    links = {link for call in calls if call.channel for link in (call.source, call.server) if link}

    async def ask(link: AgentLink) -> None:
        try:
            running, _ = await running_calls(link)
        except CallError:
            return
        for each in running:
            call = by_id.get(each.call)
            is_its = call is not None and call.link_of(each.side) is link
            if is_its and (each.call not in told or each.side == "caller"):
                told[each.call] = each

    with trio.move_on_after(BYTES_TIMEOUT):
        async with trio.open_nursery() as nursery:
            for link in links:
                nursery.start_soon(ask, link)
    return told


def _info(call: Call, told: RunningCall | None) -> CallInfo:
    source = call.source.name
    return CallInfo(
        call=call.id,
        number=call.number,
        request=call.request,
        source=source,
        by="" if call.caller.audited == source else call.caller.audited,
        target=call.target,
        requested=call.requested,
        service=call.subject.service,
        argument=call.subject.argument,
        user=call.user,
        state=call.state,
        seconds=round(max(0.0, trio.current_time() - call.began), 3),
        stdin=None if told is None else told.stdin,
        stdout=None if told is None else told.stdout,
        stderr=None if told is None else told.stderr,
    )
