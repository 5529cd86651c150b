"""The processes that a keeper starts."""

from __future__ import annotations

import os
import select

import pytest
from pedos_keeper import children
from pedos_keeper.children import Children

from tests.patience import PATIENCE


def test_the_end_of_one_is_heard_while_another_one_is_being_started() -> None:
    children = Children()
    with children.start("/bin/sh", ["sh", "-c", "exit 3"], [], [0, 1, 2]) as child:
        poll = select.poll()
        poll.register(child.file, select.POLLIN)
        with children._births:  # as the start of a program on a disk that does not answer
            assert poll.poll(PATIENCE * 1000)
            assert child.end() == 3
        assert child.end() == 3


def test_what_one_has_left_behind_is_taken_in_with_its_end() -> None:
    children = Children()
    with children.start("/bin/sh", ["sh", "-c", "exit 3"], [], [0, 1, 2]) as child:
        orphan = os.posix_spawn("/bin/true", ["true"], {})
        os.waitid(os.P_PID, orphan, os.WEXITED | os.WNOWAIT)
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert child.end() == 3
        try:
            os.waitpid(orphan, os.WNOHANG)
        except ChildProcessError:
            return
        raise AssertionError("it was not taken in")


def test_who_leads_a_session_is_killed_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell whose children were killed before it would exit by itself."""
    rounds: list[set[int]] = [{7, 8, 9}, set()]
    killed: list[int] = []
    monkeypatch.setattr(children, "_processes", lambda *_: rounds.pop(0))
    monkeypatch.setattr(os, "kill", lambda pid, _: killed.append(pid))
    children.kill_session(9)
    assert (killed[0], sorted(killed)) == (9, [7, 8, 9])
