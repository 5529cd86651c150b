"""How much to do where a gate names a count: all of it, or enough for a quick run.

`python -m benchmarks --full` measures the counts that the gates name; without it a run takes a few
minutes. Rows give the measured count.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Effort:
    """Counts that `__main__` sets before anything is measured."""

    calls: int = 200_000  # of the long run: no stall, no drift
    reconnects: int = 2_000  # of the simulated agents
    agents: int = 1_000  # on one service
    service_calls: int = 2_000  # of services, 64 at once
    service_calls_long: int = 4_000  # of services, in the long run: nothing grows


FULL = Effort(calls=1_000_000, reconnects=10_000, service_calls=10_000, service_calls_long=100_000)
EFFORT = Effort()


def choose(effort: Effort) -> None:
    """Sets EFFORT, in place: other modules have it already."""
    vars(EFFORT).update(vars(effort))
