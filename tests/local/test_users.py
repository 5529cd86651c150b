"""Commands that share one machine: the last one stops it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pedos_dom0.local.cli import main
from pedos_dom0.local.users import Users

from tests import warm

from .conftest import PATIENCE, needs_fuse


def test_nobody_is_alone_while_there_are_users_and_nobody_joins_who_is_alone(
    tmp_path: Path,
) -> None:
    path = tmp_path / "users"
    with Users(path) as owner:
        with Users(path) as one, Users(path) as two:
            assert one.join()
            assert two.join()
            assert not owner.alone()
        assert owner.alone()
        with Users(path) as late:
            assert not late.join()
    with Users(path) as next_one:
        assert next_one.join()


def test_a_user_counts_whose_list_was_deleted(tmp_path: Path) -> None:
    path = tmp_path / "users"
    with Users(path) as one:
        assert one.join()
        path.unlink()
        with Users(path) as owner:
            assert not owner.alone()
            assert owner.count() == 1


def test_the_last_user_leaves_an_empty_list(tmp_path: Path) -> None:
    path = tmp_path / "users"
    with Users(path) as one:
        one.join()
        assert path.read_text() == f"{os.getpid()}\n"
    assert path.read_text() == ""


def test_users_that_were_killed_and_our_own_process_do_not_count(tmp_path: Path) -> None:
    path = tmp_path / "users"
    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
        pass
    path.write_text(f"1\n{os.getppid()}\n{os.getpid()}\n{dead.pid}\n{'9' * 30}\n")
    with Users(path) as owner:
        assert owner.count() == len({1, os.getppid()})


class Runs:
    """`pedos-local run` twice on one folder; each COMMAND says a word and waits for its end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        assert main(["init", str(folder)]) == 0
        self.processes: list[subprocess.Popen[str]] = []

    def start(self, then: str = "true") -> subprocess.Popen[str]:
        command = ["sh", "-c", f"echo running; read _; {then}"]
        process = warm.Popen(
            [*warm.LOCAL, "run", self.folder, "--", *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.processes.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "running\n"
        return process

    def end(self) -> None:
        for process in self.processes:
            with process:  # closes its pipes, and waits for its end
                process.kill()


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[Runs]:
    runs = Runs(tmp_path / "lab")
    yield runs
    runs.end()


WAITS = "pedos-local: waiting for 1 other command(s) that use this machine\n"


@needs_fuse
def test_a_run_waits_for_the_one_that_joined_it(runs: Runs) -> None:
    first = runs.start()
    second = runs.start("qvm-ls --json; exit 7")
    assert first.stdin is not None
    assert first.stderr is not None
    first.stdin.close()
    assert first.stderr.readline() == WAITS
    said, errors = second.communicate("go\n", timeout=PATIENCE)
    assert (second.returncode, errors) == (7, "")
    assert '"sys-usb"' in said
    assert first.wait(PATIENCE) == 0


@needs_fuse
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_waiting_for_others(runs: Runs, number: signal.Signals) -> None:
    first = runs.start()
    runs.start()
    assert first.stdin is not None
    assert first.stderr is not None
    first.stdin.close()
    assert first.stderr.readline() == WAITS
    first.send_signal(number)
    assert first.wait(PATIENCE) == 0
