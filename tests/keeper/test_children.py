"""The processes that a keeper starts."""

from __future__ import annotations

import builtins
import contextlib
import errno
import os
import select
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
from pedos_keeper import children, spawning
from pedos_keeper.children import Children
from pedos_keeper.control_groups import CallGroup

from tests.patience import PATIENCE

from .keeper_client import not_answering

MARK = b"PEDOS_CALL_ID=test"


def has_ended(file: int, seconds: float = PATIENCE) -> bool:
    poll = select.poll()
    poll.register(file, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def test_a_start_that_hangs_holds_up_no_other_one_and_no_end(tmp_path: Path) -> None:
    children = Children()
    path = tmp_path / "program"
    path.write_text("#!/bin/sh\nexit 4\n")
    path.chmod(0o755)
    statuses: list[int | None] = []

    def start() -> None:
        with children.start(str(path), [str(path)], [], [0, 1, 2]) as child:
            assert has_ended(child.file)
            statuses.append(child.end())

    with not_answering(path) as is_asked:
        hanging = threading.Thread(target=start)
        hanging.start()
        assert is_asked.wait(PATIENCE)
        with children.start("/bin/sh", ["sh", "-c", "exit 3"], [], [0, 1, 2]) as child:
            assert has_ended(child.file)
            assert child.end() == 3
        assert children.reap()
        assert statuses == [], "it does not hang"
    hanging.join(PATIENCE)
    assert statuses == [4]


def test_one_that_is_killed_while_it_is_started_does_not_live(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    children = Children()
    spawn = spawning.spawn

    def killed_meanwhile(*arguments: Any) -> tuple[int, int]:
        assert not children.kill_marked(MARK), "it is not known yet to be dead"
        return spawn(*arguments)

    monkeypatch.setattr(spawning, "spawn", killed_meanwhile)
    sleep = ("/bin/sleep", ["sleep", "1000"], [MARK], [0, 1, 2])
    with children.expecting(MARK):
        child = children.start(*sleep, mark=MARK)
    with child:
        assert has_ended(child.file)
        assert children.kill_marked(MARK)
        assert child.end() == -signal.SIGKILL
    monkeypatch.setattr(spawning, "spawn", spawn)
    with children.expecting(MARK):
        child = children.start(*sleep, mark=MARK)
    with child:  # another one, and this is wanted
        assert child.end() is None
        assert children.kill_marked(MARK)


def test_what_cannot_be_looked_at_is_not_said_to_have_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As when this program has no descriptor left."""
    children = Children()

    def no_file(*_: Any, **__: Any) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with children.start("/bin/sleep", ["sleep", "1000"], [MARK], [0, 1, 2], mark=MARK) as child:
        with monkeypatch.context() as patched, pytest.raises(OSError, match="Too many open files"):
            patched.setattr(builtins, "open", no_file)
            children.kill_marked(MARK)
        assert child.end() is None
        assert children.kill_marked(MARK)


def test_what_is_left_in_a_group_is_ended_when_its_first_process_is_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever environment it has. The folder stands for a group, of which nothing is killed and
    in which no process can begin."""
    monkeypatch.setattr(spawning, "can_begin_in_group", lambda: False)
    children, folder = Children(), tmp_path / "call"
    group = CallGroup(folder)
    (folder / "process").touch()
    with (
        children.expecting(MARK),
        children.start("/bin/true", ["true"], [MARK], [0, 1, 2], group, MARK) as child,
    ):
        assert has_ended(child.file)
        assert child.end() == 0
    assert children.kill_marked(MARK)
    assert (folder / "cgroup.kill").read_text() == "1\n"
    for each in ("cgroup.kill", "process"):
        (folder / each).unlink()
    children.reap()
    assert not folder.exists()


def test_one_that_ends_before_it_is_known_is_no_orphan(monkeypatch: pytest.MonkeyPatch) -> None:
    children = Children()
    spawn = spawning.spawn

    def spawn_slowly(*arguments: Any) -> tuple[int, int]:
        pid, file = spawn(*arguments)
        assert has_ended(file)
        assert children.reap()
        return pid, file

    monkeypatch.setattr(spawning, "spawn", spawn_slowly)
    with children.start("/bin/sh", ["sh", "-c", "exit 3"], [], [0, 1, 2]) as child:
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


OUTSIDE = "sleep 1000 >&- 2>&- & echo $! >&3; wait"


@pytest.mark.parametrize("is_moved", [True, False])
def test_what_one_has_started_before_it_was_in_its_group_is_killed_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_moved: bool
) -> None:
    """Where a process cannot begin in a group (Debian 12); the folder stands for one, of which
    nothing is killed."""
    monkeypatch.setattr(spawning, "can_begin_in_group", lambda: False)
    children = Children()
    group = CallGroup(tmp_path / "call")
    reader, writer = os.pipe()
    with open(reader, "rb") as said:
        descriptors = [0, 1, 2, writer]
        arguments = ["sh", "-c", OUTSIDE]
        with children.start("/bin/sh", arguments, [MARK], descriptors, group, MARK) as child:
            os.close(writer)
            early = os.pidfd_open(int(said.readline()))
            if is_moved:
                group.take(child.pid)
            child.kill()
            assert has_ended(early)
            assert child.end() == -9
            os.close(early)
    assert (tmp_path / "call" / "cgroup.kill").exists()


def test_a_session_s_number_may_be_another_s_once_its_leader_has_been_reaped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks: list[tuple[int | None, bytes]] = []
    monkeypatch.setattr(children, "kill_session", lambda *given: looks.append(given))
    some = Children()
    with some.start("/bin/true", ["true"], [MARK], [0, 1, 2], None, MARK) as child:
        assert has_ended(child.file)
        child.kill()
        assert child.end() == 0
        child.kill()
        assert looks == [(child.pid, MARK), (None, MARK)]


def test_a_number_that_two_had_one_after_the_other_is_that_of_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A call may go on for long after its first process."""
    ends = [(1234, 3 << 8), (0, 0)]
    monkeypatch.setattr(spawning, "spawn", lambda *_: (1234, os.open(os.devnull, os.O_RDONLY)))
    monkeypatch.setattr(spawning, "reap", lambda _: ends.pop(0) if ends else (0, 0))
    some = Children()
    with contextlib.ExitStack() as stack:
        one = some.start("", [], [], [])
        with one:
            assert one.end() == 3
            other = stack.enter_context(some.start("", [], [], []))
            assert (one.end(), other.end()) == (3, None)
        assert other.end() is None


def test_a_group_is_removed_when_what_a_call_has_left_in_it_has_ended(tmp_path: Path) -> None:
    children = Children()
    folder = tmp_path / "call"
    with children.start("/bin/true", ["true"], [], [0, 1, 2], None) as child:
        child.group = CallGroup(folder)
        (folder / "process").touch()
    children.reap()
    assert folder.exists()
    (folder / "process").unlink()
    children.reap()
    assert not folder.exists()
