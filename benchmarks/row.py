"""What a benchmark hands back: one row of the table, its gate and its verdict."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

# Odd, so that the median is one of the measured values; five is what the performance gates ask for.
ROUNDS = 5


@dataclass(frozen=True)
class Row:
    """One gate: `figure` must not be over `limit`, both in `unit`.

    `detail` holds the measured values behind the figure (the peer's too), for the JSON file.
    """

    gate: str
    what: str
    figure: float
    limit: float
    unit: str
    detail: dict[str, float] = field(default_factory=dict)

    @property
    def holds(self) -> bool:
        return self.figure <= self.limit


def median_of_rounds(measure: Callable[[], float]) -> float:
    """The median of ROUNDS calls of `measure`."""
    return statistics.median(measure() for _ in range(ROUNDS))


def as_table(rows: Sequence[Row]) -> str:
    """The rows as text for a terminal."""
    lines = [f"{'gate':5} {'what':58} {'figure':>10} {'at most':>10}  verdict"]
    for row in rows:
        figure, limit = f"{row.figure:.2f} {row.unit}", f"{row.limit:g} {row.unit}"
        verdict = "holds" if row.holds else "MISSED"
        lines.append(f"{row.gate:5} {row.what:58} {figure:>10} {limit:>10}  {verdict}")
    return "\n".join(lines)
