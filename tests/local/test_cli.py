"""Command lines of `pedos-local`, and its messages before any program is started."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from pedos_dom0.local import bringup, verbs
from pedos_dom0.local.cli import main, parse
from pedos_dom0.local.layout import Layout


@pytest.mark.parametrize(
    ("line", "directory", "vm", "command"),
    [
        ("run lab -- qvm-ls", "lab", "dom0", ["qvm-ls"]),
        ("run lab qvm-ls", "lab", "dom0", ["qvm-ls"]),
        ("run lab ls -l --vm x -- y", "lab", "dom0", ["ls", "-l", "--vm", "x", "--", "y"]),
        ("run lab -- ls -- -h", "lab", "dom0", ["ls", "--", "-h"]),
        ("run lab --vm work ls -l", "lab", "work", ["ls", "-l"]),
        ("run lab --vm=work -- ls", "lab", "work", ["ls"]),
        ("run --vm work lab ls --help", "lab", "work", ["ls", "--help"]),
        ("run -v lab --vm work -- -x", "lab", "work", ["-x"]),
        ("run lab -- --vm", "lab", "dom0", ["--vm"]),
        ("run run run run", "run", "dom0", ["run", "run"]),
        ("run up shell", "up", "dom0", ["shell"]),
    ],
)
def test_run_takes_its_own_options_and_leaves_those_of_the_command(
    line: str, directory: str, vm: str, command: list[str]
) -> None:
    options = parse(line.split())
    assert (options.dir, options.vm, options.command) == (directory, vm, command)


@pytest.mark.parametrize(
    "line",
    ["", "run", "run lab", "run lab --", "run lab --vm", "run lab --colour ls", "up", "up a b",
     "shell lab", "init", "fly lab", "run lab --vm work"],
)  # fmt: skip
def test_a_command_line_that_makes_no_sense_is_a_usage_error(
    line: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(line.split())
    assert caught.value.code == 2
    assert "usage: pedos-local" in capfd.readouterr().err


@pytest.fixture
def lab(tmp_path: Path) -> str:
    assert main(["init", str(tmp_path / "lab")]) == 0
    return str(tmp_path / "lab")


@pytest.mark.parametrize("verb", [["up"], ["run", "--", "true"], ["shell", "dom0"]])
def test_a_folder_without_configuration_says_how_to_make_one(
    verb: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main([verb[0], str(tmp_path / "nothing"), *verb[1:]]) == 5
    assert f"pedos-local init {tmp_path / 'nothing'}" in capfd.readouterr().err


def test_a_broken_configuration_says_file_and_line(
    lab: str, capfd: pytest.CaptureFixture[str]
) -> None:
    Path(lab, "pedos.toml").write_text("[vm.work]\nautostart = maybe\n")
    assert main(["up", lab]) == 5
    assert f"{lab}/pedos.toml:2:13: not valid TOML" in capfd.readouterr().err


def test_an_unknown_vm_is_told_which_there_are(lab: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["run", lab, "--vm", "wrok", "true"]) == 2
    assert "there are: dom0, sys-usb, work, vault" in capfd.readouterr().err


def test_missing_tools_are_named_with_their_debian_packages(
    lab: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    setpriv = shutil.which("setpriv")
    assert setpriv is not None
    (tmp_path / "bin").mkdir()
    os.symlink(setpriv, tmp_path / "bin" / "setpriv")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(bringup, "FUSE_DEVICE", tmp_path / "fuse")
    assert main(["run", lab, "true"]) == 5
    said = capfd.readouterr().err
    assert "nbdkit, nbdfuse, fusermount3" in said
    assert "apt-get install fuse3 libnbd-bin nbdkit" in said
    assert "modprobe fuse" in said


def test_an_up_that_is_there_is_named_by_its_pid(
    lab: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with bringup.Lock.hold(Layout.of(lab)):
        assert main(["up", lab]) == 1
    said = capfd.readouterr().err
    assert f"pid {os.getpid()}" in said
    assert "is up already" in said


def test_a_second_up_takes_nothing_from_the_first_when_the_lock_was_deleted(
    lab: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verbs, "OTHER_NOTICE", 0.01)
    with bringup.Lock.hold(Layout.of(lab)) as lock:
        lock.set_ready(True)
        Path(lab, "run", "lock").unlink()
        assert main(["up", lab]) == 1
        assert f"is up already (pedos-local, pid {os.getpid()})" in capfd.readouterr().err
        assert main(["run", lab, "--", "true"]) == 5
        assert "its run/lock was deleted: no other command can use it" in capfd.readouterr().err


def test_an_up_that_never_gets_ready_is_waited_for_with_a_word_and_not_for_ever(
    lab: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert verbs.OTHER_NOTICE < verbs.OTHER_TIMEOUT <= 60
    monkeypatch.setattr(verbs, "OTHER_NOTICE", 0.01)
    monkeypatch.setattr(verbs, "OTHER_TIMEOUT", 0.1)
    with bringup.Lock.hold(Layout.of(lab)):
        assert main(["run", lab, "--", "true"]) == 5
    waits, gives_up, log = capfd.readouterr().err.splitlines()
    assert waits == (
        f"pedos-local: waiting for pedos-local (pid {os.getpid()}), which has {lab}, to be ready"
    )
    assert f"(pid {os.getpid()}) has {lab}, but was not ready within" in gives_up
    assert log.endswith(f"{lab}/log/machine.log")
