"""qvm-call, built with sanitizers, and an agent that does what the test says."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pedos_protocol.call_link import Call, Signal

from tests.call_agent import CALL_ID, Asked, FakeAgent
from tests.patience import PATIENCE

ROOT = Path(__file__).parents[2]
PIPE = subprocess.PIPE
SH = ["--", "/bin/sh", "-c"]
BULK = bytes(range(256)) * 8192  # 2 MiB: more than any pipe or socket holds


@pytest.fixture(scope="module")
def program() -> Path:
    # Kept, as make sees what is new; one worker makes it at a time.
    folder = ROOT / "build" / "call-sanitized"
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        command = ["make", "--silent", "-C", str(ROOT / "native" / "call"), f"OUT={folder}"]
        subprocess.run([*command, "SANITIZE=address,undefined", "CFLAGS=-O1 -g"], check=True)
    finally:
        os.close(lock)
    return folder / "qvm-call"


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[FakeAgent]:
    made = FakeAgent(tmp_path / "calls")
    yield made
    made.close()


Run = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def run(program: Path, agent: FakeAgent) -> Iterator[Run]:
    started: list[subprocess.Popen[bytes]] = []

    def start(*arguments: str, **options: Any) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "PEDOS_CALL_SOCKET": str(agent.path)}
        environment.update(options.pop("env", {}))
        streams = {"stdin": PIPE, "stdout": PIPE, "stderr": PIPE, **options}
        process = subprocess.Popen([program, *arguments], env=environment, **streams)
        started.append(process)
        return process

    yield start
    for each in started:
        each.kill()
        each.wait()
        for stream in (each.stdin, each.stdout, each.stderr):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()


def end_of(process: subprocess.Popen[bytes]) -> tuple[int, bytes, bytes]:
    """Its exit status, and what else it has written."""
    out, err = process.communicate(timeout=PATIENCE)
    return process.returncode, out or b"", err or b""


def is_same(descriptor: int, file: Any) -> bool:
    ours, theirs = os.fstat(descriptor), os.fstat(file.fileno())
    return (ours.st_dev, ours.st_ino) == (theirs.st_dev, theirs.st_ino)


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
        (["work", "ü"], Call(1, False, "work", "ü", "+", "")),
        (["work", "a.B", "--", "true"], Call(1, True, "work", "a.B", "+", "")),
    ],
)
def test_it_asks_for_what_the_command_line_says(
    run: Run, agent: FakeAgent, arguments: list[str], message: Call
) -> None:
    process = run(*arguments)
    asked = agent.asked()
    assert asked.message == message
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
        (["work", "x" * 300], "a target, service or user is no name"),
        (["work", "a\nb"], "a target, service or user is no name"),
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


# Its streams


def test_pipes_and_sockets_are_handed_over_as_they_are(run: Run, agent: FakeAgent) -> None:
    ours, theirs = socket.socketpair()
    process = run("work", "a.B", stdout=theirs)
    asked = agent.asked()
    assert process.stdin is not None and process.stderr is not None
    assert is_same(asked.stdin, process.stdin)
    assert is_same(asked.stdout, theirs)
    assert is_same(asked.stderr, process.stderr)
    assert not asked.message.may_shut_down, "others may use that socket"
    theirs.close()
    os.write(asked.stdout, b"out")
    os.write(asked.stderr, b"err")
    assert ours.recv(9) == b"out"
    asked.close("stdout")
    ours.settimeout(PATIENCE)
    assert ours.recv(9) == b"", "it keeps nothing open"
    asked.close("stdin")
    with pytest.raises(BrokenPipeError):
        os.write(process.stdin.fileno(), b"x")
    assert process.poll() is None
    asked.ended("exited", 7)
    assert end_of(process) == (7, b"", b"err")
    ours.close()


@pytest.mark.parametrize("flags", [0, os.O_APPEND])
def test_files_are_copied_whole(run: Run, agent: FakeAgent, tmp_path: Path, flags: int) -> None:
    (tmp_path / "in").write_bytes(BULK)
    (tmp_path / "out").write_bytes(b"before ")
    out = os.open(tmp_path / "out", os.O_WRONLY | flags)
    os.lseek(out, 0, os.SEEK_END)
    with open(tmp_path / "in", "rb") as source:
        process = run("work", "a.B", stdin=source, stdout=out)
    os.close(out)
    asked = agent.asked()
    assert asked.read_input() == BULK
    left = memoryview(BULK)
    while left:
        left = left[os.write(asked.stdout, left) :]
    asked.ended()
    assert end_of(process) == (0, b"", b"")
    assert (tmp_path / "out").read_bytes() == b"before " + BULK


def test_a_prefix_comes_before_the_input(run: Run, agent: FakeAgent) -> None:
    process = run("-p", "x" * 100_000, "work", "a.B")
    asked = agent.asked()
    assert process.stdin is not None
    process.stdin.write(b"and the rest")
    process.stdin.close()
    process.stdin = None
    assert asked.read_input() == b"x" * 100_000 + b"and the rest"
    asked.ended()
    assert end_of(process)[0] == 0


def test_a_service_that_reads_no_more_leaves_the_input_to_others(
    run: Run, agent: FakeAgent, tmp_path: Path
) -> None:
    process = run("-p", "x", "work", "a.B")  # so that it copies
    asked = agent.asked()
    asked.close("stdin")
    assert process.stdin is not None
    # It notices by itself, without anything to copy.
    poll = select.poll()
    poll.register(process.stdin, 0)
    assert poll.poll(PATIENCE * 1000), "nobody reads there any more"
    process.stdin.close()
    process.stdin = None
    asked.ended()
    assert end_of(process)[0] == 0


ESCAPES = b"a\x1b[31mb\xc3\xa4\t\a\b\r\n"
HARMLESS = b"a_[31mb__\t\a\b\r\n"


def on_terminal(run: Run, agent: FakeAgent, *options: str) -> tuple[bytes, bytes]:
    """What a terminal gets of such an output and error output."""
    got = []
    ours, theirs = pty.openpty()
    mode = termios.tcgetattr(theirs)
    mode[1] &= ~termios.OPOST
    termios.tcsetattr(theirs, termios.TCSANOW, mode)
    flags = fcntl.fcntl(theirs, fcntl.F_GETFL)
    process = run(*options, "work", "a.B", stdin=theirs, stdout=theirs, stderr=theirs)
    asked = agent.asked()
    for stream in (asked.stdout, asked.stderr):
        os.write(stream, ESCAPES)
        found = b""
        while not found.endswith(b"\n"):
            found += os.read(ours, 100)
        got.append(found)
    asked.ended()
    assert process.wait(PATIENCE) == 0
    assert fcntl.fcntl(theirs, fcntl.F_GETFL) == flags, "others use the terminal, too"
    os.close(ours)
    os.close(theirs)
    return got[0], got[1]


@pytest.mark.parametrize(
    ("options", "out", "err"),
    [
        ([], HARMLESS, HARMLESS),
        (["--no-filter-escape-chars-stdout"], ESCAPES, HARMLESS),
        (["--no-filter-escape-chars-stderr"], HARMLESS, ESCAPES),
    ],
)
def test_no_other_vm_controls_a_terminal(
    run: Run, agent: FakeAgent, options: list[str], out: bytes, err: bytes
) -> None:
    assert on_terminal(run, agent, *options) == (out, err)


@pytest.mark.parametrize(
    ("options", "out", "err"),
    [
        ([], ESCAPES, ESCAPES),
        (["-t"], HARMLESS, ESCAPES),
        (["-T"], ESCAPES, HARMLESS),
        (["--filter-escape-chars-stdout", "--filter-escape-chars-stderr"], HARMLESS, HARMLESS),
    ],
)
def test_pipes_are_filtered_where_it_is_wished(
    run: Run, agent: FakeAgent, options: list[str], out: bytes, err: bytes
) -> None:
    process = run(*options, "work", "a.B")
    asked = agent.asked()
    os.write(asked.stdout, ESCAPES)
    os.write(asked.stderr, ESCAPES)
    asked.ended()
    assert end_of(process) == (0, out, err)


def test_a_terminal_is_read_line_by_line(run: Run, agent: FakeAgent) -> None:
    ours, theirs = pty.openpty()
    process = run("work", "a.B", stdin=theirs)
    asked = agent.asked()
    os.write(ours, b"first\n")
    assert os.read(asked.stdin, 100) == b"first\n"
    os.write(ours, b"last\n\x04")
    assert asked.read_input() == b"last\n"
    asked.ended()
    assert end_of(process)[0] == 0
    os.close(ours)
    os.close(theirs)


def test_one_socket_can_be_both_ends(run: Run, agent: FakeAgent) -> None:
    ours, theirs = socket.socketpair()
    process = run("--use-stdin-socket", "work", "a.B", stdin=theirs, stdout=subprocess.DEVNULL)
    asked = agent.asked()
    assert asked.message.may_shut_down
    assert is_same(asked.stdin, theirs) and is_same(asked.stdout, theirs)
    asked.ended()
    assert end_of(process)[0] == 0
    ours.close()
    theirs.close()


def test_closed_descriptors_are_no_others(run: Run, agent: FakeAgent) -> None:
    process = run("work", "a.B", preexec_fn=lambda: [os.close(fd) for fd in range(3)])
    asked = agent.asked()
    assert asked.read_input() == b""
    os.write(asked.stdout, b"lost")
    asked.ended("exited", 5)
    assert process.wait(PATIENCE) == 5


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
    asked.ended("aborted")
    status, _, err = end_of(process)
    assert status == 125
    assert b"cannot read standard input: Is a directory" in err


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


def test_programs_can_follow_it(run: Run, agent: FakeAgent) -> None:
    reader, writer = os.pipe()
    process = run("--status-fd", str(writer), "work", "a.B", pass_fds=[writer])
    os.close(writer)
    asked = agent.asked()
    asked.started()
    asked.ended("problem", 0, 'a "quoted" \\ ü', "", "do")
    assert end_of(process)[0] == 125
    with open(reader, "rb") as lines:
        assert [json.loads(line) for line in lines] == [
            {"event": "started", "call": CALL_ID, "request": "17"},
            {
                "event": "ended",
                "kind": "problem",
                "status": 0,
                "exit_status": 125,
                "text": 'a "quoted" \\ ü',
                "rule": "",
                "hint": "do",
                "request": "17",
            },
        ]


# With a local program


def test_a_local_program_is_connected_to_the_service(run: Run, agent: FakeAgent) -> None:
    process = run("work", "a.B", *SH, "cat; echo done >&2")
    asked = agent.asked()
    asked.started()
    os.write(asked.stdout, b"there and back")
    assert os.read(asked.stdin, 100) == b"there and back"
    asked.close("stdout")
    assert asked.read_input() == b""
    asked.ended()
    assert end_of(process) == (0, b"", b"done\n")


def test_it_finds_the_streams_of_the_caller(run: Run, agent: FakeAgent) -> None:
    script = 'read -r line <&"$SAVED_FD_0"; echo "got $line" >&"$SAVED_FD_1"'
    process = run("work", "a.B", "/bin/sh", "-c", script)
    asked = agent.asked()
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(b"this\n")
    process.stdin.flush()
    asked.started()
    assert asked.read_input() == b""
    assert process.stdout.read() == b"got this\n", "and nobody else keeps it open"
    assert process.poll() is None
    asked.ended()
    assert end_of(process)[0] == 0


@pytest.mark.parametrize(("remote", "local", "status"), [(0, 0, 0), (0, 4, 4), (3, 4, 3)])
def test_the_local_exit_status_counts_if_the_other_is_0(
    run: Run, agent: FakeAgent, remote: int, local: int, status: int
) -> None:
    process = run("work", "a.B", *SH, f"exit {local}")
    asked = agent.asked()
    asked.started()
    asked.ended("exited", remote)
    assert end_of(process)[0] == status


def test_a_local_program_that_is_killed_is_told_as_a_shell_does(run: Run, agent: FakeAgent) -> None:
    process = run("work", "a.B", *SH, "kill -KILL $$")
    asked = agent.asked()
    asked.started()
    asked.ended()
    assert end_of(process)[0] == 137


def test_it_is_not_started_for_a_service_that_is_not(
    run: Run, agent: FakeAgent, tmp_path: Path
) -> None:
    process = run("work", "a.B", *SH, f"touch {tmp_path}/began")
    agent.asked().ended("refused", 0, "denied: no")
    assert end_of(process)[0] == 126
    assert not (tmp_path / "began").exists()


def test_a_local_program_that_is_missing_ends_the_call(run: Run, agent: FakeAgent) -> None:
    process = run("work", "a.B", "--", "/no/such")
    asked = agent.asked()
    asked.started()
    assert asked.hear() is None
    asked.ended("aborted")
    status, _, err = end_of(process)
    assert status == 125
    assert err.startswith(b"qvm-call: /no/such: No such file or directory")


def test_it_gets_signals_as_programs_do_and_the_prefix_goes_first(
    run: Run, agent: FakeAgent
) -> None:
    # A shell that ignores SIGPIPE could not trap it.
    script = "trap 'exit 9' PIPE; echo more; kill -PIPE $$"
    process = run("--prefix-data", "x" * 100_000, "work", "a.B", *SH, script)
    asked = agent.asked()
    asked.started()
    assert asked.read_input() == b"x" * 100_000 + b"more\n"
    asked.ended()
    assert end_of(process)[0] == 9


def test_what_a_local_program_gets_can_be_filtered(run: Run, agent: FakeAgent) -> None:
    process = run("-t", "work", "a.B", *SH, 'cat >&"$SAVED_FD_1"')
    asked = agent.asked()
    asked.started()
    os.write(asked.stdout, ESCAPES)
    asked.close("stdout")
    assert asked.read_input() == b""
    asked.ended()
    assert end_of(process) == (0, HARMLESS, b"")
