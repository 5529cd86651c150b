"""The result of a benchmark: one row of the table, its gate and its verdict."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

# Odd, so that the median is one of the measured values; five is what the performance gates ask for.
ROUNDS = 5


@dataclass(frozen=True)
class Row:
    """One figure and its gate, both in `unit`.

    `figure` must not be over `limit`, or with `at_least` not under it; without a limit it is for
    information. `detail` holds the measured values behind it (the peer's too), for the JSON file.
    """

    gate: str
    what: str
    figure: float
    limit: float | None
    unit: str
    detail: dict[str, float] = field(default_factory=dict)
    at_least: bool = False

    @property
    def holds(self) -> bool:
        if self.limit is None:
            return True
        return self.figure >= self.limit if self.at_least else self.figure <= self.limit


def median_of_rounds(measure: Callable[[], float]) -> float:
    """The median of ROUNDS calls of `measure`."""
    return statistics.median(measure() for _ in range(ROUNDS))


def medians_in_turn(contenders: Mapping[str, Callable[[], float]]) -> dict[str, float]:
    """The median of ROUNDS calls of each; they take turns, so that a slow spell affects them
    all."""
    figures: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(ROUNDS):
        for name, measure in contenders.items():
            figures[name].append(measure())
    return {name: statistics.median(values) for name, values in figures.items()}


def as_table(rows: Sequence[Row]) -> str:
    """The rows as text for a terminal."""
    lines = [f"{'gate':5} {'what':64} {'figure':>12} {'gate':>15}  verdict"]
    for row in rows:
        figure = f"{row.figure:.2f} {row.unit}".strip()
        if row.limit is None:
            limit, verdict = "", ""
        else:
            limit = f"at {'least' if row.at_least else 'most'} {row.limit:g} {row.unit}".strip()
            verdict = "holds" if row.holds else "MISSED"
        lines.append(f"{row.gate:5} {row.what:64} {figure:>12} {limit:>15}  {verdict}".rstrip())
    return "\n".join(lines)
