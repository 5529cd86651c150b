"""Calls that end while dom0's service is away: it is told of them when it is back."""

from __future__ import annotations

import pytest
from pedos_agent.calls import calls

from .calling_world import World


async def test_what_ended_meanwhile_is_told_once_after_what_runs(world: World) -> None:
    world.is_away = True
    ends = [(await world.run())[0].exit_status for _ in range(2)]
    assert ends == [3, 3]
    assert not world.told
    world.is_away = False
    answer = await world.order("call.running", after=None)
    assert answer["calls"] == [] and not world.told
    await world.until(lambda: len(world.ended()) == 2)
    assert [each["status"] for each in world.ended()] == [3, 3]
    await world.order("call.running", after=None)
    await world.run()
    await world.until(lambda: len(world.ended()) == 3)


async def test_it_is_kept_if_dom0_goes_again(world: World) -> None:
    world.is_away = True
    await world.run()
    await world.order("call.running", after=None)  # and goes before it can be told
    await world.run()
    world.is_away = False
    await world.order("call.running", after=None)
    await world.until(lambda: len(world.ended()) == 2)


async def test_the_oldest_are_lost_and_that_is_said(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(calls, "UNTOLD_MAX", 1)
    world.is_away = True
    for _ in range(2):
        await world.run()
    assert "will not hear how the call" in caplog.text
    world.is_away = False
    await world.order("call.running", after=None)
    await world.until(world.ended)
    assert len(world.ended()) == 1
