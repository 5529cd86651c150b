"""A small part of what `python -m tests.native.random_calls` does for as long as one likes."""

from __future__ import annotations

from tests.patience import PATIENCE

from .random_calls import AT_ONCE, many

CALLS = 60


async def test_every_byte_and_every_status_of_random_calls_is_right() -> None:
    await many(CALLS, 1, PATIENCE, AT_ONCE)
