"""A pause is no hang: what counts is the time in which a program ran."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from pedos_vchan import running
from pedos_vchan._native import ffi, lib
from pedos_vchan.peer import Peer
from pedos_vchan.running import TICK, TICK_MAX, RunningClock

SECOND = 1_000_000_000
LIMIT = 30  # seconds; for a machine that is busy
AN_HOUR = 3600.0
ROUNDING = 1e-9  # seconds; of a sum of floats


class Thread:
    """What the C thread would count, on a clock that this test moves."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.counted = ffi.new("struct pv_running *", {"seen": int(self.now * SECOND)})

    def tick(self, alive: int = 1) -> int:
        return lib.pv_running_tick(self.counted, int(self.now * SECOND), alive)

    def runs(self, seconds: float) -> None:
        """Time goes by as it does."""
        end = self.now + seconds
        while self.now < end:
            self.now = min(end, self.now + TICK)
            self.tick()

    def is_paused(self, seconds: float) -> None:
        """It goes by in one jump, and the thread has not been woken since."""
        self.now += seconds

    def read(self) -> float:
        return lib.pv_running_at(self.counted, int(self.now * SECOND))


@pytest.fixture
def thread() -> Thread:
    return Thread()


@pytest.fixture
def clock(thread: Thread) -> RunningClock:
    return RunningClock(thread.read)


def test_time_that_goes_by_as_usual_counts(thread: Thread, clock: RunningClock) -> None:
    start = clock.current_time()
    thread.runs(AN_HOUR)
    assert clock.current_time() - start == pytest.approx(AN_HOUR)
    assert clock.deadline_to_sleep_time(start + AN_HOUR + 5) == pytest.approx(5)
    assert clock.deadline_to_sleep_time(math.inf) == math.inf


@pytest.mark.parametrize("thread_first", [True, False])
def test_a_pause_of_any_length_counts_half_a_second(
    thread: Thread, clock: RunningClock, thread_first: bool
) -> None:
    thread.runs(10)
    start = clock.current_time()
    for pauses in range(1, 4):
        thread.is_paused(AN_HOUR)
        if thread_first:
            thread.tick()
        assert clock.current_time() - start <= pauses * TICK_MAX + 1e-6
        thread.tick()
        assert clock.current_time() - start <= pauses * TICK_MAX + 1e-6


def test_time_never_goes_back(thread: Thread, clock: RunningClock) -> None:
    last = clock.current_time()
    for ran, paused in ((1.0, 0.3), (0.2, 7.0), (0.05, 0.6), (2.0, AN_HOUR)):
        for step in (
            lambda ran=ran: thread.runs(ran),
            lambda paused=paused: thread.is_paused(paused),
            thread.tick,
        ):
            step()
            now = clock.current_time()
            assert now >= last - ROUNDING
            last = now


def test_a_pause_is_no_hang_and_many_ticks_without_a_sign_are(thread: Thread) -> None:
    thread.counted.limit = 3
    for _ in range(5):
        thread.is_paused(AN_HOUR)
        assert not thread.tick(alive=0)
        assert not thread.tick(alive=0)
        assert not thread.tick(alive=1)
    assert [thread.tick(alive=0) for _ in range(3)] == [0, 0, 1]


def test_without_a_limit_nothing_is_a_hang(thread: Thread) -> None:
    assert not any(thread.tick(alive=0) for _ in range(1000))


def test_an_answer_that_came_during_a_pause_is_not_too_late(
    thread: Thread, clock: RunningClock
) -> None:
    """As when a VM is paused while its agent reports: it would hang up, and lose all it has."""

    async def main() -> dict[str, object]:
        one, other = trio.socket.socketpair()
        go_on = trio.Event()

        async def slow(_peer: Peer, _params: dict[str, object]) -> dict[str, object]:
            await go_on.wait()
            return {"taken": True}

        near = Peer(trio.SocketStream(one), program="near", handlers={})
        far = Peer(trio.SocketStream(other), program="far", handlers={"report": slow})
        answers = []

        async def report() -> None:
            answers.append(await near.call("report", {}, timeout=10))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(far.run)
            await nursery.start(near.run)
            async with trio.open_nursery() as calling:
                calling.start_soon(report)
                await trio.testing.wait_all_tasks_blocked()
                thread.is_paused(AN_HOUR)
                await trio.testing.wait_all_tasks_blocked()
                thread.tick()
                await trio.testing.wait_all_tasks_blocked()
                go_on.set()
            nursery.cancel_scope.cancel()
        return answers[0]

    clock.start_clock = lambda: None  # type: ignore[method-assign]
    assert trio.run(main, clock=clock, strict_exception_groups=True) == {"taken": True}


