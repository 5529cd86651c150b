"""Which services are being started: of one source in one target, a few at a time. No I/O here.

An agent has its requests one after the other. A source that calls without end would fill its queue,
and the call of another source would wait for all of that. So dom0 keeps the queue, one for each
pair, and what the agent has of it is short.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Generic, TypeVar

import attrs

if TYPE_CHECKING:
    from collections.abc import Hashable

T = TypeVar("T")

# Services of one pair that are being started: one that the keeper spawns, one that the agent
# prepares meanwhile. More would not be started sooner.
AT_ONCE = 2


@attrs.define(eq=False)
class _Pair(Generic[T]):
    being_started: int = 0
    waiting: deque[T] = attrs.field(factory=deque)  # the slots (slots.py) bound it


class Starts(Generic[T]):
    """The starts of all pairs."""

    def __init__(self) -> None:
        self._pairs: dict[Hashable, _Pair[T]] = {}

    def begin(self, pair: Hashable, start: T) -> bool:
        """Whether it begins now; otherwise `over` returns it later."""
        found = self._pairs.get(pair)
        if found is None:
            found = self._pairs[pair] = _Pair()
        if found.being_started >= AT_ONCE:
            found.waiting.append(start)
            return False
        found.being_started += 1
        return True

    def over(self, pair: Hashable) -> T | None:
        """One has begun, or failed: returns the next one, which begins now."""
        found = self._pairs[pair]
        if found.waiting:
            return found.waiting.popleft()
        found.being_started -= 1
        if not found.being_started:
            del self._pairs[pair]
        return None

    def __len__(self) -> int:
        """The number of those that wait."""
        return sum(len(each.waiting) for each in self._pairs.values())
