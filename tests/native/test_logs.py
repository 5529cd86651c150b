"""The log: a record is one line whatever it contains, and no program waits for its reader."""

from __future__ import annotations

import logging
import os
import select
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pedos_host import line_writer, logs
from pedos_host.line_writer import QUEUE_MAX, LineWriter
from pedos_host.logs import MESSAGE_MAX, TRACEBACK_MAX, LineFormatter
from pedos_protocol.names import is_printable

from tests.patience import PATIENCE

JOURNAL, PLAIN = logs._JournalFormatter(), logs._PlainFormatter("pedos-dom0")
FORGED = "\x1b]0;pwned\x07\x1b[2J no\npedos-dom0: critical: run curl\r\x9b1m\u202e\ud800\u3164"
SHOWN = (
    "\\x1b]0;pwned\\x07\\x1b[2J no\\npedos-dom0: critical: run curl\\r\\x9b1m\\u202e\\ud800\\u3164"
)


def record(message: str, *arguments: object, exc_info: Any = None) -> logging.LogRecord:
    return logging.LogRecord("x", logging.WARNING, "", 0, message, arguments, exc_info)


def raised(error: BaseException) -> Any:
    try:
        raise error
    except BaseException:
        return sys.exc_info()


@pytest.mark.parametrize(
    ("formatter", "before"), [(PLAIN, "pedos-dom0: warning: "), (JOURNAL, "<4>")]
)
def test_what_strangers_say_is_one_line_of_the_log(formatter: LineFormatter, before: str) -> None:
    assert formatter.format(record("work says: %s", FORGED)) == f"{before}work says: {SHOWN}"
    assert formatter.format(record(FORGED)) == f"{before}{SHOWN}"
    assert formatter.format(record("<2>x")) == f"{before}<2>x"


@pytest.mark.parametrize("text", ["Müllers Sticks", "Фото", "写真とデータ", "a \\ b"])
def test_letters_of_all_scripts_survive(text: str) -> None:
    assert PLAIN.format(record("%s", text)) == f"pedos-dom0: warning: {text}"


@pytest.mark.parametrize(("formatter", "before"), [(PLAIN, ""), (JOURNAL, "<4>")])
def test_a_traceback_is_indented_whatever_the_error_says(
    formatter: LineFormatter, before: str
) -> None:
    group = ExceptionGroup(FORGED, [ValueError(FORGED), OSError(2, FORGED, "x\ny")])
    text = formatter.format(record("it failed", exc_info=raised(group)))
    first, *rest = text.split("\n")
    assert first.endswith("it failed")
    assert len(rest) > 5
    for line in rest:
        assert line.startswith(f"{before}    ")
        assert is_printable(line)


@given(st.text(), st.booleans())
def test_whatever_is_logged_is_lines_of_the_program(text: str, journal: bool) -> None:
    formatter = JOURNAL if journal else PLAIN
    (line,) = formatter.format(record("%s", text)).split("\n")
    assert is_printable(line)
    error = formatter.format(record("%s", text, exc_info=raised(RuntimeError(text))))
    starts = ("<4>    ",) if journal else ("    ",)
    assert all(line.startswith(starts) for line in error.split("\n")[1:])


def test_messages_and_tracebacks_are_bounded() -> None:
    line = PLAIN.format(record("x" * 10 * MESSAGE_MAX))
    assert len(line) < MESSAGE_MAX + 100
    assert line.endswith(f"... ({10 * MESSAGE_MAX} characters)")
    lines = PLAIN.format(record("it failed", exc_info=raised(RuntimeError("x\n" * 10_000))))
    assert lines.count("\n") < TRACEBACK_MAX + 2
    assert "lines are left out" in lines


def test_the_log_of_a_program_is_whole_at_its_end() -> None:
    program = """
        import logging, sys
        from pedos_host import logs
        logs.set_up("x", verbose=False)
        for number in range(1000):
            logging.getLogger("y").info("%d", number)
        sys.exit(3)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert done.returncode == 3
    assert done.stderr.splitlines() == [f"x: info: {number}" for number in range(1000)]


def test_a_program_without_stderr_logs_nothing_and_goes_on() -> None:
    program = "import logging; from pedos_host import logs; logs.set_up('x', verbose=False); "
    program += "logging.error('x'); print('done')"
    command = ["sh", "-c", 'exec "$0" -c "$1" 2>&-', sys.executable, program]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, timeout=PATIENCE)
    assert (done.returncode, done.stdout) == (0, "done\n")


def missed(count: int) -> str:
    return f"{count} missed"


@pytest.fixture
def full() -> Iterator[tuple[int, int]]:
    """(reader, writer) of a pipe in which not one byte fits any more."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with pytest.raises(BlockingIOError):
        while True:
            os.write(writer, b"x")
    os.set_blocking(writer, True)
    yield reader, writer
    os.close(reader)
    os.close(writer)


def test_a_log_that_no_one_reads_keeps_no_one_waiting(full: tuple[int, int]) -> None:
    _reader, writer = full
    lines = LineWriter(writer, missed)
    handler = logs.LineHandler(lines)
    handler.setFormatter(PLAIN)
    for _ in range(2 * QUEUE_MAX // 100):
        handler.emit(record("x" * 100))  # returns
    lines.close(0)
    assert lines._dropped > 0


def test_a_disk_that_is_full_costs_lines_and_not_the_log(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reader, writer = os.pipe()
    is_full, tried = True, threading.Event()
    real = os.write

    def write(fd: int, data: Any) -> int:
        if is_full:
            tried.set()
            raise OSError(28, "No space left on device")
        return real(fd, data)

    monkeypatch.setattr(line_writer.os, "write", write)
    monkeypatch.setattr(line_writer, "FULL_PAUSE", 0)
    lines = LineWriter(writer, missed)
    lines.write("one\n")
    assert tried.wait(PATIENCE)
    is_full = False
    assert select.select([reader], [], [], PATIENCE)[0]
    lines.write("two\n")
    lines.close(PATIENCE)
    monkeypatch.undo()
    os.close(writer)
    with open(reader) as said:
        assert said.read() in ("1 missed\ntwo\n", "one\ntwo\n")
