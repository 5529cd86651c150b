"""sound: lent microphones in local mode, with each pair of sound servers."""

from __future__ import annotations

from . import sound_cost, sound_drift, sound_latency
from .row import Row
from .sound_pairs import pairs


def measure() -> list[Row]:
    with sound_drift.other_clock() as (env, rate), pairs(env) as running:
        rows = sound_cost.measure(running)
        rows += sound_latency.measure(running)
        return rows + sound_drift.measure(running, rate)
