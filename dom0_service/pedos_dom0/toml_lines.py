"""Where keys stand in a TOML file: tomllib does not say, and an error has to have a line."""

from __future__ import annotations

import re
import tomllib

_KEY = r"""(?:"[^"]*"|'[^']*'|[A-Za-z0-9_-]+)"""
_HEADER = re.compile(rf"\s*\[\[?\s*({_KEY}(?:\s*\.\s*{_KEY})*)\s*\]")
_ASSIGNMENT = re.compile(rf"\s*({_KEY}(?:\s*\.\s*{_KEY})*)\s*=")
_POSITION = re.compile(r"\s*\(at line (\d+), column (\d+)\)$")


def syntax_error(error: tomllib.TOMLDecodeError, text: str) -> tuple[int, int | None, str]:
    """(line, column, what is wrong) of a file that is not TOML; None for the column if unknown."""
    message = str(error)
    found = _POSITION.search(message)
    if found:
        return int(found[1]), int(found[2]), message[: found.start()]
    # "(at end of document)"
    return text.count("\n") + (not text.endswith("\n")), None, message


def shown_key(where: tuple[str, ...]) -> str:
    """A key's path as an error shows it."""
    return ".".join(
        key if re.fullmatch(r"[A-Za-z0-9_-]{1,64}", key) else ascii(key[:64]) for key in where
    )


def kind_of(value: object) -> str:
    """What a value is, in an administrator's words."""
    if isinstance(value, bool):
        return f"the value {str(value).lower()}"
    names = {str: "a string", int: "a number", float: "a number", list: "a list", dict: "a table"}
    return names.get(type(value), "a date or time")


def line_of(lines: list[str], where: tuple[str, ...]) -> int | None:
    """The line (from 1) that sets `where`, or else the nearest table around it; None if unclear.

    Looking at headers and assignments finds them in every file that is written one key a line;
    strings over several lines could only mislead it about the number, never about the mistake.
    """
    best: tuple[int, int] | None = None  # how many parts match, which line
    table: tuple[str, ...] = ()
    for number, line in enumerate(lines, 1):
        if header := _HEADER.match(line):
            table = full = _parts(header[1])
        elif assignment := _ASSIGNMENT.match(line):
            full = (*table, *_parts(assignment[1]))
        else:
            continue
        # Either it lies on the way to `where`, or it defines something inside of it.
        depth = min(len(full), len(where))
        if full[:depth] == where[:depth] and (best is None or depth > best[0]):
            best = (depth, number)
    return best[1] if best else None


def _parts(dotted: str) -> tuple[str, ...]:
    """The parts of a dotted key, as tomllib reads them: quotes and escapes undone."""
    parts = []
    try:
        value: object = tomllib.loads(f"{dotted} = 0")
    except tomllib.TOMLDecodeError:
        return ()
    while isinstance(value, dict):
        ((part, value),) = value.items()
        parts.append(part)
    return tuple(parts)
