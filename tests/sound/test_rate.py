"""The fill control of a borrowed microphone: two clocks meet, and what is late is made up for."""

from __future__ import annotations

import random
from statistics import median
from types import SimpleNamespace
from typing import Any

import pytest
from cffi import FFI
from hypothesis import given, settings
from hypothesis import strategies as st

from .c_library import library
from .rate_simulation import PER_MS, Cycle, Machine, Simulation, gaps

Make = Any


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[FFI, SimpleNamespace]:
    return library(tmp_path_factory.mktemp("rate"), "rate")


@pytest.fixture
def c(built: tuple[FFI, SimpleNamespace]) -> SimpleNamespace:
    return built[1]


@pytest.fixture
def rate(built: tuple[FFI, SimpleNamespace]) -> Any:
    state = built[0].new("struct rate *")
    built[1].rate_init(state)
    return state


@pytest.fixture
def simulate(built: tuple[FFI, SimpleNamespace]) -> Make:
    return lambda **how: Simulation(*built, Machine(**how))


def fill_ms(cycles: list[Cycle]) -> float:
    return median(each.fill for each in cycles) / PER_MS


# ---- two clocks


@pytest.mark.parametrize("quantum", [256, 480, 1024])
@pytest.mark.parametrize("ppm", [1000, 208, 0, -208, -1000])
def test_a_difference_of_clocks_is_known_to_100_ppm_after_half_a_minute(
    simulate: Make, ppm: int, quantum: int
) -> None:
    simulation = simulate(ppm=ppm, quantum=quantum)
    simulation.run(30)
    later = simulation.run(60)
    assert all(abs(each.correction - ppm) < 100 for each in later)
    assert simulation.rate.episodes == 0


@pytest.mark.parametrize("ppm", [1000, -1000])
def test_meanwhile_the_fill_stays_within_2_ms_of_its_target(simulate: Make, ppm: int) -> None:
    """So the delay stays within 5 ms also if it grows by a step for a late moment."""
    simulation = simulate(ppm=ppm)
    cycles = simulation.run(120)[20:]
    assert all(abs(each.fill - each.target) < 2 * PER_MS for each in cycles)
    assert 2 * PER_MS + simulation.c.RATE_EXTRA_STEP <= 5 * PER_MS
    assert not gaps(cycles)


def test_the_next_recording_knows_the_clocks_from_the_one_before(simulate: Make) -> None:
    simulation = simulate(ppm=500)
    simulation.run(120)
    simulation.c.rate_start(simulation.rate)
    assert all(abs(each.correction - 500) < 150 for each in simulation.run(20))


@pytest.mark.parametrize("ppm", [6000, -6000, 50_000, -50_000])
def test_more_than_it_may_correct_never_runs_away(simulate: Make, ppm: int) -> None:
    simulation = simulate(ppm=ppm)
    cycles = simulation.run(120)
    most = simulation.c.RATE_EXTRA_MAX + simulation.c.RATE_BASE + simulation.c.RATE_OVER
    assert max(each.fill for each in cycles) <= most + 2 * 480 + 256
    assert max(abs(each.correction) for each in cycles) <= 5000.001


# ---- arrivals that are late


def test_packets_that_jitter_by_8_ms_make_no_gap_and_hardly_move_the_rate(simulate: Make) -> None:
    chance = random.Random(1)
    simulation = simulate(ppm=-208, late=lambda n: chance.uniform(0, 8))
    start = simulation.run(60)
    later = simulation.run(300)
    assert not gaps(start[20:] + later)
    assert abs(median(each.correction for each in later) + 208) < 20
    assert all(abs(each.correction + 208) < 350 for each in later)  # a tenth of what is heard


def test_bursts_of_20_ms_make_no_gap_at_length(simulate: Make) -> None:
    simulation = simulate(packet=960)
    simulation.run(60)
    assert not gaps(simulation.run(60))


