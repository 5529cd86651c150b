"""qvm-call with a local program at the other end of the service."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.call_agent import FakeAgent

from .running_qvm_call import (
    ESCAPES,
    HARMLESS,
    SH,
    Run,
    end_of,
)


def test_a_local_program_is_connected_to_the_service(run: Run, agent: FakeAgent) -> None:
    process = run("work", "a.B", *SH, "cat; echo done >&2")
    asked = agent.asked()
    asked.started()
    os.write(asked.stdout, b"there and back")
    assert os.read(asked.stdin, 100) == b"there and back"
    asked.close("stdout")
    assert asked.read_input() == b""
    asked.ended()
    assert end_of(process) == (0, b"", b"done\n")


def test_it_finds_the_streams_of_the_caller(run: Run, agent: FakeAgent) -> None:
    script = 'read -r line <&"$SAVED_FD_0"; echo "got $line" >&"$SAVED_FD_1"'
    process = run("work", "a.B", "/bin/sh", "-c", script)
    asked = agent.asked()
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(b"this\n")
    process.stdin.flush()
    asked.started()
    assert asked.read_input() == b""
    assert process.stdout.read() == b"got this\n", "and nobody else keeps it open"
    assert process.poll() is None
    asked.ended()
    assert end_of(process)[0] == 0


@pytest.mark.parametrize(("remote", "local", "status"), [(0, 0, 0), (0, 4, 4), (3, 4, 3)])
def test_the_local_exit_status_counts_if_the_other_is_0(
    run: Run, agent: FakeAgent, remote: int, local: int, status: int
) -> None:
    process = run("work", "a.B", *SH, f"exit {local}")
    asked = agent.asked()
    asked.started()
    asked.ended("exited", remote)
    assert end_of(process)[0] == status


def test_a_local_program_that_is_killed_is_told_as_a_shell_does(run: Run, agent: FakeAgent) -> None:
    process = run("work", "a.B", *SH, "kill -KILL $$")
    asked = agent.asked()
    asked.started()
    asked.ended()
    assert end_of(process)[0] == 137


def test_it_is_not_started_for_a_service_that_is_not(
    run: Run, agent: FakeAgent, tmp_path: Path
) -> None:
    process = run("work", "a.B", *SH, f"touch {tmp_path}/began")
    agent.asked().ended("refused", 0, "denied: no")
    assert end_of(process)[0] == 126
    assert not (tmp_path / "began").exists()


def test_a_local_program_that_is_missing_ends_the_call(run: Run, agent: FakeAgent) -> None:
    process = run("work", "a.B", "--", "/no/such")
    asked = agent.asked()
    asked.started()
    assert asked.hear() is None
    asked.ended("aborted", 0, "aborted: the calling program has ended")
    status, _, err = end_of(process)
    assert status == 125
    assert err == b"qvm-call: /no/such: No such file or directory\n", "and nothing of the abortion"


def test_it_gets_signals_as_programs_do_and_the_prefix_goes_first(
    run: Run, agent: FakeAgent
) -> None:
    # A shell that ignores SIGPIPE could not trap it.
    script = "trap 'exit 9' PIPE; echo more; kill -PIPE $$"
    process = run("--prefix-data", "x" * 100_000, "work", "a.B", *SH, script)
    asked = agent.asked()
    asked.started()
    assert asked.read_input() == b"x" * 100_000 + b"more\n"
    asked.ended()
    assert end_of(process)[0] == 9


def test_what_a_local_program_gets_can_be_filtered(run: Run, agent: FakeAgent) -> None:
    process = run("-t", "work", "a.B", *SH, 'cat >&"$SAVED_FD_1"')
    asked = agent.asked()
    asked.started()
    os.write(asked.stdout, ESCAPES)
    asked.close("stdout")
    assert asked.read_input() == b""
    asked.ended()
    assert end_of(process) == (0, HARMLESS, b"")
