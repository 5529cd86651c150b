"""The last lines of the audit log, read from its end: for a window that shows them.

Reading waits for the disk; the service does it in a thread (queue.py). It looks at so many bytes at
most, however long the log is: `qvm-audit` reads all of it. A line that is no record, torn by a
crash or written by another program, is left out here and counted there.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

from pedos_protocol.frozen import frozen

from pedos_dom0.audit.log import FILES_KEPT, LINE_MAX

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# Bytes that one answer looks at: some 12,000 lines, which takes a few ten milliseconds.
LOOK_MAX = 4 * 1024 * 1024
BLOCK_SIZE = 64 * 1024
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW


@frozen
class Tail:
    """Lines, oldest first; `more`: there are earlier ones, or there may be."""

    lines: tuple[str, ...]
    more: bool


def last_lines(path: Path, count: int, size: int, device: str | None = None) -> Tail:
    """The last records of the log, at most `count` and `size` bytes; those about `device` alone,
    SOURCE:ID, if it is given. OSError: the log cannot be read."""
    needle = b"" if device is None else json.dumps(device).encode()
    found: list[str] = []
    looked_at = left = 0
    for line in _backwards(path):
        looked_at += len(line)
        if looked_at > LOOK_MAX:
            return Tail(tuple(reversed(found)), more=True)
        if needle not in line or (record := _record(line, device)) is None:
            continue
        left = size - len(record)
        if len(found) == count or left < 0:
            return Tail(tuple(reversed(found)), more=True)
        size = left
        found.append(record)
    return Tail(tuple(reversed(found)), more=False)


def _record(line: bytes, device: str | None) -> str | None:
    """The line as text, if it is a record of the service, and about the device."""
    if len(line) >= LINE_MAX or not line.isascii():
        return None
    text = line.decode("ascii")
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or not text.isprintable():
        return None
    if not all(isinstance(record.get(name), str) for name in ("time", "event")):
        return None
    return text if device is None or record.get("device") == device else None


def _backwards(path: Path) -> Iterator[bytes]:
    """All lines, the newest first, over the rotated files."""
    before = None
    for number in range(FILES_KEPT + 1):
        name = path if number == 0 else path.with_name(f"{path.name}.{number}")
        try:
            descriptor = os.open(name, _FLAGS)
        except FileNotFoundError:
            if number == 0:
                continue  # moved away a moment ago: the next line begins it anew
            return
        try:
            status = os.fstat(descriptor)
            # A rotation between two files gives the one that was read just now the next name.
            if before is None or not os.path.samestat(before, status):
                yield from _lines_backwards(descriptor, status.st_size)
            before = status
        finally:
            os.close(descriptor)


def _lines_backwards(descriptor: int, position: int) -> Iterator[bytes]:
    """The lines of a file, the last first, without their ends; of an overlong line only a part,
    which is overlong too."""
    rest = b""
    while position > 0:
        size = min(BLOCK_SIZE, position)
        position -= size
        rest, *lines = (os.pread(descriptor, size, position) + rest).split(b"\n")
        yield from reversed(lines)
        rest = rest[-LINE_MAX:]
    yield rest
