"""Where log lines go: stderr, in the form that its reader understands.

journald takes the level of a line from a `<N>` before it (sd-daemon(3)); other readers see the
program's name and the level as words.

Logged texts may come from a VM or another stranger. The parser makes them harmless; here, as the
last line of defence, everything that is not printable is escaped, and a record is one line. Only a
traceback has more lines, which are indented: no text can pass for the beginning of another record.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import TYPE_CHECKING

from pedos_protocol.names import escaped_text

from .line_writer import LineWriter, stderr

if TYPE_CHECKING:
    from typing import Any

# Characters of one message. The programs' own are a sentence or two, with a policy's error in it;
# anything longer was not foreseen, and must not fill a disk or a screen.
MESSAGE_MAX = 8192
# Lines of one traceback: the first and the last of so many are enough to find the place.
TRACEBACK_MAX = 200
INDENT = "    "

_PRIORITY = {
    logging.CRITICAL: 2,
    logging.ERROR: 3,
    logging.WARNING: 4,
    logging.INFO: 6,
    logging.DEBUG: 7,
}


class LineFormatter(logging.Formatter):
    """One line per record, and indented ones for a traceback, with all words escaped."""

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        if len(message) > MESSAGE_MAX:
            message = f"{message[:MESSAGE_MAX]}... ({len(message)} characters)"
        record.message = escaped_text(message)
        if self.usesTime():
            record.asctime = self.formatTime(record, self.datefmt)
        # Not kept in the record, as logging would do: another handler may want another form.
        traceback = self.formatException(record.exc_info) if record.exc_info else ""
        return "\n".join([self.formatMessage(record), *self._continued(record, traceback)])

    def _continued(self, record: logging.LogRecord, text: str) -> list[str]:
        lines = text.split("\n") if text else []
        if len(lines) > TRACEBACK_MAX:
            half = TRACEBACK_MAX // 2
            lines[half:-half] = [f"... ({len(lines) - 2 * half} lines are left out)"]
        return [
            f"{self._before(record)}{INDENT}{escaped_text(line)[:MESSAGE_MAX]}" for line in lines
        ]

    def _before(self, record: logging.LogRecord) -> str:
        """The text before the indentation."""
        return ""


class _JournalFormatter(LineFormatter):
    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        return self._before(record) + record.message

    def _before(self, record: logging.LogRecord) -> str:
        # The level applies to its own line only.
        return f"<{_PRIORITY.get(record.levelno, 6)}>"


class _PlainFormatter(LineFormatter):
    def __init__(self, program: str) -> None:
        super().__init__()
        self._program = program

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        return f"{self._program}: {record.levelname.lower()}: {record.message}"


class LineHandler(logging.StreamHandler["Any"]):
    """Never waits for a reader of the log. `logging` closes it at the end of the program."""

    def close(self) -> None:
        super().close()
        if isinstance(self.stream, LineWriter):
            self.stream.close()


def set_up(program: str, *, verbose: bool) -> None:
    """Sends the log of this process to stderr: information and worse, or everything."""
    formatter = _JournalFormatter() if "JOURNAL_STREAM" in os.environ else _PlainFormatter(program)
    handler = LineHandler(_stream(program, formatter))
    handler.setFormatter(formatter)
    root = logging.getLogger()
    for old in root.handlers:
        if isinstance(old, LineHandler):
            old.close()
    root.handlers[:] = [handler]
    root.setLevel(logging.DEBUG if verbose else logging.INFO)


def _stream(program: str, formatter: logging.Formatter) -> Any:
    """stderr, written by a thread if it is a descriptor."""

    def missed(count: int) -> str:
        text = f"{count} lines of the log are lost: they were not taken in time"
        return formatter.format(logging.LogRecord(program, logging.ERROR, "", 0, text, (), None))

    if sys.stderr is not None and sys.stderr is not sys.__stderr__:
        return sys.stderr  # not a descriptor of this process: a test's
    return LineWriter(stderr(), missed)