@pytest.mark.parametrize("stall", [45, 60, 98, 160])
def test_a_stall_of_the_machine_is_one_episode_and_changes_the_rate_little(
    simulate: Make, stall: float
) -> None:
    simulation = simulate(ppm=-208, stalls=((60_000, 60_000 + stall),))
    simulation.run(59.9)
    after = simulation.run(60)
    assert simulation.rate.episodes == 1
    c = simulation.c
    assert c.rate_target(simulation.rate) <= c.RATE_BASE + 256 + c.RATE_EXTRA_STEP
    assert len({round(each.ms / 1000) for each in gaps(after)}) == 1
    assert sum(each.wanted - each.played for each in gaps(after)) < (stall + 20) * PER_MS
    assert all(abs(each.correction + 208) < 600 for each in after)
    # The delay is back at the target at once, not minutes later.
    assert abs(fill_ms(after[300:500]) - (30 + 256 / PER_MS + 3)) < 2


def test_stalls_again_and_again_raise_the_target_to_its_bound_alone(simulate: Make) -> None:
    stalls = tuple((s * 2000.0, s * 2000.0 + 120) for s in range(1, 100))
    simulation = simulate(stalls=stalls)
    simulation.run(150)
    assert 12 < simulation.rate.episodes <= 75
    assert simulation.rate.extra == simulation.c.RATE_EXTRA_MAX


def test_what_was_kept_for_late_packets_is_given_back_when_none_are(simulate: Make) -> None:
    simulation = simulate(stalls=((10_000, 10_100),))
    simulation.run(12)
    raised = simulation.c.rate_target(simulation.rate)
    simulation.run(120)
    assert abs(simulation.c.rate_target(simulation.rate) - (raised - 3 * PER_MS)) <= 1
    assert simulation.rate.episodes == 1


def test_what_is_needed_all_the_time_is_not_given_back(simulate: Make) -> None:
    """A packet that is 32 ms late now and then: few gaps until there is room for it, then none."""
    simulation = simulate(late=lambda n: 32.0 if n % 300 == 0 else 0.0)
    simulation.run(60)
    episodes = simulation.rate.episodes
    simulation.run(300)
    assert simulation.rate.episodes == episodes


def test_packets_that_are_lost_make_a_gap_and_no_drift(simulate: Make) -> None:
    simulation = simulate(is_lost=lambda n: 3000 <= n < 3005)
    simulation.run(29)
    after = simulation.run(30)
    assert gaps(after)
    assert abs(fill_ms(after[-1000:]) - after[-1].target / PER_MS) < 2


# ---- step by step


def test_a_recording_begins_with_silence_until_the_target_is_there(c: Any, rate: Any) -> None:
    target = c.RATE_BASE + 256
    step = c.rate_cycle(rate, 256, target - 1, 0)
    assert (step.drop, step.play, c.rate_target(rate)) == (0, 0, target)
    step = c.rate_cycle(rate, 256, target, 0)
    assert (step.drop, step.play) == (0, 256)


def test_what_the_source_has_collected_counts_up_to_its_bound(c: Any, rate: Any) -> None:
    target = c.RATE_BASE + 256
    assert c.rate_cycle(rate, 256, target - c.RATE_AGE_MAX - 1, 10**6).play == 0
    assert c.rate_cycle(rate, 256, target - c.RATE_AGE_MAX, 10**6).play == 256


def test_a_recording_begins_at_the_target_whatever_stands_there(c: Any, rate: Any) -> None:
    step = c.rate_cycle(rate, 256, 9000, 0)
    assert (step.drop, step.play) == (9000 - c.RATE_BASE - 256, 256)


def test_what_is_collected_alone_cannot_be_played(c: Any, rate: Any) -> None:
    assert c.rate_cycle(rate, 2048, 2047, 960).play == 0
    assert c.rate_cycle(rate, 2048, c.rate_target(rate) - 960, 960).play == 2048


def playing(c: Any, rate: Any) -> int:
    c.rate_cycle(rate, 256, c.rate_target(rate) + 256, 0)
    return int(c.rate_target(rate))


