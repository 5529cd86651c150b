"""Limits how fast one VM, or one user of the desktop, may make dom0 work.

The budget of a connection counts frames, whose costs differ. A page of 128 devices takes
milliseconds to check, and a listing as long to make. So these wait their turn: a correct agent,
which waits for its answers, never notices, and a VM that does not wait has 128 requests in flight
at once, which breaks the protocol and ends its connection.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Callable


class RateLimit:
    """Lets `burst` turns through at once, and after that `per_second` of them each second."""

    __slots__ = ("_burst", "_last", "_per_second", "_time")

    def __init__(
        self, *, burst: int, per_second: float, time: Callable[[], float] = trio.current_time
    ) -> None:
        self._burst = burst
        self._per_second = per_second
        self._last = -math.inf
        self._time = time

    @property
    def is_whole(self) -> bool:
        """As good as a new one: as many turns as ever may be taken at once. Nobody waits."""
        return self._last + self._burst / self._per_second <= self._time()

    async def turn(self) -> None:
        """Returns when it is the caller's turn; turns come in the order of the calls.

        No checkpoint if that is now: a handler that need not wait costs its peer no task.
        """
        now = self._time()
        interval = 1 / self._per_second
        self._last = max(self._last + interval, now - (self._burst - 1) * interval)
        if self._last > now:
            try:
                await trio.sleep_until(self._last)
            except trio.Cancelled:
                # An abandoned turn goes to the next caller: otherwise a caller that asks and gives
                # up without end would make all others behind the same limit wait for minutes.
                self._last -= interval
                raise
