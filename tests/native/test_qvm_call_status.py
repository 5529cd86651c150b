"""What qvm-call says of a call to programs: --status-fd."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.call_agent import CALL_ID, FakeAgent
from tests.patience import PATIENCE

from .running_qvm_call import PIPE, SH, Run, end_of


@pytest.fixture
def pipe() -> Iterator[list[int]]:
    """Its two ends, of which a test may close one, and say so with -1."""
    ends = list(os.pipe())
    yield ends
    for each in ends:
        if each >= 0:
            os.close(each)


def close(ends: list[int], which: int) -> None:
    os.close(ends[which])
    ends[which] = -1


def told(ends: list[int]) -> list[dict[str, Any]]:
    """All that is written there."""
    with contextlib.suppress(OSError):
        os.close(ends[1])
    with open(ends[0], "rb") as lines:
        ends[:] = -1, -1
        return [json.loads(line) for line in lines]


def test_programs_can_follow_it(run: Run, agent: FakeAgent) -> None:
    reader, writer = os.pipe()
    process = run("--status-fd", str(writer), "work", "a.B", pass_fds=[writer])
    os.close(writer)
    asked = agent.asked()
    asked.started()
    asked.ended("problem", 0, 'a "quoted" \\ ü', "", "do")
    assert end_of(process)[0] == 125
    with open(reader, "rb") as lines:
        assert [json.loads(line) for line in lines] == [
            {"event": "started", "call": CALL_ID, "request": "17"},
            {
                "event": "ended",
                "kind": "problem",
                "status": 0,
                "exit_status": 125,
                "text": 'a "quoted" \\ ü',
                "rule": "",
                "hint": "do",
                "request": "17",
            },
        ]


def test_the_last_line_has_the_exit_status_of_the_program(
    run: Run, agent: FakeAgent, pipe: list[int]
) -> None:
    words = ["--status-fd", str(pipe[1]), "work", "a.B"]
    missing = run(*words, "--", "/no/s\nuch\xff", pass_fds=[pipe[1]])
    asked = agent.asked()
    asked.started()
    assert asked.hear() is None
    asked.ended("exited", 0)
    assert end_of(missing)[0] == 125
    failed = run(*words, *SH, "exit 4", pass_fds=[pipe[1]])
    asked = agent.asked()
    asked.started()
    asked.ended()
    assert end_of(failed)[0] == 4
    _, one, _, other = told(pipe)
    assert (one["kind"], one["status"], one["exit_status"]) == ("exited", 0, 125)
    assert one["text"].startswith("/no/s\nuch") and "No such file" in one["text"]
    assert (other["kind"], other["status"], other["exit_status"]) == ("exited", 0, 4)


@pytest.mark.parametrize("kind", ["problem", "refused", "not_found", "aborted", "lost"])
def test_only_a_service_has_a_status(
    run: Run, agent: FakeAgent, pipe: list[int], kind: str
) -> None:
    process = run("--status-fd", str(pipe[1]), "work", "a.B", pass_fds=[pipe[1]])
    agent.asked().ended(kind, 125, "why")
    status = end_of(process)[0]
    (said,) = told(pipe)
    assert (said["kind"], said["status"], said["exit_status"]) == (kind, 0, status)


def test_a_call_that_could_not_be_asked_for_has_an_end(
    program: Path, tmp_path: Path, pipe: list[int]
) -> None:
    environment = {**os.environ, "PEDOS_CALL_SOCKET": str(tmp_path / "nothing")}
    words = [program, "--status-fd", str(pipe[1]), "vault", "a.B"]
    done = subprocess.run(
        words, env=environment, stdin=PIPE, stderr=PIPE, pass_fds=[pipe[1]], check=False
    )
    (said,) = told(pipe)
    assert (said["kind"], said["status"], said["exit_status"]) == ("problem", 0, 125)
    assert done.stderr.decode() == f"qvm-call: {said['text']}\n  try:  {said['hint']}\n"


def first_output(process: subprocess.Popen[bytes]) -> bytes:
    """Waits for it, but not for ever."""
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], PATIENCE)
    return os.read(process.stdout.fileno(), 100) if ready else b""


@pytest.mark.parametrize("where", ["full", "broken"])
def test_what_cannot_be_told_is_said_once_and_changes_no_status(
    run: Run, agent: FakeAgent, pipe: list[int], where: str
) -> None:
    with open("/dev/full", "wb") as full:
        number = pipe[1] if where == "broken" else full.fileno()
        close(pipe, 0)
        process = run("--status-fd", str(number), "work", "a.B", pass_fds=[number])
    asked = agent.asked()
    asked.started()
    asked.ended("exited", 7)
    why = "Broken pipe" if where == "broken" else "No space left on device"
    said = f"qvm-call: cannot write what becomes of the call to --status-fd: {why}\n"
    assert end_of(process) == (7, b"", said.encode())


def test_a_full_pipe_that_nobody_reads_holds_up_neither_the_call_nor_its_end(
    run: Run, agent: FakeAgent, pipe: list[int]
) -> None:
    os.set_blocking(pipe[1], False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(pipe[1], bytes(4096))
    os.set_blocking(pipe[1], True)  # the pipe is qvm-call's too, which does not change that
    process = run("-t", "--status-fd", str(pipe[1]), "work", "a.B", pass_fds=[pipe[1]])
    asked = agent.asked()
    asked.started()
    os.write(asked.stdout, b"x")
    assert first_output(process) == b"x", "it goes on copying"
    assert os.get_blocking(pipe[1])
    asked.ended("exited", 7)
    assert process.wait(PATIENCE) == 7
    assert b"to --status-fd: nobody reads there" in end_of(process)[2]


def test_a_reader_that_comes_late_gets_both_lines(
    run: Run, agent: FakeAgent, pipe: list[int]
) -> None:
    os.set_blocking(pipe[1], False)
    filled = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            filled += os.write(pipe[1], b" " * 4096)
    os.set_blocking(pipe[1], True)
    process = run("-t", "--status-fd", str(pipe[1]), "work", "a.B", pass_fds=[pipe[1]])
    close(pipe, 1)
    asked = agent.asked()
    asked.started()
    os.write(asked.stdout, b"x")
    assert first_output(process) == b"x", "it goes on copying"
    while filled:
        filled -= len(os.read(pipe[0], filled))
    asked.ended("exited", 7)
    assert end_of(process) == (7, b"", b"")
    assert [each["event"] for each in told(pipe)] == ["started", "ended"]
