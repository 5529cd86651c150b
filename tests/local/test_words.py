"""Local mode's own errors are sentences."""

from __future__ import annotations

import errno
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pedos_dom0.local import bringup, verbs
from pedos_dom0.local.cli import main
from pedos_dom0.local.words import in_words, system_errors, too_few_descriptors

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def lab(tmp_path: Path) -> str:
    assert main(["init", str(tmp_path / "lab")]) == 0
    return str(tmp_path / "lab")


# /dev/fuse


@pytest.mark.parametrize(
    ("number", "what", "hint"),
    [
        (errno.ENOENT, "does not exist", "modprobe fuse"),
        (errno.ENODEV, "has no driver in this kernel", "modprobe fuse"),
        (errno.EACCES, "is not this user's to open", "as root: chmod 666 /dev/fuse"),
        (errno.EPERM, "is there, but may not be opened here", "--device /dev/fuse"),
        (errno.EMFILE, "cannot be opened: Too many open files", "ls -l /dev/fuse"),
    ],
)
def test_fuse_without_permission_is_not_modprobe_fuse(
    monkeypatch: pytest.MonkeyPatch, number: int, what: str, hint: str
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(bringup.os, "open", refuse)
    problem = bringup._fuse_problem()
    assert problem is not None
    said, tried = problem.split("\n")
    assert said.startswith(f"/dev/fuse {what}")
    assert hint in tried
    assert ("modprobe" in tried) == (number in (errno.ENOENT, errno.ENODEV))


def test_a_mounter_that_is_not_roots_is_told_to_a_user(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    device, mounter = tmp_path / "fuse", tmp_path / "fusermount3"
    device.touch()
    mounter.touch(0o755)
    mounter.chmod(0o755)
    monkeypatch.setattr(bringup, "FUSE_DEVICE", device)
    monkeypatch.setattr(shutil, "which", lambda _: str(mounter))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    problem = bringup._fuse_problem()
    assert problem is not None
    assert f"{mounter} is not setuid root" in problem
    mounter.chmod(0o4755)
    assert bringup._fuse_problem() is None


# Descriptors


def test_with_too_few_descriptors_it_says_how_many_it_takes(lab: str) -> None:
    done = subprocess.run(
        ["sh", "-c", 'ulimit -n 40; exec "$@"', "sh", sys.executable, "-m", "pedos_dom0.local.cli",
         "run", lab, "--", "true"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 5
    assert done.stderr == (
        "pedos-local: 40 files may be open at once, and with 3 VMs it takes 112\n"
        "  try:  ulimit -n 1024\n"
    )


# It is imported once: each number of descriptors has a fork of its own.
WITH_FEW = """
import os, resource, sys
sys.path += {path!r}
from pedos_dom0.local import verbs
from pedos_dom0.local.cli import main
for descriptors in range(5, 16):
    if (child := os.fork()) == 0:
        resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))
        sys.exit(main())
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(f"{{status}} of {{descriptors}}", flush=True)
    print(f"end of {{descriptors}}", file=sys.stderr)
"""


def test_with_hardly_any_it_is_a_sentence_all_the_same(lab: str) -> None:
    done = subprocess.run(
        [sys.executable, "-S", "-c", WITH_FEW.format(path=sys.path), "up", lab],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    numbers = [int(line.partition(" ")[0]) for line in done.stdout.splitlines()]
    said = re.split(r"end of \d+\n", done.stderr)
    assert len(numbers) == len(said) - 1 == 11 and said[-1] == ""
    for status, words in zip(numbers, said, strict=False):
        assert status != 0
        assert words.startswith("pedos-local: "), done.stderr
        assert "Traceback" not in words


def test_a_limit_that_this_user_may_raise_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = [(100, 4096)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, new: limits.append(new))
    assert too_few_descriptors(3) is None
    assert limits[-1] == (112, 4096)


# What the system refuses


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_an_error_names_its_file_what_is_wrong_and_what_helps(number: int) -> None:
    error = OSError(number, os.strerror(number), "/lab/run")
    said, hint = in_words(error).split("\n")
    assert said == f"/lab/run: {os.strerror(number)}"
    assert hint.startswith("  try:  ")


def test_an_error_without_a_file_is_about_the_folder() -> None:
    assert in_words(OSError(errno.EIO, "Input/output error"), "lab") == "lab: Input/output error"
    assert in_words(OSError("it broke")) == "it broke"


def test_errors_of_several_tasks_are_sentences_if_they_are_the_systems() -> None:
    refused = OSError(errno.ENOSPC, "No space left on device")
    group = BaseExceptionGroup("", [refused, BaseExceptionGroup("", [refused])])
    assert system_errors(group) == [refused, refused]
    assert system_errors(BaseExceptionGroup("", [refused, ValueError()])) is None


def test_a_verb_that_fails_in_a_group_ends_with_sentences(
    lab: str, monkeypatch: pytest.MonkeyPatch, capfd: Captured
) -> None:
    async def fail(*_: object) -> int:
        raise ExceptionGroup("", [OSError(errno.ENFILE, "Too many open files in system")])

    monkeypatch.setattr(verbs, "_up", fail)
    assert main(["up", lab]) == 5
    assert f"pedos-local: {lab}: Too many open files in system\n" in capfd.readouterr().err


# Paths


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_path_that_is_not_utf_8_can_be_said(tmp_path: Path, encoding: str) -> None:
    lab = os.fsencode(tmp_path) + b"/l\xff\xc3\xa9\xe4b"
    done = subprocess.run(
        [sys.executable, "-m", "pedos_dom0.local.cli", "init", lab],
        env={**os.environ, "PYTHONIOENCODING": f"{encoding}:strict"},
        capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, b"")
    assert os.path.exists(lab + b"/pedos.toml")
