"""What a Tab offers for qvm-call, which answers shells as the programs in Python do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.patience import PATIENCE

PROGRAM = Path(sys.executable).parent / "qvm-call"
TARGETS = ["@adminvm", "@default", "@dispvm"]


def offered(line: str, breaks: str = "", point: int | None = None) -> list[str]:
    """What the program offers after the line; other than that it does nothing."""
    reader, writer = os.pipe()
    done = subprocess.run(
        ["bash", "-c", f'exec "$0" 8>&{writer}', PROGRAM],
        env={
            **{"_ARGCOMPLETE": "1", "_ARGCOMPLETE_IFS": "\n", "COMP_LINE": line},
            "_ARGCOMPLETE_COMP_WORDBREAKS": breaks,
            **({} if point is None else {"COMP_POINT": str(point)}),
        },
        pass_fds=[writer],
        capture_output=True,
        timeout=PATIENCE,
        check=False,
    )
    os.close(writer)
    with open(reader, encoding="ascii") as answer:
        words = answer.read().split("\n")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    return words if words != [""] else []


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("qvm-call ", TARGETS),
        ("qvm-call @d", ["@default", "@dispvm"]),
        ("qvm-call '@di", ["@dispvm"]),
        ("qvm-call -t -p text @a", ["@adminvm"]),
        ("qvm-call --user", ["--user"]),
        ("qvm-call --user me --st", ["--status-fd"]),
        ("qvm-call --filter", ["--filter-escape-chars-stdout", "--filter-escape-chars-stderr"]),
        # A file may be meant, which the shell offers then: a value, a service, the local program.
        ("qvm-call --prefix-data ", []),
        ("qvm-call vault ", []),
        ("qvm-call vault work.Sign -- --he", []),
        ("qvm-call", []),
        ("", []),
        ("qvm-call " + "@" * 5000, []),
    ],
)
def test_what_could_come_next_is_offered(line: str, words: list[str]) -> None:
    assert offered(line) == words


def test_bash_replaces_what_stands_behind_its_last_word_break() -> None:
    assert offered("qvm-call @d", breaks="@:") == ["default", "dispvm"]
    assert offered("qvm-call '@d", breaks="@:") == ["@default", "@dispvm"]


def test_what_follows_the_cursor_is_not_looked_at() -> None:
    assert offered("qvm-call @di vault", point=len("qvm-call @d")) == ["@default", "@dispvm"]
