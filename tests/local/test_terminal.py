"""A terminal that blocks, or goes away: `pedos-local up DIR 2>&1 | less`, or `| head`."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from pedos_dom0.local.cli import main
from pedos_dom0.local.layout import LOG_KEEP, Layout
from pedos_dom0.local.terminal import Terminal
from pedos_host.line_writer import QUEUE_MAX
from pedos_host.plain_unix import short_path

from tests import warm

from .conftest import PATIENCE, needs_fuse

LINE = "x" * 99 + "\n"


@pytest.fixture
def lab(tmp_path: Path) -> Layout:
    assert main(["init", str(tmp_path / "lab")]) == 0
    return Layout.of(tmp_path / "lab")


@pytest.fixture
def full_pipe() -> Iterator[tuple[int, int]]:
    """(reader, writer) of a pipe in which not one byte fits any more."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    try:
        while True:
            os.write(writer, b"x")
    except BlockingIOError:
        os.set_blocking(writer, True)
    yield reader, writer
    os.close(reader)
    os.close(writer)


def read_all(fd: int) -> bytes:
    return b"".join(iter(lambda: os.read(fd, 65536), b""))


def test_a_terminal_that_takes_everything_gets_everything_in_order() -> None:
    reader, writer = os.pipe()
    terminal = Terminal(writer)
    for number in range(100):
        terminal.write(f"{number}\n")
    terminal.say("bye")
    terminal.close(PATIENCE)
    os.close(writer)
    assert read_all(reader).decode().splitlines() == [*map(str, range(100)), "pedos-local: bye"]
    os.close(reader)


def test_a_terminal_that_takes_nothing_keeps_nobody_waiting_and_tells_how_much_it_missed(
    full_pipe: tuple[int, int],
) -> None:
    reader, writer = full_pipe
    terminal = Terminal(writer)
    count = 2 * QUEUE_MAX // len(LINE)
    for _ in range(count):
        terminal.write(LINE)
    terminal.close(0)  # nor does the end wait
    end = os.dup(writer)
    got: list[bytes] = []
    with open(reader, "rb", closefd=False) as lines:
        filler = lines.readline()  # what had filled the pipe, with our first line
        assert filler.endswith(LINE.encode())
        while not (line := lines.readline()).startswith(b"pedos-local: "):
            got.append(line)
    os.close(end)
    assert set(got) == {LINE.encode()}
    missed = count - len(got) - 1
    assert line.decode() == f"pedos-local: {missed} lines are not shown; DIR/log has them\n"


def test_a_terminal_that_is_gone_is_told_once_and_then_takes_everything() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    terminal = Terminal(writer)
    told: list[OSError] = []
    known = threading.Event()
    terminal.when_gone(lambda error: (told.append(error), known.set()))
    for _ in range(3):
        terminal.write(LINE)
    assert known.wait(PATIENCE)
    terminal.write(LINE)
    terminal.close(PATIENCE)
    os.close(writer)
    assert [type(error) for error in told] == [BrokenPipeError]


def up(lab: Layout, stderr: int, ready: str = "") -> subprocess.Popen[bytes]:
    argv = [*warm.LOCAL, "up", lab.root]
    return warm.Popen(argv, stderr=stderr, env={**os.environ, "NOTIFY_SOCKET": ready})


@needs_fuse
def test_up_without_its_terminal_goes_down_in_order_and_says_why_in_its_log(lab: Layout) -> None:
    with up(lab, subprocess.PIPE) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith(b"pedos-local: bringing up")
        process.stderr.close()
        assert process.wait(PATIENCE) == 1
    log = lab.log("machine").read_text()
    assert "ERROR the terminal is gone: Broken pipe" in log
    assert log.endswith("INFO all is down\n")


@needs_fuse
def test_up_works_and_ends_while_nobody_reads_what_it_says(
    lab: Layout, tmp_path: Path, full_pipe: tuple[int, int]
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready:
        with short_path(tmp_path / "ready") as short:
            ready.bind(short)
        ready.settimeout(PATIENCE)
        with up(lab, full_pipe[1], str(tmp_path / "ready")) as process:
            try:
                assert ready.recv(100) == b"READY=1"
                process.send_signal(signal.SIGINT)
                assert process.wait(PATIENCE) == 0
            finally:
                process.kill()
    assert lab.log("machine").read_text().endswith("INFO all is down\n")


@needs_fuse
def test_one_more_ctrl_c_ends_a_machine_that_does_not_go_down(lab: Layout, tmp_path: Path) -> None:
    program = tmp_path / "stuck.py"
    program.write_text(
        textwrap.dedent(
            """
            import sys, trio
            from pedos_dom0.local import session
            from pedos_dom0.local.cli import main
            from pedos_dom0.local.machine import Machine

            async def never(self):
                await trio.sleep_forever()

            Machine.stop = never
            session.FORCE_TIMEOUT = 0.05
            main(["up", sys.argv[1]])
            """
        )
    )
    argv = [sys.executable, str(program), str(lab.root)]
    with subprocess.Popen(argv, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        try:
            for words in (b"everything is up", b"SIGINT: going down", b"killing what is left"):
                assert any(words in line for line in process.stderr), words
                if words != b"killing what is left":
                    process.send_signal(signal.SIGINT)
            assert b"ended by force" in process.stderr.read()
            assert process.wait(PATIENCE) == 128 + signal.SIGINT
        finally:
            process.kill()


@needs_fuse
def test_the_machines_own_log_makes_way_before_it_is_written_to(lab: Layout) -> None:
    log = lab.log("machine")
    log.parent.mkdir(exist_ok=True)
    log.write_bytes(b"x" * (LOG_KEEP + 1))
    with up(lab, subprocess.PIPE) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith(b"pedos-local: bringing up")
        process.send_signal(signal.SIGINT)
        process.stderr.read()
        assert process.wait(PATIENCE) == 0
    assert log.with_name("machine.log.1").stat().st_size == LOG_KEEP + 1
    assert log.read_text().endswith("INFO all is down\n")
