"""Turns: how many come at once, how fast the rest, and what giving up means for the others."""

from __future__ import annotations

import pytest
import trio
from pedos_dom0.tasks.rate_limit import RateLimit
from trio.abc import Clock


async def test_the_first_come_at_once_and_the_rest_at_the_rate(autojump_clock: Clock) -> None:
    limit = RateLimit(burst=3, per_second=2)
    times = []
    for _ in range(6):
        await limit.turn()
        times.append(trio.current_time())
    assert times == pytest.approx([0, 0, 0, 0.5, 1, 1.5])


async def test_turns_that_nobody_takes_hold_up_nobody(autojump_clock: Clock) -> None:
    limit = RateLimit(burst=1, per_second=1)
    await limit.turn()
    for _ in range(100):
        with trio.move_on_after(0) as scope:
            await limit.turn()
        assert scope.cancelled_caught
    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(limit.turn)
        await trio.sleep(0.5)
        nursery.cancel_scope.cancel()
    await limit.turn()
    assert trio.current_time() == pytest.approx(1)
