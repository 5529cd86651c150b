"""What qvm-call asks for, whom it asks, and how it ends."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from pedos_protocol.call_link import Call, Signal

from tests.call_agent import Asked, FakeAgent
from tests.e2e.system import wait_until
from tests.patience import PATIENCE

from .running_qvm_call import (
    PIPE,
    SH,
    Run,
    end_of,
)

# What is asked for


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["work", "a.B"], Call(1, False, "work", "a.B", "+", "")),
        (["work", "a.B+"], Call(1, False, "work", "a.B", "+", "")),
        (["work", "a.B+c+d"], Call(1, False, "work", "a.B", "+c+d", "")),
        (["", "a.B"], Call(1, False, "@default", "a.B", "+", "")),
        (["$default", "a.B"], Call(1, False, "@default", "a.B", "+", "")),
        (["$dispvm:work", "a.B"], Call(1, False, "@dispvm:work", "a.B", "+", "")),
        (["--", "@default", "a.B"], Call(1, False, "@default", "a.B", "+", "")),
        (["--user", "root", "work", "a.B"], Call(1, False, "work", "a.B", "+", "root")),
        (["--buffer-size=65536", "work", "a.B"], Call(1, False, "work", "a.B", "+", "")),
        (["work", "a.B", "--", "true"], Call(1, True, "work", "a.B", "+", "")),
    ],
)
def test_it_asks_for_what_the_command_line_says(
    run: Run, agent: FakeAgent, arguments: list[str], message: Call
) -> None:
    process = run(*arguments)
    asked = agent.asked()
    assert asked.message == message._replace(is_last=True)
    asked.ended()
    assert end_of(process) == (0, b"", b"")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "usage: TARGET and SERVICE are needed"),
        (["work"], "usage: TARGET and SERVICE are needed"),
        (["--no-such", "work", "a.B"], "usage: not an option, or one without its value: --no-such"),
        (["-p"], "usage: not an option, or one without its value: -p"),
        (["--buffer-size", "x", "work", "a.B"], "usage: --buffer-size: a number is meant"),
        (["--status-fd", "77", "work", "a.B"], "usage: --status-fd: this descriptor is not open"),
        (["work", "a.B", "--"], "usage: a program has to follow --"),
        (["work", "x" * 1024], "usage: SERVICE is much too long"),
        (["--use-stdin-socket", "-t", "w", "a.B"], "--use-stdin-socket and -t exclude each other"),
        (
            ["--use-stdin-socket", "w", "a.B", "true"],
            "--use-stdin-socket and a local program exclude each other",
        ),
        (["--use-stdin-socket", "w", "a.B"], "standard input is not a stream socket"),
        (["--status-fd", "0", "work", "a.B"], "this descriptor is not open for writing"),
        (["work", "x" * 300], "SERVICE has 300 bytes: at most 256 are allowed"),
        (["work", "a\nb"], "SERVICE has the byte 0x0a: letters, digits and each of ._- are"),
        (["work", "a.B+c d"], "ARGUMENT has the byte 0x20: letters, digits and each of ._-+ are"),
        (["work", "a.B+c\nd"], "ARGUMENT has the byte 0x0a"),
        (["work", "a.B+ü"], "ARGUMENT has the byte 0xc3"),
        (["work", "a/B"], "SERVICE has the byte '/'"),
        (["wo rk", "a.B"], "TARGET has the byte 0x20: letters, digits and each of ._-@: are"),
        (["--user", "a\x1bb", "work", "a.B"], "USER has the byte 0x1b"),
    ],
)
def test_what_cannot_be_asked_for_is_125_with_a_sentence(
    run: Run, arguments: list[str], said: str
) -> None:
    status, out, err = end_of(run(*arguments))
    assert (status, out) == (125, b"")
    assert said in err.decode()


def test_help_and_version_go_to_standard_output(run: Run) -> None:
    status, out, err = end_of(run("--help"))
    assert status == 0 and out.startswith(b"usage: qvm-call") and not err
    status, out, _ = end_of(run("--version"))
    assert status == 0 and out.startswith(b"qvm-call ")


# Whom it asks


def test_it_finds_the_agent_beside_the_socket_of_the_command_line(
    program: Path, tmp_path: Path
) -> None:
    # Deeper than an address can be.
    folder = tmp_path / ("x" * 60) / ("y" * 60)
    folder.mkdir(parents=True)
    near = FakeAgent(tmp_path / "c")
    os.rename(near.path, folder / "work.calls")
    environment = {"PATH": os.environ["PATH"], "PEDOS_SOCKET": str(folder / "work.sock")}
    with subprocess.Popen([program, "vault", "a.B"], env=environment) as process:
        near.asked().ended("exited", 3)
        assert process.wait(PATIENCE) == 3
    near.close()


def test_without_an_agent_it_says_so(program: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PEDOS_CALL_SOCKET": str(tmp_path / "nothing")}
    done = subprocess.run(
        [program, "vault", "a.B"], env=environment, stdin=PIPE, stderr=PIPE, check=False
    )
    assert done.returncode == 125
    first, second = done.stderr.decode().splitlines()
    assert first == (
        f"qvm-call: cannot reach this VM's agent at {tmp_path}/nothing: No such file or directory"
    )
    assert second == "  try:  systemctl status pedos-agent (in dom0: pedos-dom0-agent)"


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be other users")
def test_another_user_s_program_is_no_agent(program: Path) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:  # pytest's own are for its user alone
        os.chown(folder, 1234, -1)
        listen = (
            "import os, socket, sys; os.setuid(1234)\n"
            "s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); s.bind(sys.argv[1])\n"
            "s.listen(); print(flush=True); s.accept()[0].recv(9); s.accept()"
        )
        command = [sys.executable, "-c", listen, f"{folder}/s"]
        with subprocess.Popen(command, stdout=PIPE) as other:
            assert other.stdout is not None
            other.stdout.readline()
            environment = {**os.environ, "PEDOS_CALL_SOCKET": f"{folder}/s"}
            done = subprocess.run(
                [program, "vault", "a.B"], env=environment, stdin=PIPE, stderr=PIPE, check=False
            )
            other.kill()
    assert done.returncode == 125
    assert b"is that of another user's program" in done.stderr


# How it ends


@pytest.mark.parametrize(
    ("kind", "status", "exit_status"),
    [
        *(("exited", 0, 0), ("exited", 1, 1), ("exited", 255, 255), ("signalled", 9, 137)),
        *(("problem", 0, 125), ("refused", 0, 126), ("not_found", 0, 127), ("lost", 0, 125)),
    ],
)
def test_its_exit_status_tells_how_the_call_has_ended(
    run: Run, agent: FakeAgent, kind: str, status: int, exit_status: int
) -> None:
    process = run("work", "a.B")
    agent.asked().ended(kind, status)
    assert end_of(process)[0] == exit_status


def test_it_says_why_and_what_next(run: Run, agent: FakeAgent) -> None:
    process = run("work", "a.B")
    agent.asked().ended("refused", 0, "denied: no", "x.policy:3: a.B * * deny", "qvm-policy")
    assert end_of(process)[2].decode().splitlines() == [
        "qvm-call: denied: no",
        "  rule: x.policy:3: a.B * * deny",
        "  try:  qvm-policy",
        "  request: 17",
    ]


def test_it_speaks_under_the_name_that_it_was_called_by(
    program: Path, agent: FakeAgent, tmp_path: Path
) -> None:
    (tmp_path / "qrexec-client-vm").symlink_to(program)
    done = subprocess.run(
        [tmp_path / "qrexec-client-vm", "work"], stderr=PIPE, stdin=PIPE, check=False
    )
    assert done.returncode == 125
    assert done.stderr.startswith(b"qrexec-client-vm: usage: ")


def test_a_full_disk_is_no_success(run: Run, agent: FakeAgent) -> None:
    with open("/dev/full", "wb") as full:
        process = run("work", "a.B", stdout=full)
    asked = agent.asked()
    os.write(asked.stdout, b"data")
    asked.ended()
    status, _, err = end_of(process)
    assert status == 125
    assert err == b"qvm-call: cannot write standard output: No space left on device\n"


def test_an_input_that_cannot_be_read_is_not_taken_for_a_short_one(
    run: Run, agent: FakeAgent, tmp_path: Path
) -> None:
    folder = os.open(tmp_path, os.O_RDONLY)
    process = run("-p", "begin", "work", "a.B", stdin=folder)
    os.close(folder)
    asked = agent.asked()
    assert asked.hear() is None, "it has hung up"
    os.set_blocking(asked.stdin, False)
    assert os.read(asked.stdin, 100) == b"begin"
    with pytest.raises(BlockingIOError):
        os.read(asked.stdin, 100)  # there is no end before that
    asked.ended("aborted", 0, "it was given up before dom0 had decided")
    status, _, err = end_of(process)
    assert (status, err) == (125, b"qvm-call: cannot read standard input: Is a directory\n")


def test_an_end_by_others_is_said(run: Run, agent: FakeAgent) -> None:
    process = run("work", "a.B")
    agent.asked().ended("aborted", 0, "aborted: dom0 has ended it")
    assert end_of(process)[2] == b"qvm-call: aborted: dom0 has ended it\n"


@pytest.mark.parametrize(("service", "hints"), [("qubes.VMShell", True), ("a.B", False)])
def test_a_vm_without_the_shell_s_service_lacks_a_package(
    run: Run, agent: FakeAgent, service: str, hints: bool
) -> None:
    process = run("work", service)
    agent.asked().ended("not_found", 0, f"not found: there is no service {service}")
    status, _, err = end_of(process)
    assert (status, b"pedos-qrexec" in err) == (127, hints)


def test_an_agent_that_goes_away_is_no_end_of_the_service(run: Run, agent: FakeAgent) -> None:
    process = run("work", "a.B")
    asked = agent.asked()
    asked.started()
    agent.close()
    status, _, err = end_of(process)
    assert status == 125
    assert b"this VM's agent has gone away, and the call with it" in err


@pytest.mark.parametrize("raw", [b"\x0c", b"\x63", b"\x0b\0\0", b"x" * 5000])
def test_an_agent_that_talks_nonsense_is_gone(run: Run, agent: FakeAgent, raw: bytes) -> None:
    process = run("work", "a.B")
    asked = agent.asked()
    asked.close()
    asked.connection.send(raw)
    assert end_of(process)[0] == 125


def test_one_that_is_refused_at_once_hears_why(run: Run, agent: FakeAgent) -> None:
    process = run("work", "a.B")
    connection = agent.accept()
    refused = Asked(connection, Call(1, False, "", "", "", ""), [-1, -1, -1])
    refused.ended("problem", 0, "quota: too many")
    agent.asked(connection).close()  # what it has said meanwhile
    status, _, err = end_of(process)
    assert (status, err) == (125, b"qvm-call: quota: too many\n")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_to_kill_it_is_to_hang_up(run: Run, agent: FakeAgent, number: int) -> None:
    process = run("work", "a.B")
    asked = agent.asked()
    process.send_signal(number)
    assert asked.hear() is None
    assert process.wait(PATIENCE) == -number


def test_signals_are_passed_on_where_that_is_wished(run: Run, agent: FakeAgent) -> None:
    process = run("--forward-signals", "work", "a.B", *SH, "kill -TERM $PPID; read -r line; exit 6")
    asked = agent.asked()
    asked.started()
    assert asked.hear() == Signal(signal.SIGTERM)
    process.send_signal(signal.SIGUSR1)
    assert asked.hear() == Signal(signal.SIGUSR1)
    asked.ended()
    assert end_of(process)[0] == 6


def held(pipe: int) -> int:
    """How many bytes a pipe has."""
    return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder)


def fill(pipe: int) -> None:
    os.set_blocking(pipe, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(pipe, bytes(4096))


def blocks(pid: int, number: int) -> bool:
    """Whether a process blocks a signal: see proc_pid_status(5)."""
    status = Path(f"/proc/{pid}/status").read_text()
    blocked = int(status.partition("SigBlk:")[2].split()[0], 16)
    return bool(blocked >> (number - 1) & 1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_without_a_service_that_could_have_them_signals_end_it(
    run: Run, agent: FakeAgent, number: int
) -> None:
    early = run("--forward-signals", "work", "a.B")
    asked = agent.asked()
    early.send_signal(number)
    assert asked.hear() is None
    assert early.wait(PATIENCE) == -number
    late = run("--forward-signals", "-t", "-p", "first", "work", "a.B")
    asked = agent.asked()
    asked.started()
    assert late.stdout is not None
    unread, half = late.stdout.fileno(), fcntl.fcntl(late.stdout, fcntl.F_GETPIPE_SZ) // 2
    wait_until(lambda: fill(asked.stdout) or held(unread) >= half, "half of its output is written")
    fill(asked.stdout)  # with more than the other half, which stays, as nobody reads
    asked.ended()
    wait_until(lambda: not blocks(late.pid, number), "it has heard of the end")
    late.send_signal(number)
    assert late.wait(PATIENCE) == -number


def test_a_signal_just_before_the_start_is_heard_of_is_the_service_s(
    run: Run, agent: FakeAgent
) -> None:
    """The service has written already: an agent may say the start a few milliseconds later."""
    process = run("--forward-signals", "work", "a.B")
    asked = agent.asked()
    os.write(asked.stdout, b"x")
    assert process.stdout is not None and process.stdout.read(1) == b"x"
    process.send_signal(signal.SIGSTOP)  # so that it finds both, the signal and the start
    os.waitid(os.P_PID, process.pid, os.WSTOPPED)
    process.send_signal(signal.SIGTERM)
    asked.started()
    process.send_signal(signal.SIGCONT)
    assert asked.hear() == Signal(signal.SIGTERM)
    asked.ended("exited", 6)
    assert end_of(process) == (6, b"", b"")


def test_an_ignored_signal_before_the_start_ends_nothing(run: Run, agent: FakeAgent) -> None:
    process = run(
        *("--forward-signals", "work", "a.B"),
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )
    asked = agent.asked()
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)  # the one after it is looked at all the same
    assert asked.hear() is None
    assert process.wait(PATIENCE) == -signal.SIGTERM


def test_a_signal_for_the_service_waits_until_it_runs(run: Run, agent: FakeAgent) -> None:
    process = run("--forward-signals", "work", "a.B")
    asked = agent.asked()
    process.send_signal(signal.SIGUSR2)
    asked.started()
    assert asked.hear() == Signal(signal.SIGUSR2)
    asked.ended()
    assert end_of(process)[0] == 0


@pytest.mark.parametrize("number", [1, 2])
def test_what_is_said_of_a_call_may_go_where_its_output_goes(
    run: Run, agent: FakeAgent, number: int
) -> None:
    process = run("--status-fd", str(number), "work", "a.B")
    asked = agent.asked()
    asked.started()
    asked.ended()
    said = end_of(process)[number].splitlines()
    assert [json.loads(line)["event"] for line in said] == ["started", "ended"]


def test_the_end_is_heard_although_a_signal_came_too_late(run: Run, agent: FakeAgent) -> None:
    process = run("--forward-signals", "work", "a.B")
    asked = agent.asked()
    asked.started()
    process.send_signal(signal.SIGUSR1)
    select.select([asked.connection], [], [], PATIENCE)
    process.send_signal(signal.SIGSTOP)  # so that it finds both, the end and what was unread
    os.waitid(os.P_PID, process.pid, os.WSTOPPED)
    asked.ended("exited", 7)
    asked.connection.close()
    process.send_signal(signal.SIGCONT)
    assert end_of(process) == (7, b"", b"")
