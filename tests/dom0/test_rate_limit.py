"""Turns: how many come at once, how fast the rest, and what giving up means for the others."""

from __future__ import annotations

import pytest
import trio
from pedos_dom0.connections.desktop_turns import REQUEST_RATE, DesktopTurns
from pedos_dom0.requests.api import TAKING
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


async def test_a_limit_is_whole_when_it_is_as_good_as_new(autojump_clock: Clock) -> None:
    limit = RateLimit(burst=3, per_second=2)
    assert limit.is_whole
    await limit.turn()
    await limit.turn()
    assert not limit.is_whole
    await trio.sleep(0.9)
    assert not limit.is_whole
    await trio.sleep(0.1)
    assert limit.is_whole


def test_what_takes_something_away_is_what_is_written_here() -> None:
    assert {"call.end", "device.detach", "device.mute", "device.unassign"} == TAKING


async def test_a_user_waits_for_its_own_requests_alone(autojump_clock: Clock) -> None:
    turns = DesktopTurns()
    burst, per_second = REQUEST_RATE
    for _ in range(burst):
        await turns.request(1000, "device.list")
    assert trio.current_time() == 0
    await turns.request(1000, "device.detach")
    await turns.request(1001, "device.list")
    assert trio.current_time() == 0
    await turns.request(1000, "device.list")
    await turns.more(1000)
    assert trio.current_time() == pytest.approx(2 / per_second)


async def test_of_users_who_are_quiet_nothing_is_kept(autojump_clock: Clock) -> None:
    turns = DesktopTurns()
    for uid in range(1000):
        await turns.request(uid, "device.list")
        await trio.sleep(1)
    assert len(turns._limits) <= 2
