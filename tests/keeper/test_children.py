"""The processes that a keeper starts."""

from __future__ import annotations

import os
import select

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
