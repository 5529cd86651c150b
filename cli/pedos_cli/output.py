"""The only module that writes to the terminal; it makes everything that it shows harmless.

Names, descriptions and error texts can come from a VM, and command lines from a script that read
them elsewhere. Only printable ASCII, and letters of other scripts where the output has them, leave
this module: no control characters, no escape sequences, no mark that changes the direction of text,
nothing invisible. A text from outside never has two blanks in a row, because two blanks separate
the columns of a table: a device's description could otherwise imitate the columns behind it.
"""

from __future__ import annotations

import errno
import os
import sys

TYPE_CHECKING = False  # importing `typing` at start-up takes as long as argparse
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import TextIO

STDOUT = 1
"""The descriptor of standard output."""

NOTHING = "-"
"""What stands in a cell that would be empty: the one behind it could be taken for it."""

TEXT_MAX = 512
"""Characters of one text from outside: more would push the answer off the screen."""

BLANK = "\\x20"
"""How a blank is shown that could pass for the space between two columns."""

LEFT_TO_RIGHT = "\u200e"
"""A mark that this program adds: it takes no column and restores the direction of text."""

LINE_MAX = 16384
"""Characters of one line: a device with every attachment that a list may contain still fits."""


def show(text: object, limit: int = TEXT_MAX) -> str:
    """Return `text` from outside as printable ASCII and letters, at most `limit` characters; the
    rest is escaped or cut. A blank that does not stand alone between two words is escaped as well.

    The function is idempotent, so it may run twice on the same text.
    """
    return escaped(_with_blanks_shown(str(text)[: limit + 1]), limit)


def _with_blanks_shown(text: str) -> str:
    text = text.replace("  ", f" {BLANK}")
    if text[:1] == " ":
        text = BLANK + text[1:]
    return text[:-1] + BLANK if text[-1:] == " " else text


def escaped(line: str, limit: int = LINE_MAX, encoding: str = "utf-8") -> str:
    """Return a line of this program, whose blanks stay, as printable ASCII and the letters that
    `encoding` has, at most `limit` characters; `show` has already treated texts from outside in
    it."""
    shown = line[: limit + 1]
    if not (shown.isascii() and shown.isprintable()):
        from pedos_protocol.names import escaped_text  # noqa: PLC0415  (few texts need it)

        shown = _encodable(escaped_text(shown), encoding)
    return shown if len(shown) <= limit else shown[: max(0, limit - 3)] + "..."


def _encodable(text: str, encoding: str) -> str:
    shown = text.encode(encoding, "backslashreplace").decode(encoding)
    try:
        in_order(shown).encode(encoding)
    except UnicodeEncodeError:  # its letters could not be kept in their place
        return text.encode("ascii", "backslashreplace").decode("ascii")
    return shown


def put(line: str) -> None:
    """Write one line to standard output."""
    put_text(_as_it_can_be(line, sys.stdout) + "\n")


def put_text(text: str) -> None:
    """Write this program's own text to standard output as it is."""
    _write(sys.stdout, text)


def put_bytes(data: bytes) -> None:
    """Write a file's content to standard output, for another program."""
    _taker(sys.stdout).buffer.write(data)


def complain(line: str) -> None:
    """Write one line to standard error; a closed standard error must not change the exit status."""
    try:
        _write(sys.stderr, _as_it_can_be(line, sys.stderr) + "\n")
    except OSError:
        return


def _as_it_can_be(line: str, stream: TextIO | None) -> str:
    return in_order(escaped(line, LINE_MAX, encoding_of(stream)))


def encoding_of(stream: TextIO | None) -> str:
    """Return the encoding of an output."""
    return "ascii" if stream is None else stream.encoding or "ascii"


