"""The window of a question on a desktop with a window manager: it takes no keys from whoever types,
and those that it is given too early do not answer it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.system import wait_until

from .desktop import Desktop, lacking

PROGRAM = "tests.widget.e2e.question_window"
PROJECT = Path(__file__).resolve().parents[3]

pytestmark = pytest.mark.skipif(bool(lacking()), reason=f"not installed: {', '.join(lacking())}")


@pytest.fixture
def desktop(tmp_path: Path) -> Iterator[Desktop]:
    with Desktop(tmp_path) as desktop:
        yield desktop


def start(desktop: Desktop, name: str) -> None:
    path = ":".join([str(PROJECT), *sys.path])
    desktop.start(sys.executable, "-m", PROGRAM, name, more={"PYTHONPATH": path})
    wait_until(lambda: desktop.windows(name), f"the window '{name}' is there")


def said(desktop: Desktop) -> str:
    return desktop.said(Path(sys.executable).name)


def test_a_question_neither_takes_keys_nor_is_answered_by_them(desktop: Desktop) -> None:
    start(desktop, "typing")
    desktop.tool("search", "--onlyvisible", "--classname", "typing", "windowactivate", "--sync")
    desktop.type("hello ")
    wait_until(lambda: "typed: hello " in said(desktop), "the first word is typed")
    start(desktop, "question")
    desktop.type("world yes")
    wait_until(lambda: "typed: hello world yes" in said(desktop), "all words are typed there")
    assert "in front" not in said(desktop)

    (area,) = desktop.windows("question")
    desktop.click(area.x + area.width // 2, area.y + 10)
    wait_until(lambda: "in front" in said(desktop), "the question has the keyboard")
    desktop.type("v a")
    desktop.keys("alt+a", "Return", "space", "Tab", "space")
    desktop.keys("Return", "KP_Enter")
    desktop.keys("Escape")
    wait_until(lambda: "answer: " in said(desktop), "the question is answered")
    assert "answer: deny None" in said(desktop)
    assert said(desktop).count("typed: ") == len("hello world yes")
