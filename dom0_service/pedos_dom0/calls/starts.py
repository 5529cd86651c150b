"""Which services are being started: of one source in one target, a few at a time. No I/O here.

A source that calls without end would fill its target's agent, keeper and processors, and the call
of another source would wait for all of that. So dom0 keeps the queue, one for each pair, and what
the target has of it is short. A start has its turn until its service has ended, or has run for a
moment. While another source calls in the same target, turns come one at a time, and a pair of
which calls wait rests after each, so that it has less than half of the target's time.
"""

from __future__ import annotations

from collections import Counter, deque
from typing import TYPE_CHECKING, Generic, TypeVar

import attrs

if TYPE_CHECKING:
    from collections.abc import Hashable

S = TypeVar("S")

# Services of one pair that have their turn while no other source calls in the target: as many as
# keep two processors busy, and as may be started in a second if each runs for longer than its turn
# (an agent asks for 600).
ALONE = 8
# Seconds that a service has its turn after it was started. A script that prints a line takes two
# milliseconds, and several times that on a busy machine.
TURN = 0.02
# And while it is being started: one whose keeper has to be started first, or hangs, takes longer,
# and does not hold up the others of its source.
STARTING = 0.25
# What a pair rests after a turn, beside another source, in the turn's time. With one of that it has
# more than half, as what its next call costs dom0's service comes before the turn.
RESTS = 2
# Beyond so many that hang it does: an agent takes a bounded number of requests, of all sources.
HANGING = 2
# Seconds for which a source counts as one that calls: longer than between two calls in a loop.
RECENT = 1.0


@attrs.define(eq=False)
class _Turn:
    since: float
    until: float
    is_started: bool = False


@attrs.define(eq=False)
class _Pair(Generic[S]):
    turns: dict[S, _Turn] = attrs.field(factory=dict)
    hanging: set[S] = attrs.field(factory=set)
    rests_until: float = 0.0
    waiting: deque[S] = attrs.field(factory=deque)  # the slots (slots.py) bound it


class Starts(Generic[S]):
    """The starts of all pairs of a source and a target. `now` is in seconds, and never less than
    before."""

    def __init__(self) -> None:
        self._pairs: dict[tuple[Hashable, Hashable], _Pair[S]] = {}
        self._waiting: dict[tuple[Hashable, Hashable], _Pair[S]] = {}  # those where some wait
        # When each pair has called last, in this order, and how many of them each target has.
        self._called: dict[tuple[Hashable, Hashable], float] = {}
        self._callers: Counter[Hashable] = Counter()

    def begin(self, pair: tuple[Hashable, Hashable], start: S, now: float) -> bool:
        """Whether it has its turn now; otherwise `next` returns it later."""
        self._note(pair, now)
        found = self._pairs.get(pair)
        if found is None:
            found = self._pairs[pair] = _Pair()
        elif found.waiting or not self._has_room(pair, found, now):
            found.waiting.append(start)
            self._waiting[pair] = found
            return False
        found.turns[start] = _Turn(now, now + STARTING)
        return True

    def started(self, pair: tuple[Hashable, Hashable], start: S, now: float) -> None:
        """Its service runs."""
        found = self._pairs.get(pair)
        if found is None:
            return
        found.hanging.discard(start)
        if (turn := found.turns.get(start)) is not None:
            turn.until, turn.is_started = now + TURN, True

    def over(self, pair: tuple[Hashable, Hashable], start: S, now: float) -> None:
        """Its service has ended, or does not start. Fine if it has no turn."""
        found = self._pairs.get(pair)
        if found is None:
            return
        found.hanging.discard(start)
        turn = found.turns.pop(start, None)
        if found.waiting:
            if turn is not None:
                # What takes longer mostly waits, and many starts together have ten seconds.
                found.rests_until = now + min(RESTS * (now - turn.since), TURN)
        elif not (found.turns or found.hanging):
            del self._pairs[pair]

    def next(self, now: float) -> S | None:
        """One that waits no longer: it has its turn now."""
        self._forget_earlier(now - RECENT)
        for pair, found in self._waiting.items():
            if self._has_room(pair, found, now):
                start = found.waiting.popleft()
                if not found.waiting:
                    del self._waiting[pair]
                found.turns[start] = _Turn(now, now + STARTING)
                return start
        return None

    def next_due(self) -> float | None:
        """When time alone lets one of those begin that wait; None if it does not."""
        due = None
        for pair, found in self._waiting.items():
            if len(found.hanging) < HANGING:
                at = min((turn.until for turn in found.turns.values()), default=found.rests_until)
                if not self._is_alone(pair):  # turns that are over count until the rest is, too
                    at = max(at, found.rests_until)
                due = at if due is None else min(due, at)
        return due

    def __len__(self) -> int:
        """The number of those that wait."""
        return sum(len(each.waiting) for each in self._waiting.values())

    def _note(self, pair: tuple[Hashable, Hashable], now: float) -> None:
        """A call of that pair."""
        if self._called.pop(pair, None) is None:
            self._callers[pair[1]] += 1
        self._called[pair] = now
        self._forget_earlier(now - RECENT)

    def _forget_earlier(self, moment: float) -> None:
        """Calls before that are not recent any more."""
        while self._called:
            oldest, when = next(iter(self._called.items()))
            if when >= moment:
                return
            del self._called[oldest]
            self._callers[oldest[1]] -= 1
            if not self._callers[oldest[1]]:
                del self._callers[oldest[1]]

    def _is_alone(self, pair: tuple[Hashable, Hashable]) -> bool:
        """Whether no other source calls in the target."""
        return self._callers[pair[1]] == (pair in self._called)

    def _has_room(self, pair: tuple[Hashable, Hashable], found: _Pair[S], now: float) -> bool:
        is_alone = self._is_alone(pair)
        if not is_alone and now < found.rests_until:
            return False
        most = ALONE if is_alone else 1
        if len(found.turns) >= most:
            for start, turn in list(found.turns.items()):
                if turn.until <= now:
                    del found.turns[start]
                    if not turn.is_started:
                        found.hanging.add(start)
        return len(found.turns) < most and len(found.hanging) < HANGING
