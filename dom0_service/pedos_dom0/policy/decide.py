"""Decisions for one policy and one set of facts, each made once."""

from __future__ import annotations

from .decision import Decision, Request
from .evaluate import evaluate
from .snapshot import Snapshot
from .system import System

# Several thousand VMs and devices ask for the same thing again and again (a list is decided device
# by device); an entry takes about 500 bytes.
DECISIONS_KEPT = 8192
# Characters of a request's fields together: only shorter requests are remembered.
_LENGTH_MAX = 1024


class Decider:
    """`decide` is `evaluate`, remembered. For a new snapshot or new facts, make a new Decider.

    When it is full it forgets everything and starts again: that costs one decision each at worst,
    and a lookup has to write nothing.
    """

    __slots__ = ("_known", "snapshot", "system")

    def __init__(self, snapshot: Snapshot, system: System) -> None:
        self.snapshot = snapshot
        self.system = system
        self._known: dict[tuple[str, str, str, str], Decision] = {}

    def decide(self, service: str, argument: str, source: str, target: str) -> Decision:
        """As `evaluate(Request(service, argument, source, target), ...)`, without a trace."""
        key = (service, argument, source, target)
        try:
            found = self._known.get(key)
        except TypeError:  # it cannot be hashed, and so is no request
            found = None
        if found is not None:
            return found
        decision = evaluate(Request(service, argument, source, target), self.snapshot, self.system)
        # A text of another type may equal a remembered one, so it is not remembered.
        if all(type(text) is str for text in key) and sum(map(len, key)) <= _LENGTH_MAX:
            if len(self._known) >= DECISIONS_KEPT:
                self._known.clear()
            self._known[key] = decision
        return decision
