"""One call of a service, from the request to the last word about it; and the table of all."""

from __future__ import annotations

import os
from itertools import islice
from typing import TYPE_CHECKING, Final

import attrs
import trio
from pedos_protocol.messages import ServiceEnded

from pedos_dom0.access.authorizer import Consents

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pedos_protocol.errors import CallError
    from pedos_protocol.messages import CallState, EndKind, Side

    from pedos_dom0.access.callers import Caller
    from pedos_dom0.access.subjects import ServiceSubject
    from pedos_dom0.calls.channels import CallChannel, Permit
    from pedos_dom0.tables.agents import AgentLink


class Once:
    """As trio.Event, which is made when a task waits: mostly none does."""

    is_set = False
    _event: trio.Event | None = None

    def set(self) -> None:
        self.is_set = True
        if self._event is not None:
            self._event.set()

    async def wait(self) -> None:
        """No checkpoint if it is set already."""
        if not self.is_set:
            self._event = self._event or trio.Event()
            await self._event.wait()


@attrs.define(eq=False)
class Call:
    """What dom0 knows of a call.

    `source` is the connection to the caller's agent; `target` the VM that policy has chosen, None
    before that; `server` the connection to its agent, None before it is told of the call.
    """

    request: str
    source: AgentLink
    caller: Caller
    subject: ServiceSubject
    # What the caller named, with a word for nothing.
    requested: str
    # When it began, as trio counts.
    began: float
    # Its place among all calls, once it is in their table.
    number: int = 0
    # The user whom dom0's user named; then the one of the rule, or that one.
    user: str | None = None
    id: str = attrs.field(factory=lambda: os.urandom(16).hex())
    target: str | None = None
    server: AgentLink | None = None
    state: CallState = "asking"
    channel: CallChannel | None = None
    had_new_channel: bool = False
    # Seconds of each stage that is over.
    stages: dict[str, float] = attrs.field(factory=dict)
    # The caller gave up, or the call was ended, before it was answered: and why.
    stopped: str | None = None
    # Set with that, for a question to dom0's user.
    gone: trio.Event | None = None
    # What dom0's user has said about it.
    consents: Consents = attrs.field(factory=Consents)
    # What it waits for now, but for a question, until it is granted.
    scope: trio.CancelScope | None = None
    # What it holds of its channel's setting up, and until when its service has to be started.
    permit: Permit | None = None
    start_by: float = 0.0
    # The request is granted, or has failed.
    decided: Once = attrs.field(factory=Once)
    failure: CallError | None = None
    # The caller's agent has its answer, or will never get one.
    answered: Once = attrs.field(factory=Once)
    # What the service's agent has said about the start.
    has_started: bool = False
    not_started: CallError | None = None
    # Who had it ended, if somebody did.
    ended_by: str | None = None
    # Whether it has places among the calls that run (slots.py).
    has_places: bool = False
    # Whether the audit log has its beginning, and its end.
    began_is_told: bool = False
    end_is_told: bool = False
    # It is out of the table of calls: it has failed, or both sides are over.
    over: Once = attrs.field(factory=Once)
    # The last word of each side that is over.
    ends: dict[Side, ServiceEnded] = attrs.field(factory=dict)
    # When the last stage was over.
    _mark: float | None = attrs.field(default=None, init=False)

    def stage_over(self, name: str, now: float) -> None:
        """Notes how long it took since the last stage."""
        since = self.began if self._mark is None else self._mark
        self.stages[name] = self.stages.get(name, 0.0) + now - since
        self._mark = now

    def take_failure(self) -> CallError:
        """The failure, which there is, for the one who raises it: kept here as well, it would hold
        itself by its traceback, until the garbage collector comes."""
        failure, self.failure = self.failure, None
        assert failure is not None
        return failure

    def stop(self, why: str) -> None:
        """It is not to begin any more."""
        if self.stopped is None and not self.decided.is_set:
            self.stopped = why
            if self.gone is not None:
                self.gone.set()
            if self.scope is not None:
                self.scope.cancel()

    @property
    def pair(self) -> tuple[AgentLink, AgentLink | None]:
        """The two agents, once the call is granted."""
        return self.source, self.server

    def side_of(self, link: AgentLink) -> Side | None:
        """The side that this agent has; None if it has none. No VM calls itself."""
        if link is self.source:
            return "caller"
        return "service" if link is self.server else None

    def link_of(self, side: Side) -> AgentLink | None:
        """The agent that has this side, if one was told of the call."""
        return self.source if side == "caller" else self.server

    @property
    def is_over(self) -> bool:
        return len(self.ends) == 2


def ended_without_a_word(call: Call, kind: EndKind, text: str) -> ServiceEnded:
    """The end of a side whose agent does not tell it any more."""
    return ServiceEnded(
        call=call.id,
        kind=kind,
        status=0,
        text=text,
        stdin=0,
        stdout=0,
        stderr=0,
        started_s=None,
        seconds=max(0.0, trio.current_time() - call.began),
        reusable=False,
        reason=text,
    )


class CallTable:
    """All calls, in the order in which they began."""

    def __init__(self) -> None:
        self._calls: dict[str, Call] = {}
        #: `get(id)`: the call; None if there is none of this id.
        self.get: Final = self._calls.get
        self._last_number = 0

    def add(self, call: Call) -> None:
        self._last_number += 1
        call.number = self._last_number
        self._calls[call.id] = call

    def remove(self, call: Call) -> None:
        """Fine if it is not there."""
        self._calls.pop(call.id, None)
        call.over.set()

    def __iter__(self) -> Iterator[Call]:
        return iter(list(self._calls.values()))

    def __len__(self) -> int:
        return len(self._calls)

    def after(self, number: int, most: int) -> list[Call]:
        """The first of those with a greater number."""
        return list(islice((each for each in self._calls.values() if each.number > number), most))

    def of(self, link: AgentLink) -> list[Call]:
        """Those of which this agent has a side."""
        return [each for each in self._calls.values() if each.side_of(link) is not None]