# The real thread, in programs that are stopped, or that hang.

PROGRAM = """
import ctypes, os, sys, trio
from pedos_vchan import running

async def turns():
    print("ready", flush=True)
    while word := await trio.to_thread.run_sync(sys.stdin.readline):
        print(word, end="", flush=True)

async def hangs():
    print("ready", flush=True)
    ctypes.PyDLL(None).pause()  # with the interpreter's lock held

running.run({"turns": turns, "hangs": hangs}[sys.argv[1]])
"""


def started(how: str, seconds: float) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, how],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, running.HANG_VARIABLE: str(seconds)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.fixture
def stopped() -> Iterator[subprocess.Popen[str]]:
    """A healthy program that is as good as paused."""
    process = started("turns", 2 * TICK)
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
    yield process
    process.kill()
    process.communicate()


def test_a_loop_that_hangs_ends_its_program_and_a_pause_of_that_length_does_not(
    stopped: subprocess.Popen[str],
) -> None:
    hanging = started("hangs", 2 * TICK)
    _, said = hanging.communicate(timeout=LIMIT)
    assert hanging.returncode == -signal.SIGABRT  # its unit starts it again
    assert "the event loop hangs" in said
    assert "in hangs" in said, "it does not say where"
    stopped.send_signal(signal.SIGCONT)
    out, said = stopped.communicate("still here\n", timeout=LIMIT)
    assert (out, said, stopped.returncode) == ("still here\n", "", 0)


def test_a_program_without_stderr_writes_its_last_words_into_no_file_of_its_own(
    tmp_path: Path,
) -> None:
    """Started with 2>&-, its first file has that number."""
    file = tmp_path / "file"
    opens = f"import os; file = os.open({str(file)!r}, os.O_WRONLY | os.O_CREAT)\n"
    opens += "while file < 2: file = os.dup(file)\nassert file == 2\n"
    hanging = subprocess.run(
        ["/bin/sh", "-c", 'exec "$@" 2>&-', "sh", sys.executable, "-c", opens + PROGRAM, "hangs"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        env={**os.environ, running.HANG_VARIABLE: str(2 * TICK)},
        timeout=LIMIT,
        check=False,
    )
    assert hanging.returncode == -signal.SIGABRT
    assert file.read_bytes() == b""


def test_a_loop_that_hangs_ends_its_program_though_nothing_takes_its_words() -> None:
    reads, writes = os.pipe()
    os.set_blocking(writes, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writes, bytes(1 << 16))
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writes, b"x")
    os.set_blocking(writes, True)
    try:
        hanging = subprocess.run(
            [sys.executable, "-c", PROGRAM, "hangs"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=writes,
            env={**os.environ, running.HANG_VARIABLE: str(2 * TICK)},
            timeout=LIMIT,
            check=False,
        )
    finally:
        os.close(reads)
        os.close(writes)
    assert hanging.returncode in (-signal.SIGABRT, 128 + signal.SIGABRT)


@pytest.mark.parametrize("said", ["nan", "inf", "-inf", "-5", "1e12", "1e-9", "soon", "9" * 400])
def test_a_hang_variable_that_is_no_sensible_time_is_said_to_be_none(
    said: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(running.HANG_VARIABLE, said)
    assert running._hang_seconds() == running.HANG_SECONDS
    assert "neither 0 nor a number of seconds" in caplog.text


@pytest.mark.parametrize("said", ["0", "0.5", "10", "86400", ""])
def test_a_hang_variable_that_is_a_sensible_time_counts(
    said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(running.HANG_VARIABLE, said)
    assert running._hang_seconds() == float(said or running.HANG_SECONDS)
