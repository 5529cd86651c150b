"""One supervised program: ready, restarted, given up, stopped."""

from __future__ import annotations

import errno
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from pedos_dom0.local.bringup import tail
from pedos_dom0.local.supervise import RESTARTS, Supervisor

from .conftest import CRASHING, OBEDIENT, PATIENCE, STUBBORN, gone, script


async def test_a_program_is_ready_when_it_says_so(tmp_path: Path, nursery: trio.Nursery) -> None:
    supervisor = Supervisor(script("x", OBEDIENT, tmp_path))
    await nursery.start(supervisor.run)
    with trio.fail_after(PATIENCE):
        await supervisor.ready.wait()
    pid = supervisor.pid
    assert pid is not None
    await supervisor.stop()
    assert supervisor.ended.is_set()
    assert supervisor.gave_up is None
    await gone(pid)


async def test_a_program_that_is_killed_starts_again(tmp_path: Path, nursery: trio.Nursery) -> None:
    deaths = []
    supervisor = Supervisor(
        script("x", OBEDIENT, tmp_path), after_death=lambda: deaths.append(supervisor.starts)
    )
    await nursery.start(supervisor.run)
    for _ in range(3):
        with trio.fail_after(PATIENCE):
            await supervisor.ready.wait()
        supervisor.ready = trio.Event()
        assert supervisor.pid is not None
        os.kill(supervisor.pid, signal.SIGKILL)
    with trio.fail_after(PATIENCE):
        await supervisor.ready.wait()
    assert supervisor.starts == 4
    assert deaths == [1, 2, 3]
    await supervisor.stop()
    assert deaths == [1, 2, 3, 4]


async def test_a_program_that_keeps_dying_is_given_up(tmp_path: Path) -> None:
    supervisor = Supervisor(script("x", CRASHING, tmp_path))
    with trio.fail_after(PATIENCE):
        await supervisor.run()
    assert supervisor.starts == RESTARTS + 1
    assert supervisor.gave_up is not None
    assert "ended 6 times" in supervisor.gave_up
    assert "exited with status 3" in supervisor.gave_up
    assert "x.log" in supervisor.gave_up


async def test_a_program_that_is_killed_on_purpose_is_not_given_up_by_a_brake_that_says_so(
    tmp_path: Path,
) -> None:
    supervisor = Supervisor(script("x", CRASHING, tmp_path), restarts=2 * RESTARTS)
    with trio.fail_after(PATIENCE):
        await supervisor.run()
    assert supervisor.starts == 2 * RESTARTS + 1


async def test_a_program_that_refuses_to_start_is_not_tried_again(tmp_path: Path) -> None:
    supervisor = Supervisor(script("x", "sys.exit(3)", tmp_path))
    with trio.fail_after(PATIENCE):
        await supervisor.run()
    assert supervisor.starts == 1
    assert supervisor.gave_up == "x does not start: it exited with status 3"


async def test_deaths_far_apart_do_not_add_up(
    tmp_path: Path, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    # The clock jumps whenever all tasks wait, so a whole window passes between two deaths.
    autojump_clock.autojump_threshold = float("inf")
    supervisor = Supervisor(script("x", OBEDIENT, tmp_path))
    await nursery.start(supervisor.run)
    for number in range(1, RESTARTS + 4):
        await supervisor.ready.wait()
        assert supervisor.starts == number
        supervisor.ready = trio.Event()
        autojump_clock.jump(60)
        supervisor.kill()
    await supervisor.ready.wait()
    assert supervisor.gave_up is None
    await supervisor.stop(force=True)


async def test_a_program_that_ignores_sigterm_is_killed(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    supervisor = Supervisor(script("x", STUBBORN, tmp_path), stop_grace=0.05)
    await nursery.start(supervisor.run)
    with trio.fail_after(PATIENCE):
        await supervisor.ready.wait()
        await supervisor.stop()
    assert supervisor.ended.is_set()


async def test_a_program_that_is_not_there_is_given_up_with_the_reason(tmp_path: Path) -> None:
    program = replace(script("x", OBEDIENT, tmp_path), argv=["/nonexistent/agent"])
    supervisor = Supervisor(program)
    await supervisor.run()
    assert supervisor.gave_up is not None
    assert "/nonexistent/agent" in supervisor.gave_up


async def test_the_words_of_this_time_begin_where_those_of_the_last_end(tmp_path: Path) -> None:
    program = script("x", CRASHING, tmp_path)
    program.log.write_text("words of the last time\n")
    supervisor = Supervisor(program, restarts=0)
    assert supervisor.log_start is None
    await supervisor.run()
    assert supervisor.log_start == len("words of the last time\n")


async def test_a_program_whose_log_cannot_be_opened_has_said_nothing(tmp_path: Path) -> None:
    program = script("x", OBEDIENT, tmp_path)
    program.log.mkdir()
    supervisor = Supervisor(program)
    await supervisor.run()
    assert supervisor.gave_up == f"x cannot be started: {program.log}: Is a directory"
    assert supervisor.log_start is None
    assert tail(program.log, supervisor.log_start) == ""


async def test_what_helps_is_kept_apart_from_what_is_wrong(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    program = script("x", OBEDIENT, tmp_path)
    supervisor = Supervisor(program)
    supervisor._start = lambda _: fail()  # type: ignore[method-assign, assignment, return-value]
    await supervisor.run()
    assert supervisor.gave_up == "x cannot be started: Too many open files"
    assert supervisor.hint == "ulimit -n 1024"
    assert [record.getMessage() for record in caplog.records] == [
        "x cannot be started: Too many open files; try: ulimit -n 1024"
    ]


async def test_cancelling_kills_the_program(tmp_path: Path) -> None:
    supervisor = Supervisor(script("x", STUBBORN, tmp_path))
    async with trio.open_nursery() as nursery:
        await nursery.start(supervisor.run)
        with trio.fail_after(PATIENCE):
            await supervisor.ready.wait()
        pid = supervisor.pid
        nursery.cancel_scope.cancel()
    assert pid is not None
    await gone(pid)


async def test_a_program_writes_into_its_log_itself(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    log.write_text("before\n")
    body = "for fd in (1, 2): os.write(fd, os.readlink(f'/proc/self/fd/{fd}').encode() + b'\\n')\n"
    supervisor = Supervisor(script("x", body + "sys.exit(1)", tmp_path))
    with trio.fail_after(PATIENCE):
        await supervisor.run()
    assert log.read_text() == f"before\n{log}\n{log}\n"
