"""`qvm-run`: the command line of `qvm-call` that it makes, and what it says where that says
nothing itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from shlex import quote

import pytest
from pedos_cli import qvm_run
from pedos_cli.arguments import UsageError
from pedos_cli.qvm_run import main, parse, shell_line
from pedos_cli.run import Session
from pedos_protocol.errors import CallError

from tests.compiled import sanitized

Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def in_dom0(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEDOS_VM", "dom0")


@pytest.fixture(scope="module")
def program() -> Path:
    return sanitized("call") / "qvm-call"


def line(*words: str) -> list[str]:
    """The arguments that `qvm-call` would get."""
    session = Session("qvm-run")
    session.take_arguments(parse(words))
    return qvm_run.call_line(session)


def prefix(command: str) -> list[str]:
    return ["--prefix-data", f"eval {quote(command)}; exit\n"]


@pytest.mark.parametrize(
    ("words", "made"),
    [
        (["-p", "work", "ls ~ | wc"], [*prefix("ls ~ | wc"), "work", "qubes.VMShell"]),
        (["work", "ls ~", "-p"], [*prefix("ls ~"), "work", "qubes.VMShell"]),
        (["work", "--", "ls", "-l", "a b"], [*prefix("ls -l 'a b'"), "work", "qubes.VMShell"]),
        (["-p", "--", "work", "ls", "--"], [*prefix("ls --"), "work", "qubes.VMShell"]),
        (["-p", "work", "--", ""], [*prefix(""), "work", "qubes.VMShell"]),
        (["--no-gui", "work", "x"], [*prefix("x"), "work", "qubes.VMShell"]),
        (["--gui", "work", "x"], [*prefix("x"), "work", "qubes.VMShell+WaitForSession"]),
        (["--service", "work", "app.Open"], ["work", "app.Open"]),
        (["-p", "--service", "work", "app.Open+a+b"], ["work", "app.Open+a+b"]),
        (["-u", "root", "--service", "work", "a"], ["--user", "root", "work", "a"]),
        (
            ["-p", "--localcmd", "tar -x", "--service", "work", "a"],
            ["work", "a", "--", "/bin/sh", "-c", "tar -x"],
        ),
        (["--filter-escape-chars", "--service", "work", "a"], ["-t", "-T", "work", "a"]),
        (
            ["--no-filter-escape-chars", "--service", "work", "a"],
            [
                "--no-filter-escape-chars-stdout", "--no-filter-escape-chars-stderr", "work", "a",
            ],
        ),
    ],
)  # fmt: skip
def test_the_command_line_of_a_call(words: list[str], made: list[str]) -> None:
    assert line(*words) == made


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "a VM and a command are needed"),
        (["work"], "a VM and a command are needed"),
        (["wo rk", "ls"], "wo rk"),
        (["--service", "work", "app Open"], "'app Open' is not SERVICE"),
        (["--service", "work", "+x"], "'+x' is not SERVICE"),
        (["--service", "work", "app.Open", "page"], "app.Open+page"),
        (["--localcmd", "cat", "work", "ls"], "--localcmd needs --pass-io"),
        (["-u", "no user", "work", "ls"], "'no user' is not a user's name"),
        (
            ["--filter-escape-chars", "--no-filter-escape-chars", "work", "ls"],
            "contradicts --no-filter-escape-chars",
        ),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_called(words: list[str], said: str) -> None:
    with pytest.raises(UsageError) as error:
        line(*words)
    assert said in error.value.message


def test_disposables_are_refused_in_words(capsys: Captured) -> None:
    assert main(["--dispvm", "work", "ls"]) == 125
    assert "there are no disposable VMs yet" in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["--no-such", "work", "ls"], ["wo rk", "ls"]])
def test_wrong_usage_is_no_status_that_a_command_has(words: list[str], capsys: Captured) -> None:
    assert main(words) == 125
    assert capsys.readouterr().err.startswith("qvm-run: usage: ")


def test_a_fault_in_it_is_no_status_that_a_command_has(
    monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setattr(qvm_run, "filters", lambda _: 1 / 0)
    assert main(["work", "ls"]) == 125
    assert "internal error" in capsys.readouterr().err


def test_in_a_vm_it_names_the_program_for_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEDOS_VM", "work")
    with pytest.raises(CallError, match="qvm-run is for dom0, and here is work"):
        line("vault", "ls")


@pytest.mark.parametrize("shell", ["bash", "sh"])
def test_a_shell_runs_the_command_with_the_rest_as_its_input(shell: str) -> None:
    if shell == "sh" and os.path.realpath("/bin/sh").endswith("dash"):
        pytest.skip("dash reads ahead of the line")
    sent = shell_line(["wc -c # a comment"]).encode() + b"x" * 20_000
    done = subprocess.run([f"/bin/{shell}"], input=sent, capture_output=True, check=False)
    assert (done.returncode, done.stdout.split()) == (0, [b"20000"])
    sent = shell_line(["printf '%s|' a\nexit 7"]).encode()
    done = subprocess.run([f"/bin/{shell}"], input=sent, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (7, b"a|")


@pytest.mark.parametrize(
    "command", ["", "#", "echo a \\", "echo a # b", "if", "echo 'a", "cat <<E\na\nE", "true;", "{"]
)
def test_a_command_ends_where_it_ends_for_sh_c(command: str) -> None:
    sent = shell_line([command]).encode() + b"echo rest\n"
    ours = subprocess.run(["/bin/bash"], input=sent, capture_output=True, check=False)
    words = ["/bin/bash", "-c", command]
    usual = subprocess.run(words, input=b"echo rest\n", capture_output=True, check=False)
    assert (ours.returncode, ours.stdout) == (usual.returncode, usual.stdout)
    assert bool(ours.stderr) == bool(usual.stderr)


def test_words_reach_the_command_as_they_are() -> None:
    words = ["printf", "%s|", "a b", "$HOME", "'", "\n", "*", ""]
    done = subprocess.run(
        ["/bin/bash"], input=shell_line(words).encode(), capture_output=True, check=False
    )
    assert done.stdout.decode() == "a b|$HOME|'|\n|*||"


def fake_call(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """A qvm-call that does what `text` says."""
    program = folder / "qvm-call"
    program.write_text(f"#!/bin/bash\n{text}\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(folder / "python"))


def test_streams_lead_nowhere_and_a_refusal_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Captured
) -> None:
    said = {"kind": "refused", "text": "denied: app.Open", "rule": "30-user.policy:1: x"}
    told = json.dumps({"event": "ended", **said})
    fake_call(tmp_path, monkeypatch, f"cat; echo lost; echo lost >&2; echo '{told}' >&3; exit 126")
    assert main(["--service", "work", "app.Open"]) == 126
    assert capfd.readouterr() == (
        "", "qvm-run: denied: app.Open\n  rule: 30-user.policy:1: x\n",
    )  # fmt: skip


def test_the_status_of_a_command_whose_streams_lead_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Captured
) -> None:
    fake_call(tmp_path, monkeypatch, """echo '{"event": "ended", "text": ""}' >&3; exit 3""")
    assert main(["work", "false"]) == 3
    fake_call(tmp_path, monkeypatch, "echo nonsense >&3; kill -9 $$")
    assert main(["work", "false"]) == 125
    assert capfd.readouterr() == ("", "qvm-run: failed: qvm-call was ended by signal 9\n")


@pytest.mark.parametrize("status", [0, 125])
def test_a_call_that_came_to_no_end_is_no_silent_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Captured, status: int
) -> None:
    fake_call(tmp_path, monkeypatch, f"""echo '{{"event": "started"}}' >&3; exit {status}""")
    assert main(["work", "false"]) == 125
    said = f"qvm-call ended with status {status}, and did not say why"
    assert capfd.readouterr() == ("", f"qvm-run: failed: {said}\n")


def test_without_an_agent_it_says_so_although_its_streams_lead_nowhere(
    program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Captured
) -> None:
    (tmp_path / "qvm-call").symlink_to(program)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PEDOS_CALL_SOCKET", str(tmp_path / "none"))
    assert main(["work", "false"]) == 125
    assert capfd.readouterr() == (
        "", f"qvm-run: cannot reach this VM's agent at {tmp_path}/none: No such file or directory\n"
        "  try:  systemctl status pedos-agent (in dom0: pedos-dom0-agent)\n",
    )  # fmt: skip


def test_with_its_streams_it_becomes_the_other_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_call(tmp_path, monkeypatch, "")
    became: list[object] = []

    def execv(program: str, words: list[str]) -> None:
        became.append((Path(program).name, words))
        raise SystemExit(0)

    monkeypatch.setattr(os, "execv", execv)
    assert main(["-p", "--service", "work", "app.Open"]) == 0
    assert became == [("qvm-call", ["qvm-run", "work", "app.Open"])]


def test_a_program_that_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert main(["-p", "--service", "work", "app.Open"]) == 125
    assert f"{tmp_path}/qvm-call cannot be started: no such file" in capsys.readouterr().err
