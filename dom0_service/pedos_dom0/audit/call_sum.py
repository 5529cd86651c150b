"""What the log says of calls of services that have no lines of their own: one bounded sum.

What was called is done, so a number alone would leave out what the log is for. The sum names each
service with argument and target, how often it was started and how the calls ended, and the ids by
which `qvm-audit show` finds them. A VM chooses arguments at will, and where a rule allows all
services, their names, and cannot hide a service behind them: beyond a few arguments, a service's
calls are counted together, and a name that starts nothing has no place. What has no room for its
name is counted as well. A whole sum fits into one line of the log. No I/O and no clock here.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

import attrs

# Kinds of calls that are named with their argument: of one service in one VM, and of all. A program
# that calls without end mostly calls one thing.
ARGUMENTS_MAX = 4
EXACT_MAX = 10
# Services in a VM beyond these that are named without: more than a VM has that serves others.
REST_MAX = 10
# Different ends of one kind that are named; the rest is counted together. Statuses are the
# service's to choose.
OUTCOMES_MAX = 5
OTHER = "other"
# Characters of a name: real ones are shorter. With all bounds a sum has some 15 KB, of the 16 KiB
# that a line may have (log.py): beyond that it would lose a field.
SERVICE_SHOWN = 96
ARGUMENT_SHOWN = 48
OUTCOME_SHOWN = 36
_CUT = "..."
# Ids of 128 calls, the request's and the call's: as long as `qvm-calls` shows them, and in texts
# that the log does not cut.
IDS_MAX = 256
ID_SHOWN = 12
IDS_PER_TEXT = 16


class Called(NamedTuple):
    """What is called where. `argument` begins with a plus."""

    service: str
    argument: str
    target: str


@attrs.define
class _Kind:
    calls: int = 0
    outcomes: Counter[str] = attrs.field(factory=Counter)

    def ended(self, outcome: str) -> None:
        if outcome not in self.outcomes and len(self.outcomes) >= OUTCOMES_MAX:
            outcome = OTHER
        self.outcomes[outcome] += 1

    def fields(self) -> dict[str, Any]:
        return {"calls": self.calls, "outcomes": dict(self.outcomes)}


@attrs.define(eq=False)
class CallSum:
    """The calls of one VM within some time."""

    events: Counter[str] = attrs.field(factory=Counter)
    first: object = None
    last: object = None
    # With argument, and without: (service, target).
    _exact: dict[Called, _Kind] = attrs.field(factory=dict)
    _arguments: Counter[tuple[str, str]] = attrs.field(factory=Counter)
    _rest: dict[tuple[str, str], _Kind] = attrs.field(factory=dict)
    _unnamed: _Kind = attrs.field(factory=_Kind)
    _not_begun: _Kind = attrs.field(factory=_Kind)
    _ids: list[str] = attrs.field(factory=list)
    _ids_left_out: int = 0

    def note(
        self, event: str, request: str, *, is_new: bool = False, call_id: str | None = None
    ) -> None:
        """One line that is not written: the first about its call if `is_new`."""
        if not self.events:
            self.first = request
        self.last = request
        self.events[event] += 1
        if is_new:
            self._note_id(request)
        if call_id is not None:
            self._note_id(call_id)

    def began(self, called: Called | None) -> None:
        """A service was started; None if none was for a call that was allowed."""
        self._kind(called).calls += 1

    def ended(self, called: Called | None, outcome: str) -> None:
        """So it ended; None if no service was started."""
        self._kind(called).ended(outcome[:OUTCOME_SHOWN])

    def fields(self) -> dict[str, Any]:
        """Fields of its line."""
        calls = [
            {
                "service": _cut(called.service, SERVICE_SHOWN),
                "argument": _cut(called.argument, ARGUMENT_SHOWN),
                "target": called.target,
                **kind.fields(),
            }
            for called, kind in self._exact.items()
        ]
        calls += [
            {"service": _cut(service, SERVICE_SHOWN), "target": target, **kind.fields()}
            for (service, target), kind in self._rest.items()
        ]
        ids = [
            " ".join(self._ids[at : at + IDS_PER_TEXT])
            for at in range(0, len(self._ids), IDS_PER_TEXT)
        ]
        others = {"not_named": self._unnamed, "not_begun": self._not_begun}
        return {
            "events": dict(self.events),
            "calls": calls,
            **{name: kind.fields() for name, kind in others.items() if kind.calls or kind.outcomes},
            "first_request": self.first,
            "last_request": self.last,
            "ids": ids,
            **({"ids_left_out": self._ids_left_out} if self._ids_left_out else {}),
        }

    def _note_id(self, found: str) -> None:
        if len(self._ids) < IDS_MAX:
            self._ids.append(found[:ID_SHOWN])
        else:
            self._ids_left_out += 1

    def _kind(self, called: Called | None) -> _Kind:
        """Where a call is counted: the same for as long as this sum is."""
        if called is None:
            return self._not_begun
        found = self._exact.get(called)
        if found is not None:
            return found
        pair = (called.service, called.target)
        if len(self._exact) < EXACT_MAX and self._arguments[pair] < ARGUMENTS_MAX:
            self._arguments[pair] += 1
            return self._exact.setdefault(called, _Kind())
        if pair not in self._rest and len(self._rest) >= REST_MAX:
            return self._unnamed
        return self._rest.setdefault(pair, _Kind())


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[:most] + _CUT
