"""The lines of keys in a TOML file: tomllib does not tell, and an error has to have a line."""

from __future__ import annotations

import re
import tomllib

_KEY = r"""(?:"[^"]*"|'[^']*'|[A-Za-z0-9_-]+)"""
_HEADER = re.compile(rf"\s*\[\[?\s*({_KEY}(?:\s*\.\s*{_KEY})*)\s*\]")
_ASSIGNMENT = re.compile(rf"\s*({_KEY}(?:\s*\.\s*{_KEY})*)\s*=")
_BARE = re.compile(r"[A-Za-z0-9_-]+")
# Parts of a key's path that are distinguished: no caller names more.
_DEPTH_MAX = 4
_POSITION = re.compile(r"\s*\(at line (\d+), column (\d+)\)$")


def syntax_error(error: tomllib.TOMLDecodeError, text: str) -> tuple[int, int | None, str]:
    """(line, column, message) of a file that is not TOML; None for the column if unknown."""
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
    """The kind of a value, in an administrator's words."""
    if isinstance(value, bool):
        return f"the value {str(value).lower()}"
    names = {str: "a string", int: "a number", float: "a number", list: "a list", dict: "a table"}
    return names.get(type(value), "a date or time")


class Lines:
    """The place of each key of one file: read once, because a file may contain a thousand VMs.

    Headers and assignments give the places in every file with one key per line; strings over
    several lines can only make the line number wrong, never the mistake.
    """

    def __init__(self, text: str) -> None:
        self._texts = text.splitlines()
        # The first line that sets a path itself, and the first that sets it or something in it.
        self._itself: dict[tuple[str, ...], int] = {}
        self._around: dict[tuple[str, ...], int] = {}
        table: tuple[str, ...] = ()
        for number, line in enumerate(self._texts, 1):
            if header := _HEADER.match(line):
                table = full = _parts(header[1])
            elif assignment := _ASSIGNMENT.match(line):
                full = (*table, *_parts(assignment[1]))
            else:
                continue
            self._itself.setdefault(full, number)
            for depth in range(1, min(len(full), _DEPTH_MAX) + 1):
                self._around.setdefault(full[:depth], number)

    def of(self, where: tuple[str, ...]) -> int | None:
        """The line (from 1) that sets `where`, or else the nearest table around it; None if
        unclear."""
        if (inside := self._around.get(where)) is not None:
            return inside
        shorter = (where[:depth] for depth in range(len(where) - 1, 0, -1))
        return next((self._itself[path] for path in shorter if path in self._itself), None)

    def text(self, number: int | None) -> str:
        """That line; "" if there is none."""
        there = number is not None and 0 < number <= len(self._texts)
        return self._texts[number - 1] if there and number is not None else ""


def _parts(dotted: str) -> tuple[str, ...]:
    """The parts of a dotted key, as tomllib reads them: quotes and escapes undone."""
    if _BARE.fullmatch(dotted):
        return (dotted,)
    parts = []
    try:
        value: object = tomllib.loads(f"{dotted} = 0")
    except tomllib.TOMLDecodeError:
        return ()
    while isinstance(value, dict):
        ((part, value),) = value.items()
        parts.append(part)
    return tuple(parts)
