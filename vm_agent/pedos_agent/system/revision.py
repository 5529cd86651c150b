"""A counter that tasks can wait on: many changes between two waits are one wake-up."""

from __future__ import annotations

import trio


class Revision:
    """Counts the changes of the agent's state (its devices, exports and imports)."""

    def __init__(self) -> None:
        """Start at 0, which no report has: the first state is already a change."""
        self.number = 0
        self._waiting = trio.lowlevel.ParkingLot()

    def bump(self) -> None:
        """Note one change."""
        self.number += 1
        self._waiting.unpark_all()

    async def after(self, seen: int) -> int:
        """Wait until the number differs from `seen`; return it."""
        while self.number == seen:
            await self._waiting.park()
        return self.number
