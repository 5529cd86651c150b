"""Which devices come first if not all of a VM's can be looked at or reported."""

from __future__ import annotations

from collections.abc import Callable, Collection

from pedos_agent.inventory.report import Key
from pedos_agent.system.revision import Revision


class Priority:
    """Lent devices come first, then those that dom0 prefers, then those that are listed already: so
    plugging in others pushes none of these out.

    `lent` and `known` return these; the agent and its inventory set them.
    """

    def __init__(self) -> None:
        self.lent: Callable[[], Collection[Key]] = lambda: ()
        self.known: Callable[[], Collection[Key]] = lambda: ()
        self._preferred: frozenset[Key] = frozenset()
        self.wishes = Revision()  # changes of dom0's preference
        self._heeded = Revision()  # the looks of a discovery that cannot look at all
        self._heeded_wishes: int | None = None

    def ranks(self) -> dict[Key, int]:
        """The devices that come before others, the lowest number first."""
        ranks = dict.fromkeys(self.known(), 2)
        ranks.update(dict.fromkeys(self._preferred, 1))
        ranks.update(dict.fromkeys(self.lent(), 0))
        return ranks

    async def prefer(self, keys: Collection[Key]) -> None:
        """Take these as dom0's preference; returns when a look that follows it is over, or has
        failed: later looks follow it as well."""
        if self._preferred != frozenset(keys):
            self._preferred = frozenset(keys)
            self.wishes.bump()
        while self._heeded_wishes is not None and self._heeded_wishes < self.wishes.number:
            await self._heeded.after(self._heeded.number)

    def heed(self, wishes: int) -> None:
        """A look is over, or has failed, that began when there had been that many wishes."""
        self._heeded_wishes = wishes
        self._heeded.bump()
