"""The control group of a call, in a folder that stands for one that systemd has delegated."""

from __future__ import annotations

from pathlib import Path

import pytest
from pedos_keeper import spawning
from pedos_keeper.control_groups import CallGroup, own_group


def test_a_folder_that_systemd_has_not_delegated_is_none() -> None:
    found = own_group()
    assert found is None or found.is_dir()


@pytest.fixture
def old_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spawning, "can_begin_in_group", lambda: False)


@pytest.mark.usefixtures("old_library")
def test_a_process_that_cannot_begin_in_it_is_moved_there(tmp_path: Path) -> None:
    group = CallGroup(tmp_path / "call")
    assert group.begin_in is None
    group.take(1234)
    assert (tmp_path / "call" / "cgroup.procs").read_text() == "1234\n"
    assert not group.kill(), "what it has started before is not in it"


def test_it_is_ended_as_a_whole_and_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spawning, "can_begin_in_group", lambda: True)
    group = CallGroup(tmp_path / "call")
    assert group.kill()
    kill = tmp_path / "call" / "cgroup.kill"
    assert kill.read_text() == "1\n"
    kill.unlink()  # as the kernel has no files there to remove first
    assert group.close()
    assert not (tmp_path / "call").exists()


def test_what_runs_in_it_keeps_it(tmp_path: Path) -> None:
    group = CallGroup(tmp_path / "call")
    (tmp_path / "call" / "process").touch()
    assert not group.close()
    assert (tmp_path / "call").exists()


def test_a_kernel_without_the_means_is_an_answer(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    group = CallGroup(tmp_path / "call")
    (tmp_path / "call" / "cgroup.kill").mkdir()  # cannot be written
    assert not group.kill()
    assert "cannot be ended as a whole" in caplog.text
