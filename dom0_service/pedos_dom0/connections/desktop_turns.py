"""How fast each user of dom0's desktop may make dom0 work: as fast as a VM, over all connections.

A widget or a command never notices, and a user's programs that ask without end wait for each other
instead of making root wait. What takes something away from a VM has turns of its own, so that it is
not behind thousands of questions.
"""

from __future__ import annotations

import trio

from pedos_dom0.requests.api import TAKING
from pedos_dom0.tasks.rate_limit import RateLimit

# Requests of one user, and again as many that take something away: (at once, per second after
# that). A widget asks ten times a second while devices change without end; a script as often as its
# commands start.
REQUEST_RATE = (64, 20.0)


class DesktopTurns:
    """Those of all users. Nothing is kept of a user who has been quiet."""

    def __init__(self) -> None:
        self._limits: dict[tuple[int, bool], RateLimit] = {}

    async def request(self, uid: int, method: str) -> None:
        """Returns when this user's next request may be served."""
        await self._limit(uid, takes_away=method in TAKING).turn()

    async def more(self, uid: int) -> None:
        """The same, before one more part of long work for a request."""
        await trio.lowlevel.checkpoint()
        await self._limit(uid, takes_away=False).turn()

    def _limit(self, uid: int, *, takes_away: bool) -> RateLimit:
        key = uid, takes_away
        if key not in self._limits:
            # A user with user namespaces has uids without end.
            self._limits = {each: at for each, at in self._limits.items() if not at.is_whole}
            self._limits[key] = RateLimit(burst=REQUEST_RATE[0], per_second=REQUEST_RATE[1])
        return self._limits[key]
