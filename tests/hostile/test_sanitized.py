"""Against a hostile process the C side keeps its promises, under the sanitizers.

What is promised: bytes, or an end that lasts and is noticed within a second; no call that takes
longer than 5 ms; no more wake-ups without news than the budget. A sanitizer's report is a failure
of the victim program, and so is memory or a thread that is left over.
"""

from __future__ import annotations

import re
import subprocess
from typing import TYPE_CHECKING, NamedTuple

import pytest

from . import build

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CALL_MAX = 5000  # us of processor time
NOTICED_MAX = 1000  # ms
IDLE_WAKES = 1000  # PV_IDLE_WAKES

TIME, CLOSED, DIED, BROKEN, FLOODED = "time", "closed", "died", "broken", "flooded"
STREAM = {1: TIME, -2: CLOSED, -3: DIED, -4: BROKEN, -5: FLOODED}
PUMP = {1: "input ended", 3: "output failed", 4: CLOSED, 5: DIED, 6: BROKEN, 7: FLOODED, 8: TIME}


class Run(NamedTuple):
    """One line of the victim's report."""

    end: str
    milliseconds: int
    wakes: int
    received: int
    cpu_us: int


class Programs(NamedTuple):
    """What is run."""

    peer: Path
    victim: Path


@pytest.fixture(scope="module", params=build.SANITIZERS)
def programs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Programs:
    """The peer, and the victim under each sanitizer."""
    directory = tmp_path_factory.mktemp("hostile")
    return Programs(build.peer(directory), build.victim(directory, request.param))


def attack(
    programs: Programs, job: str, side: str, *, number: int = 0, milliseconds: int = NOTICED_MAX
) -> list[Run]:
    command = [programs.victim, programs.peer, job, str(number), side, str(milliseconds)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    names = PUMP if side == "pump" else STREAM
    form = r"end (-?\d+) ms (\d+) wakes (\d+) received (\d+) cpu_us (\d+)"
    lines = [tuple(map(int, line)) for line in re.findall(form, done.stdout)]
    assert lines, done.stdout
    return [Run(names[end], *rest) for end, *rest in lines]


def attack_that_sends(programs: Programs, job: str, side: str) -> Run:
    """A run of a peer that sends for as long as it may. On a machine that does much else it may
    not get a processor in so short a time, and then has longer."""
    for milliseconds in (200, 1000, 5000, 25_000):
        (run,) = attack(programs, job, side, milliseconds=milliseconds)
        if run.received > 0:
            break
    return run


#: Against each way to use a channel.
all_sides = pytest.mark.parametrize("side", ["stream", "turns", "pump"])


def alone_on_all_sides(test: Callable[..., None]) -> Callable[..., None]:
    """Where the victim's processor time has a bound, or the hostile process has to be fast."""
    return pytest.mark.alone(all_sides(test))


@alone_on_all_sides
def test_a_page_that_is_scribbled_over_ends_the_channel(programs: Programs, side: str) -> None:
    for number in range(12):
        (run,) = attack(programs, "scribble", side, number=number)
        assert run.end in {CLOSED, BROKEN, FLOODED}
        assert run.milliseconds <= NOTICED_MAX
        assert run.cpu_us < CALL_MAX


@alone_on_all_sides
def test_an_impossible_index_in_the_middle_of_data_ends_the_channel(
    programs: Programs, side: str
) -> None:
    for number in range(8):
        (run,) = attack(programs, "indices", side, number=number)
        assert run.end == BROKEN
        assert run.milliseconds <= NOTICED_MAX
        assert run.cpu_us < CALL_MAX


@alone_on_all_sides
@pytest.mark.parametrize("job", ["liar", "brim"])
def test_rubbish_with_possible_indices_is_data(programs: Programs, side: str, job: str) -> None:
    run = attack_that_sends(programs, job, side)
    assert run.end in {TIME, FLOODED}  # it notifies more often than it is asked to
    assert run.received > 0
    assert run.cpu_us < CALL_MAX


@alone_on_all_sides
def test_events_without_news_end_the_channel(programs: Programs, side: str) -> None:
    (run,) = attack(programs, "flood", side)
    # On one processor the flood may be too slow to be one, and then nothing needs to be done.
    assert run.end in {FLOODED, TIME}
    assert run.wakes <= 2 * IDLE_WAKES + 2  # a window of a second each, and two that were asked for
    assert run.end == TIME or run.milliseconds <= NOTICED_MAX


@all_sides
def test_a_live_flag_that_flickers_is_a_close(programs: Programs, side: str) -> None:
    (run,) = attack(programs, "flicker", side)
    assert run.end == CLOSED
    assert run.milliseconds <= NOTICED_MAX


@all_sides
def test_single_bytes_are_data(programs: Programs, side: str) -> None:
    run = attack_that_sends(programs, "drip", side)
    assert run.end in {TIME, FLOODED}  # once the ring is full, its events carry no news
    assert run.received > 0


@all_sides
def test_memory_is_sealed_against_every_change_of_size(programs: Programs, side: str) -> None:
    (run,) = attack(programs, "remap", side)  # the peer fails if it had its way
    assert run.received == 9000


@all_sides
@pytest.mark.parametrize("job", ["die", "stop"])
def test_a_peer_may_die_or_stop_at_every_step(programs: Programs, side: str, job: str) -> None:
    runs = attack(programs, job, side)
    assert len(runs) > 100
    ends = {DIED, CLOSED, "input ended"} if side == "pump" else {DIED, CLOSED}
    assert {run.end for run in runs} <= ends
    # What came is the beginning of what was sent, which the victim checks.
    assert {run.received for run in runs} >= {0, 9000}
    assert max(run.milliseconds for run in runs) <= NOTICED_MAX


PUBLISHED = "__atomic_store_n({0}->publish, {0}->own, __ATOMIC_RELEASE)"


@pytest.mark.skipif(build.clang() is None, reason="gcc's ThreadSanitizer misses these races")
@pytest.mark.parametrize(
    "weakened", [None, PUBLISHED.format("in"), PUBLISHED.format("out")], ids=["as is", "in", "out"]
)
def test_bytes_are_ordered_by_the_indices_alone(tmp_path: Path, weakened: str | None) -> None:
    source = (build.CSRC / "ring.c").read_text()
    if weakened is not None:
        assert source.count(weakened) == 1, "the code has changed: this test must follow"
        source = source.replace(weakened, weakened.replace("RELEASE", "RELAXED"))
    (tmp_path / "ring.c").write_text(source)
    program = tmp_path / "both_ends"
    command = [build.clang() or "", *build.FLAGS, build.INCLUDE, "-fsanitize=thread", "-pthread"]
    ours = [build.HERE / "both_ends.c", tmp_path / "ring.c"]
    subprocess.run([*command, *ours, "-o", program], check=True)
    done = subprocess.run([program], capture_output=True, text=True, check=False, timeout=60)
    assert ("data race" in done.stderr) == (weakened is not None), done.stderr
    assert (done.returncode == 0) == (weakened is None)