def in_order(text: str) -> str:
    """Keep text that follows right-to-left letters behind them: a terminal would otherwise draw a
    number in the next column before them. Do the same for text before them if they are the first
    letters of a line."""
    if text.isascii():
        return text
    from unicodedata import bidirectional  # noqa: PLC0415

    parts: list[str] = []
    was_right_to_left = False
    has_begun = False  # with a letter, which tells a terminal the direction of the line
    for char in text:
        kind = bidirectional(char)
        is_right_to_left = kind in ("R", "AL", "NSM")
        if (was_right_to_left and not is_right_to_left) or (kind in ("R", "AL") and not has_begun):
            parts.append(LEFT_TO_RIGHT)
        has_begun = has_begun or kind in ("L", "R", "AL")
        parts.append(char)
        was_right_to_left = kind in ("R", "AL") or (was_right_to_left and is_right_to_left)
    return "".join(parts)


def json_text(
    value: object, *, indent: int | None = None, separators: tuple[str, str] | None = None
) -> str:
    """Return `value` as JSON, ASCII only; on one line without `indent`."""
    import json  # noqa: PLC0415  (imported only where it is needed)

    # json lets no control character through; DEL is the only other one in ASCII.
    text = json.dumps(value, ensure_ascii=True, indent=indent, separators=separators)
    return text.replace("\x7f", "\\u007f")


def put_json(value: object) -> None:
    """Write `value` as JSON for programs and people: indented."""
    put_text(json_text(value, indent=2) + "\n")


def put_json_line(value: object) -> None:
    """Write `value` as one line of JSON."""
    put_text(json_text(value, separators=(",", ":")) + "\n")


def table(rows: Iterable[Sequence[str]], header: Sequence[str]) -> None:
    """Write `rows` in columns two spaces apart; the header is for people, so only on a terminal."""
    lines = [tuple(show(cell, LINE_MAX) for cell in row) for row in rows]
    if on_terminal():
        lines.insert(0, tuple(header))
    widths = [max(map(columns, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = (
            cell + " " * (width - columns(cell)) for cell, width in zip(line, widths, strict=True)
        )
        put("  ".join(cells).rstrip())


def columns(cell: str) -> int:
    """Return how many columns of a terminal a text takes."""
    if cell.isascii():
        return len(cell)
    from unicodedata import category, east_asian_width  # noqa: PLC0415  (few texts need it)

    return sum(
        0 if category(char)[0] == "M" else 2 if east_asian_width(char) in "WF" else 1
        for char in cell
    )


def columns_before(text: str, column: int, encoding: str | None = None) -> int:
    """Return how many columns of standard output, or of what has another `encoding`, precede the
    character at `column`, from 1, of a text that is shown: a caret goes under it. In positions a
    tab counts as one column."""
    before = text[: column - 1].replace("\t", " ")
    return columns(escaped(before, encoding=encoding or encoding_of(sys.stdout)))


def on_terminal() -> bool:
    """Say whether a person reads standard output."""
    return sys.stdout is not None and sys.stdout.isatty()


def wait_while_read(seconds: float | None, source: int | None = None) -> bool:
    """Wait until the descriptor `source` has something to read, or for so long: False then.

    BrokenPipeError as soon as nothing reads standard output any more.
    """
    from select import POLLERR, POLLHUP, POLLIN, poll  # noqa: PLC0415  (only a watch waits)

    waiting = poll()
    if sys.stdout is not None:
        waiting.register(STDOUT, 0)  # that its reader is gone is told unasked
    if source is not None:
        waiting.register(source, POLLIN)
    ready = dict(waiting.poll(None if seconds is None else seconds * 1000))
    if source != STDOUT and ready.get(STDOUT, 0) & (POLLERR | POLLHUP):
        raise BrokenPipeError(errno.EPIPE, "nothing reads standard output")
    return bool(ready)


def finish() -> None:
    """Flush standard output, so that a full disk or a closed pipe is noticed in time."""
    if sys.stdout is not None:
        sys.stdout.flush()


def abandon() -> None:
    """Discard what is still buffered: the output has no reader any more, and the exit must be
    quiet."""
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, STDOUT)
    finally:
        os.close(null)


def _write(stream: TextIO | None, text: str) -> None:
    _taker(stream).write(text)


def _taker(stream: TextIO | None) -> TextIO:
    # Python makes the stream None when the program was started with it closed.
    if stream is None:
        raise OSError(errno.EBADF, "standard output is closed")
    return stream
