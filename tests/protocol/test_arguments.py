"""What the services and `pedos-local` print when they are asked for it."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAMS = {
    "pedos-local": "pedos_dom0.local.cli",
    "pedos-dom0": "pedos_dom0",
    "pedos-agent": "pedos_agent",
}


@pytest.mark.parametrize("option", ["--help", "--version"])
@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize("program", PROGRAMS)
def test_what_is_asked_for_and_cannot_be_printed_is_a_failure(
    program: str, closed: bool, option: str
) -> None:
    command = [sys.executable, "-m", PROGRAMS[program], option]
    shell = 'exec "$@" >&-' if closed else 'exec "$@" >/dev/full'
    done = subprocess.run(
        ["sh", "-c", shell, "sh", *command], stderr=-1, text=True, timeout=60, check=False
    )
    why = "standard output is closed" if closed else "No space left on device"
    assert (done.returncode, done.stderr) == (1, f"{program}: {why}\n")


def test_it_is_a_failure_also_where_the_reason_cannot_be_said() -> None:
    command = [sys.executable, "-m", "pedos_agent", "--help"]
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" >&- 2>&-', "sh", *command], timeout=60, check=False
    )
    assert done.returncode == 1


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_usage_error_has_no_word_of_the_line_as_it_came(program: str) -> None:
    command = [sys.executable, "-m", PROGRAMS[program], "--driver", "\x1b[31m"]
    done = subprocess.run(command, stderr=-1, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert f"{program}: error: " in done.stderr and "\x1b" not in done.stderr
