"""What the benchmark counts as lost samples."""

from __future__ import annotations

from benchmarks.sound_cost import PILOT, turns
from tests.sound.hearing import RATE, tone


def test_nothing_is_lost_in_the_pilot_itself() -> None:
    assert turns(tone(2, PILOT)) == 0


def test_each_gap_counts_once_whatever_its_length() -> None:
    whole = tone(4, PILOT)
    second = 2 * RATE
    for lost in (RATE // 100, RATE // 50, RATE // 10):  # frames of 10 ms
        gaps = [
            whole[: second + 1000],
            whole[second + 1000 + 2 * lost : 3 * second],
            whole[3 * second + 2 * lost :],
        ]
        assert turns(b"".join(gaps)) == 2
    assert turns(whole[:second] + bytes(4800) + whole[second:]) >= 1


def test_a_rate_that_is_adapted_slowly_is_no_loss() -> None:
    # A thousandth off, as the clocks of two sound cards may be: 1014 in the place of 1013 Hz.
    assert turns(tone(2, PILOT + 1)) == 0
