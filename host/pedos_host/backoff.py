"""How long to wait before repeating something that failed."""

from __future__ import annotations

import math
from typing import Final

# Seconds after a failure until the next attempt, doubling: a shortage (descriptors, memory) is
# mostly over at once, and a device that stays unreadable must cost next to nothing.
BACKOFF_FIRST: Final = 0.2
BACKOFF_MAX: Final = 30.0


class Backoff:
    """The waits between attempts at something that fails temporarily."""

    def __init__(self) -> None:
        self._next = BACKOFF_FIRST

    def after_failure(self) -> float:
        """Seconds until the next attempt; twice as many each time, up to BACKOFF_MAX."""
        wait, self._next = self._next, min(2 * self._next, BACKOFF_MAX)
        return wait

    def over(self) -> float:
        """The attempt succeeded; there is no next one, so the wait is infinite."""
        self._next = BACKOFF_FIRST
        return math.inf
