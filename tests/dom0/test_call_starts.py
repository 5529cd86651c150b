"""The turns of starts alone: who begins when."""

from __future__ import annotations

import pytest
from pedos_dom0.calls.starts import ALONE, HANGING, RECENT, RESTS, STARTING, TURN, Starts

WORK, OTHER, ELSEWHERE = ("work", "vault"), ("other", "vault"), ("other", "storage")


@pytest.fixture
def starts() -> Starts[str]:
    return Starts()


def begun(starts: Starts[str], now: float) -> list[str]:
    """All that wait and begin now."""
    return list(iter(lambda: starts.next(now), None))


def flood(starts: Starts[str], count: int, now: float = 0.0) -> list[bool]:
    return [starts.begin(WORK, f"{each}", now) for each in range(count)]


def beside_another(starts: Starts[str], count: int) -> None:
    """`work` makes calls while `other` makes one."""
    assert starts.begin(OTHER, "other's", 0.0)
    starts.over(OTHER, "other's", 0.0)
    assert flood(starts, count) == [True, *[False] * (count - 1)]


def test_a_source_that_is_alone_in_a_target_has_several_turns(starts: Starts[str]) -> None:
    assert flood(starts, ALONE + 2) == [True] * ALONE + [False] * 2
    assert (len(starts), starts.next(0.0)) == (2, None)
    starts.over(WORK, "3", 0.0)
    assert begun(starts, 0.0) == [f"{ALONE}"]


def test_a_source_elsewhere_takes_no_turn_away(starts: Starts[str]) -> None:
    assert starts.begin(ELSEWHERE, "other's", 0.0)
    assert all(flood(starts, ALONE))


def test_beside_another_source_turns_come_one_at_a_time(starts: Starts[str]) -> None:
    beside_another(starts, 3)
    assert starts.begin(OTHER, "other's next", 0.0)
    assert begun(starts, 0.0) == []


def test_a_pair_rests_for_longer_than_its_turn_took(starts: Starts[str]) -> None:
    beside_another(starts, 3)
    starts.over(WORK, "0", 0.003)
    assert starts.next_due() == pytest.approx(0.003 + RESTS * 0.003)
    assert begun(starts, 0.008) == []
    assert begun(starts, 0.0091) == ["1"]


def test_time_has_nothing_to_do_while_a_pair_rests_that_has_turns_yet(starts: Starts[str]) -> None:
    assert flood(starts, 2) == [True, True]
    assert starts.begin(OTHER, "other's", 0.0)
    assert not starts.begin(WORK, "2", 0.0)
    for each in ("0", "1"):
        starts.started(WORK, each, 0.1)
    starts.over(WORK, "0", 0.115)
    now = 0.1 + TURN  # the other turn is over, too
    assert begun(starts, now) == []
    assert starts.next_due() == pytest.approx(0.115 + TURN)
    assert begun(starts, 0.1151 + TURN) == ["2"]


def test_one_that_was_started_late_is_not_followed_by_a_long_rest(starts: Starts[str]) -> None:
    beside_another(starts, 1)
    starts.started(WORK, "0", 9.0)
    assert starts.begin(OTHER, "other's next", 9.0)
    assert not starts.begin(WORK, "1", 9.0)
    starts.over(WORK, "0", 9.01)
    assert starts.next_due() == pytest.approx(9.01 + TURN)


def test_calls_that_wait_for_long_take_turns_beside_another_source_yet(
    starts: Starts[str],
) -> None:
    beside_another(starts, 4)
    now = RECENT * 2
    assert starts.begin(OTHER, "other's next", now)
    starts.over(WORK, "0", now)
    assert begun(starts, now + STARTING) == ["1"]


def test_a_source_that_has_stopped_calling_leaves_all_turns_to_those_that_wait(
    starts: Starts[str],
) -> None:
    beside_another(starts, 4)
    assert begun(starts, RECENT * 2) == ["1", "2", "3"]


def test_no_pair_rests_of_which_no_call_waits(starts: Starts[str]) -> None:
    beside_another(starts, 1)
    starts.over(WORK, "0", 0.003)
    assert starts.begin(WORK, "1", 0.003)


def test_a_new_call_waits_for_the_rest_and_for_those_before_it(starts: Starts[str]) -> None:
    beside_another(starts, 2)
    starts.over(WORK, "0", 0.1)
    assert not starts.begin(WORK, "2", 0.15)
    assert begun(starts, 0.2) == ["1"]
    starts.over(WORK, "1", 0.2)
    assert begun(starts, 0.2) == ["2"]


def test_a_service_that_runs_has_its_turn_for_a_moment_only(starts: Starts[str]) -> None:
    beside_another(starts, 2)
    starts.started(WORK, "0", 0.01)
    assert starts.next_due() == pytest.approx(0.01 + TURN)
    assert begun(starts, TURN) == []
    assert begun(starts, 0.01 + TURN) == ["1"]
    starts.over(WORK, "0", 1.0)  # it has none any more


def test_a_start_that_hangs_does_not_hold_up_the_others(starts: Starts[str]) -> None:
    beside_another(starts, 2)
    assert starts.next_due() == STARTING
    assert begun(starts, STARTING) == ["1"]
    starts.over(WORK, "1", STARTING + 0.01)
    starts.over(WORK, "0", 10.0)
    assert starts.begin(WORK, "2", 10.0)


def test_starts_that_hang_take_few_of_an_agents_requests(starts: Starts[str]) -> None:
    beside_another(starts, HANGING + 2)
    for each in range(1, HANGING):
        assert begun(starts, each * STARTING) == [f"{each}"]
    assert begun(starts, HANGING * STARTING) == []
    assert starts.next_due() is None
    assert starts.begin(OTHER, "other's next", 3.0)
    starts.over(WORK, "0", 3.0)
    assert begun(starts, 3.0) == [f"{HANGING}"]


def test_a_start_that_hung_is_followed_by_a_short_rest(starts: Starts[str]) -> None:
    beside_another(starts, 2)
    starts.over(WORK, "0", 9.0)
    assert begun(starts, 9.0 + STARTING) == ["1"]


def test_a_source_that_calls_no_more_is_forgotten_after_a_while(starts: Starts[str]) -> None:
    beside_another(starts, 4)
    later = RECENT + 0.1
    assert not starts.begin(WORK, "4", later)
    assert begun(starts, later) == ["1", "2", "3", "4"]


def test_no_trace_stays_of_those_that_are_over(starts: Starts[str]) -> None:
    beside_another(starts, 2)
    starts.over(WORK, "0", 0.0)
    (last,) = begun(starts, 0.0)
    starts.over(WORK, last, 0.0)
    assert (len(starts), starts.next_due()) == (0, None)
    assert not starts._pairs
    assert starts.begin(ELSEWHERE, "later", RECENT + 1.0)
    assert list(starts._called) == [ELSEWHERE]
