"""From the bytes or the text of a policy file to lines with their fields, or to errors."""

from __future__ import annotations

import re
from collections.abc import Iterator

from pedos_protocol.frozen import frozen
from pedos_protocol.names import printable_text

# Characters of a rule. Answers, logs and error messages show a rule whole, and a message carries
# 512 of a text. Comments may have any length.
LINE_MAX = 512

_FIELD = re.compile(r"[^ \t]+")
# What a line may contain unless it is a comment: printable ASCII, blanks and tabs.
_FOREIGN = re.compile(r"[^ -~\t]")

_BYTE_ORDER_MARK = "\ufeff"

Fields = list[tuple[int, str]]  # column from 1, and the word that begins there


@frozen
class Problem:
    """An error of a line, before it is known which file has it."""

    column: int
    message: str
    help: str = ""


def lines_of(data: bytes | str) -> Iterator[str | UnicodeDecodeError]:
    """The lines, one after the other: UTF-8 is checked line by line, so that each error has its
    place.

    Not split at once, since that would be one long step for a file of megabytes.
    """
    end_of_line = "\n" if isinstance(data, str) else b"\n"
    start = 0
    while True:
        end = data.find(end_of_line, start)  # type: ignore[arg-type]
        line = data[start:] if end < 0 else data[start:end]
        if isinstance(line, str):
            yield line.removesuffix("\r")
        else:
            try:
                yield line.decode("utf-8").removesuffix("\r")
            except UnicodeDecodeError as error:
                yield error
        if end < 0:
            return
        start = end + 1


def fields_of(line: str | UnicodeDecodeError) -> Fields | Problem:
    """The words of a line with their columns; none for a comment or a blank line."""
    if isinstance(line, UnicodeDecodeError):
        column = len(line.object[: line.start].decode("utf-8")) + 1
        return Problem(column, f"byte 0x{line.object[line.start]:02x} is not UTF-8")
    if "\0" in line:
        return Problem(line.index("\0") + 1, "a NUL character; this is not a text file")
    if line.lstrip(" \t").startswith("#"):
        return []
    if len(line) > LINE_MAX:
        message = f"line of {len(line)} characters"
        return Problem(LINE_MAX + 1, message, f"at most {LINE_MAX} are allowed")
    foreign = _FOREIGN.search(line)
    if foreign is not None:
        message = f"character U+{ord(foreign.group()):04X}"
        right = "only a comment may have any but ASCII text"
        if line.startswith(_BYTE_ORDER_MARK):
            right = "save the file without a byte order mark"
        return Problem(foreign.start() + 1, message, right)
    return [(match.start() + 1, match.group()) for match in _FIELD.finditer(line)]


def shown_line(line: str | UnicodeDecodeError) -> str:
    """The line for an error message: no longer than a rule, nothing unprintable.

    Each character stays one, tabs becoming blanks, so that columns stay the same.
    """
    if isinstance(line, UnicodeDecodeError):
        line = bytes(line.object).decode("utf-8", "replace")
    return printable_text(line[:LINE_MAX].replace("\t", " "), LINE_MAX)
