"""Where log lines go: stderr, in the form that whoever reads it understands.

journald takes the level of a line from a `<N>` before it (sd-daemon(3)); anybody else sees the
program's name and the level as words.
"""

from __future__ import annotations

import logging
import os
import sys

_PRIORITY = {
    logging.CRITICAL: 2,
    logging.ERROR: 3,
    logging.WARNING: 4,
    logging.INFO: 6,
    logging.DEBUG: 7,
}


class _JournalFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        prefix = f"<{_PRIORITY.get(record.levelno, 6)}>"
        # A prefix counts for its own line only, and a traceback has many.
        return "\n".join(prefix + line for line in super().format(record).splitlines())


class _PlainFormatter(logging.Formatter):
    def __init__(self, program: str) -> None:
        super().__init__()
        self._program = program

    def format(self, record: logging.LogRecord) -> str:
        return f"{self._program}: {record.levelname.lower()}: {super().format(record)}"


def set_up(program: str, *, verbose: bool) -> None:
    """Sends the log of this process to stderr: information and worse, or everything."""
    handler = logging.StreamHandler(sys.stderr)
    in_journal = "JOURNAL_STREAM" in os.environ
    handler.setFormatter(_JournalFormatter() if in_journal else _PlainFormatter(program))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.DEBUG if verbose else logging.INFO)
