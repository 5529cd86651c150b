"""The present speed of this machine's processor, for tests that bound processor time."""

from __future__ import annotations

import time

# What `_plain` takes on a machine of the kind for which the bounds were chosen.
PLAIN_S = 0.004


def _plain() -> float:
    before, number = time.thread_time(), 0
    for step in range(100_000):
        number += step % 7
    return time.thread_time() - before


def slowness() -> float:
    """How many times as long as there plain Python takes here; at least 1, so that nothing is
    allowed less on a fast machine."""
    return max(1.0, min(_plain() for _ in range(3)) / PLAIN_S)
