"""The only place that writes to the terminal: whatever is shown is made harmless here.

Names, descriptions and error texts can come from a VM, and command lines from a script that read
them somewhere. Printable ASCII is all that ever leaves this module: no control characters, no
escape sequences, nothing that turns the direction of text.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False  # `typing` is not imported at start-up: it costs as much as argparse
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import TextIO

TEXT_MAX = 512
"""Characters of one text from outside that are shown: more would push the answer off the screen."""

LINE_MAX = 16384
"""Characters of one line: a device with every attachment that a list may carry still fits."""


def show(text: object, limit: int = TEXT_MAX) -> str:
    """Return `text` as printable ASCII, at most `limit` characters; the rest is escaped or cut.

    Showing twice changes nothing, so a caller need not know whether somebody did it before.
    """
    shown = str(text)
    cut = len(shown) > limit
    if cut:
        shown = shown[:limit]
    if not (shown.isascii() and shown.isprintable()):
        shown = "".join(
            char
            if " " <= char <= "~"
            else char.encode("unicode_escape").decode("ascii")  # \x1b, \u202e, \udc80
            for char in shown
        )
        cut = cut or len(shown) > limit
    return shown[: max(0, limit - 3)] + "..." if cut else shown


def put(line: str) -> None:
    """Write one line to standard output."""
    _write(sys.stdout, show(line, LINE_MAX) + "\n")


def complain(line: str) -> None:
    """Write one line to standard error; a standard error that is gone must not hide the status."""
    try:
        _write(sys.stderr, show(line, LINE_MAX) + "\n")
    except OSError:
        return


def put_json(value: object) -> None:
    """Write `value` as JSON for programs and people: indented, and ASCII only."""
    import json  # noqa: PLC0415  (only who asks for it pays for it)

    text = json.dumps(value, indent=2, ensure_ascii=True)
    _write(sys.stdout, text.replace("\x7f", "\\u007f") + "\n")


def table(rows: Iterable[Sequence[str]], header: Sequence[str]) -> None:
    """Write `rows` in columns two spaces apart; the header is for people, so only on a terminal."""
    lines = [tuple(show(cell, LINE_MAX) for cell in row) for row in rows]
    if on_terminal():
        lines.insert(0, tuple(header))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        put("  ".join(cells).rstrip())


def on_terminal() -> bool:
    """Say whether a person reads standard output."""
    return sys.stdout is not None and sys.stdout.isatty()


def finish() -> None:
    """Flush standard output, so that a full disk or a closed pipe is noticed in time."""
    if sys.stdout is not None:
        sys.stdout.flush()


def abandon() -> None:
    """Send what is still buffered nowhere: nobody reads it any more, and exit must stay quiet."""
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 1)
    finally:
        os.close(null)


def _write(stream: TextIO | None, text: str) -> None:
    # Python makes the stream None when the program was started with it closed.
    if stream is not None:
        stream.write(text)
