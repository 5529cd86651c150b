"""How the workers of pytest-xdist share the tests, and how one of them stops the others."""

from __future__ import annotations

import fcntl
import threading
from pathlib import Path

import pytest

from tests.alone import Turns
from tests.schedule import FIRST, LAST, WAITING_AT_ONCE, choose, in_order, waits

ROOT = Path(__file__).parents[1]
HEARS, FUZZES, SHORT = "tests/sound/test_x.py", "tests/hostile/test_fuzz.py", "tests/cli/test_x.py"


def test_long_files_begin_first_and_those_that_stop_the_others_last() -> None:
    assert in_order([LAST[0], SHORT, FUZZES, HEARS]) == [HEARS, FUZZES, SHORT, LAST[0]]


@pytest.mark.parametrize(
    ("waiting", "chosen"),
    [(0, HEARS), (WAITING_AT_ONCE - 1, HEARS), (WAITING_AT_ONCE, FUZZES)],
)
def test_some_workers_wait_and_the_others_compute(waiting: int, chosen: str) -> None:
    assert choose(waiting, [SHORT, FUZZES, HEARS]) == chosen


def test_a_worker_is_never_without_a_file_while_one_is_left() -> None:
    assert choose(WAITING_AT_ONCE, [HEARS]) == HEARS
    assert choose(0, [SHORT]) == SHORT


def test_a_file_that_waits_counts_until_it_is_done() -> None:
    assert waits({HEARS: {"a": True, "b": False}})
    assert not waits({HEARS: {"a": True}, SHORT: {"b": False}})


@pytest.mark.parametrize("start", [*FIRST, *LAST])
def test_every_file_of_the_tables_is_there(start: str) -> None:
    assert list(ROOT.glob(f"{start}*"))


def closed(gate: Path) -> bool:
    with gate.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_who_wants_to_be_alone_comes_before_those_who_come_later(tmp_path: Path) -> None:
    running, alone, later = (Turns(tmp_path) for _ in range(3))
    happened: list[str] = []

    def be_alone() -> None:
        alone.have_it_alone()
        happened.append("alone")
        alone.leave()

    def come_later() -> None:
        later.share()
        happened.append("later")
        later.leave()

    running.share()
    first = threading.Thread(target=be_alone)
    first.start()
    while not closed(tmp_path / "alone.gate"):
        assert first.is_alive()
    second = threading.Thread(target=come_later)
    second.start()
    assert happened == []
    running.leave()
    for thread in (first, second):
        thread.join()
    assert happened == ["alone", "later"]
    for turns in (running, alone, later):
        turns.close()