def test_too_much_is_dropped_to_the_target_and_not_one_sample_earlier(c: Any, rate: Any) -> None:
    target = playing(c, rate)
    assert c.rate_cycle(rate, 256, target + c.RATE_OVER, 0).drop == 0
    step = c.rate_cycle(rate, 256, target + c.RATE_OVER + 1, 0)
    assert (step.drop, step.play) == (c.RATE_OVER + 1, 256)
    assert rate.dropped == c.RATE_OVER + 1
    assert rate.fill == target
    assert rate.correction == 1 + rate.integral


def test_an_empty_buffer_is_played_to_its_end_and_then_filled(c: Any, rate: Any) -> None:
    target = playing(c, rate)
    assert c.rate_cycle(rate, 256, 256, 0).play == 256
    assert rate.episodes == 0
    assert c.rate_cycle(rate, 256, 255, 0).play == 255
    assert rate.episodes == 1
    assert c.rate_target(rate) == target + c.RATE_EXTRA_STEP
    assert c.rate_cycle(rate, 256, target, 0).play == 0
    assert rate.episodes == 1


def test_within_a_second_it_is_the_same_episode(c: Any, rate: Any) -> None:
    playing(c, rate)
    c.rate_cycle(rate, 256, 0, 0)
    for played, episodes in [(c.RATE_EPISODE - 256, 1), (c.RATE_EPISODE, 2)]:
        assert rate.is_waiting
        for _ in range(played // 256 + (1 if played % 256 else 0)):
            assert c.rate_cycle(rate, 256, c.rate_target(rate), 0).play == 256
        c.rate_cycle(rate, 256, 0, 0)
        assert rate.episodes == episodes


def test_a_longer_cycle_raises_the_target_until_it_is_gone(c: Any, rate: Any) -> None:
    c.rate_cycle(rate, 1024, 9000, 0)
    assert c.rate_target(rate) == c.RATE_BASE + 1024
    for _ in range(c.RATE_CYCLE_FOR // 256 - 4):
        c.rate_cycle(rate, 256, c.rate_target(rate), 0)
        assert c.rate_target(rate) == c.RATE_BASE + 1024
    for _ in range(c.RATE_CYCLE_FOR // 256 + 5):
        c.rate_cycle(rate, 256, c.rate_target(rate), 0)
    assert c.rate_target(rate) == c.RATE_BASE + 256


def test_a_recording_that_begins_with_longer_cycles_has_no_more_delay(simulate: Make) -> None:
    simulation = simulate(quantum=1024)
    simulation.run(0.2)
    simulation.machine.quantum = 256
    simulation.run(1)
    later = simulation.run(2)
    assert all(abs(each.fill - simulation.c.RATE_BASE - 256) < 3 * PER_MS for each in later)


def test_a_cycle_beyond_its_bound_asks_for_no_more_than_the_bound(c: Any, rate: Any) -> None:
    c.rate_cycle(rate, 1 << 20, 0, 0)
    assert c.rate_target(rate) == c.RATE_BASE + c.RATE_CYCLE_MAX


@settings(max_examples=200, deadline=None)
@given(
    steps=st.lists(
        st.tuples(st.integers(0, 9000), st.integers(0, 20_000), st.integers(0, 2**32 - 1)),
        max_size=60,
    )
)
def test_no_sequence_of_cycles_takes_what_is_not_there_or_leaves_the_bounds(
    built: tuple[FFI, SimpleNamespace], steps: list[tuple[int, int, int]]
) -> None:
    ffi, c = built
    rate: Any = ffi.new("struct rate *")
    c.rate_init(rate)
    for wanted, buffered, age in steps:
        step = c.rate_cycle(rate, wanted, buffered, age)
        assert step.play <= wanted
        assert step.drop + step.play <= buffered
        assert abs(c.rate_correction(rate) - 1) <= 0.005 + 1e-9
        bound = c.RATE_BASE + c.RATE_CYCLE_MAX + c.RATE_EXTRA_MAX
        assert c.RATE_BASE <= c.rate_target(rate) <= bound
