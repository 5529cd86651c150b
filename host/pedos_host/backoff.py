"""How long to wait before repeating something that failed."""

from __future__ import annotations

import math
from typing import Final

# Seconds after a failure until the next attempt, doubling: a shortage (descriptors, memory) is
# mostly over at once, and a device that stays unreadable must cost next to nothing.
BACKOFF_FIRST: Final = 0.2
BACKOFF_MAX: Final = 30.0


class Backoff:
    """The waits between attempts at something that fails temporarily, in seconds."""

    def __init__(self, first: float = BACKOFF_FIRST, most: float = BACKOFF_MAX) -> None:
        self._next = self._first = first
        self._most = most

    def after_failure(self) -> float:
        """Seconds until the next attempt; twice as many each time, up to `most`."""
        wait, self._next = self._next, min(2 * self._next, self._most)
        return wait

    def over(self) -> float:
        """The attempt succeeded; there is no next one, so the wait is infinite."""
        self._next = self._first
        return math.inf
