"""Which devices come first where not all of a VM's can be looked at or reported."""

from __future__ import annotations

from collections.abc import Callable, Collection

from pedos_agent.inventory.report import Key
from pedos_agent.system.revision import Revision


class Priority:
    """What is lent comes first, then what dom0 wishes to know of, then what is listed already: so
    plugging in others pushes none of these out.

    `lent` and `known` say what these are; the agent and its inventory set them.
    """

    def __init__(self) -> None:
        self.lent: Callable[[], Collection[Key]] = lambda: ()
        self.known: Callable[[], Collection[Key]] = lambda: ()
        self._preferred: frozenset[Key] = frozenset()
        self.wishes = Revision()  # changes of what dom0 wishes to know of
        self._heeded = Revision()  # the looks of a discovery that cannot look at all
        self._heeded_wishes: int | None = None

    def ranks(self) -> dict[Key, int]:
        """The devices that come before others, the lowest number first."""
        ranks = dict.fromkeys(self.known(), 2)
        ranks.update(dict.fromkeys(self._preferred, 1))
        ranks.update(dict.fromkeys(self.lent(), 0))
        return ranks

    async def prefer(self, keys: Collection[Key]) -> None:
        """Take these as what dom0 wishes to know of; returns when a look that heeds them
        is over, or has failed: those that follow heed them as well."""
        if self._preferred != frozenset(keys):
            self._preferred = frozenset(keys)
            self.wishes.bump()
        while self._heeded_wishes is not None and self._heeded_wishes < self.wishes.number:
            await self._heeded.after(self._heeded.number)

    def heed(self, wishes: int) -> None:
        """A look is over, or has failed, that began when there had been that many wishes."""
        self._heeded_wishes = wishes
        self._heeded.bump()
