"""When START and STOP have an effect, what is reported of it, and how fast others may talk."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from .c_library import library

MS = st.integers(0, 3000)


class Timing(SimpleNamespace):
    """native/sound/timing.c."""

    ffi: Any

    def new(self, kind: str, **fields: int) -> Any:
        made = self.ffi.new(f"struct {kind} *")
        for name, value in fields.items():
            setattr(made, name, value)
        return made


@pytest.fixture(scope="module")
def timing(tmp_path_factory: pytest.TempPathFactory) -> Timing:
    ffi, functions = library(tmp_path_factory.mktemp("timing"), "timing")
    return Timing(ffi=ffi, **vars(functions))


def test_it_is_open_from_the_first_start_until_half_a_second_after_the_last_stop(
    timing: Timing,
) -> None:
    gate = timing.new("gate")
    assert timing.gate_want(gate, True, 1000) and gate.is_open
    assert not timing.gate_want(gate, False, 1100)
    assert not timing.gate_want(gate, True, 1200)  # a program that tries it out
    assert not timing.gate_tick(gate, 9000)
    assert not timing.gate_want(gate, False, 9000)
    assert not timing.gate_want(gate, False, 9300)  # said twice: the first one counts
    assert timing.gate_due(gate) == 9500
    assert not timing.gate_tick(gate, 9499)
    assert timing.gate_tick(gate, 9500) and not gate.is_open
    assert timing.gate_due(gate) == 2**63 - 1


@given(st.lists(st.tuples(st.integers(0, 700), st.booleans()), max_size=60))
def test_whatever_is_said_it_opens_twice_a_second_at_most(
    timing: Timing, said: list[tuple[int, bool]]
) -> None:
    gate, now, opened = timing.new("gate"), 0, []
    for later, wanted in said:
        now += later
        timing.gate_tick(gate, now)
        if timing.gate_want(gate, wanted, now) and gate.is_open:
            opened.append(now)
        assert gate.is_open or not wanted
    assert all(after - before >= 500 for before, after in pairwise(opened))


@given(st.lists(st.tuples(st.integers(0, 400), st.booleans()), max_size=60))
def test_two_reports_a_second_and_the_last_state_always(
    timing: Timing, said: list[tuple[int, bool]]
) -> None:
    report, now, told, state = timing.new("report"), 0, [], False
    for later, state in said:
        now += later
        if timing.report_tell(report, state, now):
            told.append((now, state))
    due = timing.report_due(report, state)
    if due < 2**63 - 1:
        assert timing.report_tell(report, state, max(now, due))
        told.append((max(now, due), state))
    assert (told[-1][1] if told else False) == state
    assert all(after[0] - before[0] >= 500 for before, after in pairwise(told))
    assert all(after[1] != before[1] for before, after in pairwise(told))


@given(st.lists(st.tuples(MS, st.integers(1, 30)), max_size=60))
def test_a_bucket_gives_its_rate_in_the_long_run(
    timing: Timing, asked: list[tuple[int, int]]
) -> None:
    bucket, now, taken = timing.new("bucket", a_second=10, at_once=20), 0, 0
    for later, amount in asked:
        now += later
        due = timing.bucket_due(bucket, now)
        now = max(now, due)
        assert timing.bucket_due(bucket, now) == now
        timing.bucket_take(bucket, amount, now)
        taken += amount
        assert taken <= 20 + amount + 10 * now / 1000 + 1


def test_a_bucket_is_full_again_after_a_rest(timing: Timing) -> None:
    bucket = timing.new("bucket", a_second=10, at_once=20)
    for _ in range(20):
        assert timing.bucket_due(bucket, 0) == 0
        timing.bucket_take(bucket, 1, 0)
    assert 0 < timing.bucket_due(bucket, 0) <= 101
    assert timing.bucket_due(bucket, 5000) == 5000
