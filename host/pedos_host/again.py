"""How long to wait before something is tried again that has failed."""

from __future__ import annotations

import math
from typing import Final

# Seconds after a failure until the next attempt, doubling: what was lacking (descriptors,
# memory) is mostly there again at once, and a device that stays unreadable costs next to nothing.
AGAIN_FIRST: Final = 0.2
AGAIN_MAX: Final = 30.0


class Again:
    """The waits between attempts at something that fails for the time being."""

    def __init__(self) -> None:
        self._next = AGAIN_FIRST

    def after_failure(self) -> float:
        """Seconds until the next attempt; each time twice as many, up to AGAIN_MAX."""
        wait, self._next = self._next, min(2 * self._next, AGAIN_MAX)
        return wait

    def over(self) -> float:
        """It works; there is no next attempt, so infinitely many seconds."""
        self._next = AGAIN_FIRST
        return math.inf
