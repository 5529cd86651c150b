"""The standard streams of qvm-call: handed over, or copied whole."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import socket
import subprocess
import termios
from pathlib import Path

import pytest

from tests.call_agent import FakeAgent
from tests.patience import PATIENCE

from .running_qvm_call import (
    BULK,
    ESCAPES,
    HARMLESS,
    Run,
    end_of,
    is_same,
)


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


def test_a_program_that_reads_no_more_is_noticed_without_output(run: Run, agent: FakeAgent) -> None:
    """It has hung up the socket that its output is copied to; nothing is to be copied."""
    process = run("-t", "work", "a.B", "--", "true")
    asked = agent.asked()
    asked.started()
    poll = select.poll()
    poll.register(asked.stdout, 0)
    assert poll.poll(PATIENCE * 1000), "nobody reads there any more"
    asked.ended()
    assert end_of(process)[0] == 0


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
