"""How the workers of pytest-xdist share the tests, and how one of them stops the others."""

from __future__ import annotations

import fcntl
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.alone import Turns
from tests.schedule import (
    FIRST,
    LAST,
    SHARE,
    WAITING_AT_ONCE,
    Scheduling,
    choose,
    in_order,
    say_less,
    share_of,
    waits,
)

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


class Worker:
    """As much of pytest-xdist's as a scheduler looks at."""

    def __init__(self, name: str, share: bool | None, tests: list[str]) -> None:
        self.gateway = SimpleNamespace(id=name)
        self.workerinput = {SHARE: share}
        self.tests = tests
        self.sent: list[str] = []
        self.shutting_down = False

    def send_runtest_some(self, indices: list[int]) -> None:
        self.sent += [self.tests[at] for at in indices]

    def shutdown(self) -> None:
        self.shutting_down = True


HEARD = [f"{HEARS}::test_{n}" for n in range(5)]
FUZZED = [f"{FUZZES}::test_{n}" for n in range(5)]
SHORTS = [f"{SHORT}::test_{n}" for n in range(5)]


def scheduling(
    pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch, *workers: Worker
) -> Scheduling:
    monkeypatch.setattr(pytestconfig.option, "tx", ["popen"] * len(workers))
    session = SimpleNamespace(testscollected=0)
    monkeypatch.setattr(pytestconfig.pluginmanager, "get_plugin", {"session": session}.get)
    made = Scheduling(pytestconfig, None)
    for worker in workers:
        made.add_node(worker)
    for worker in workers:
        made.add_node_collection(worker, worker.tests)
    made.schedule()
    assert session.testscollected == len({test for worker in workers for test in worker.tests})
    return made


def run_all(made: Scheduling, *workers: Worker) -> None:
    """As workers do: one begins a test when it knows the next, or that there is none."""
    done = dict.fromkeys(workers, 0)

    def runs(worker: Worker) -> bool:
        return done[worker] < len(worker.sent) - (not worker.shutting_down)

    while able := [*filter(runs, workers)]:
        for worker in able:
            at = worker.tests.index(worker.sent[done[worker]])
            done[worker] += 1
            made.mark_test_complete(worker, at)
    assert all(worker.shutting_down for worker in workers)
    assert [*done.values()] == [len(worker.sent) for worker in workers]


def test_each_test_is_run_once_by_a_worker_that_has_it(
    pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = (Worker(name, False, [*SHORTS, *FUZZED]) for name in ("gw0", "gw1"))
    hears = Worker("gw2", True, HEARD)
    run_all(scheduling(pytestconfig, monkeypatch, one, two, hears), one, two, hears)
    assert sorted([*one.sent, *two.sent]) == sorted([*SHORTS, *FUZZED])
    assert hears.sent == HEARD


def test_what_a_lost_worker_has_left_is_run_by_the_one_that_replaces_it(
    pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    computes, hears = Worker("gw0", False, FUZZED), Worker("gw1", True, HEARD)
    made = scheduling(pytestconfig, monkeypatch, computes, hears)
    run_all(made, computes)
    made.mark_test_complete(hears, 0)
    assert made.remove_node(hears) == HEARD[1]
    other = Worker("gw2", None, [*FUZZED, *HEARD])
    made.add_node(other)
    made.add_node_collection(other, other.tests)
    made.schedule()
    assert other.sent == HEARD[1:]


def test_workers_of_one_share_that_differ_are_an_error(
    pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers = Worker("gw0", False, FUZZED), Worker("gw1", False, FUZZED[1:])
    with pytest.raises(RuntimeError, match="gw1 has collected other tests"):
        scheduling(pytestconfig, monkeypatch, *workers)


def test_the_last_workers_collect_what_waits_and_those_that_replace_one_collect_all() -> None:
    assert [share_of(n, 5) for n in range(6)] == [False, False, False, True, True, None]
    assert [share_of(n, 3) for n in range(3)] == [None] * 3


def test_a_worker_leaves_out_what_nobody_makes_use_of() -> None:
    said: list[str] = []
    worker = SimpleNamespace(sendevent=lambda name, **words: said.append(f"{name} {words}"))
    say_less(worker)
    worker.sendevent("logstart", nodeid="a", location=("", 0, ""))
    for when in ("setup", "call", "teardown"):
        for outcome in ("passed", "failed", "skipped"):
            worker.sendevent("testreport", data={"when": when, "outcome": outcome})
    worker.sendevent("logfinish", nodeid="a", location=("", 0, ""))
    worker.sendevent("runtest_protocol_complete", item_index=0)
    assert len(said) == 8
    assert not any("passed" in each and "call" not in each for each in said)


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
