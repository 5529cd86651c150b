"""sound: lent microphones in local mode, with each pair of sound servers."""

from __future__ import annotations

from . import sound_cost
from .row import Row
from .sound_pairs import pairs


def measure() -> list[Row]:
    with pairs() as running:
        return sound_cost.measure(running)
