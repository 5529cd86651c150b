"""Reads the audit log that dom0's service writes: one JSON object per line, in up to five files.

The service appends to NAME; when that is full it becomes NAME.1, the previous one NAME.2, and so
on. This module holds one block and one line in memory, however long the log is. It counts and skips
a line that is no record (torn by a crash, or written by another program): one bad line must not
silence the log.
"""

from __future__ import annotations

import json
import math
import os
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import NoReturn

    Record = dict[str, object]

FILES_KEPT = 4
"""Older files beside the current one: NAME.1 to NAME.4, as the service keeps them."""

LINE_MAX = 16 * 1024
"""Bytes of one line with its end, as the service bounds them: a longer line is not the
service's."""

BLOCK_SIZE = 64 * 1024
"""Bytes read at once: several hundred lines."""

OPEN_TRIES = 8
"""How often the files are opened again because they were rotated in between. Even once is rare: a
rotation comes 16 MiB after the last one."""

_TIME_START = b'{"time": "'
_TIME_LENGTH = len("2026-01-02T03:04:05.678Z")
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK  # opening a pipe must not wait for a writer


class Unread:
    """How many lines were no records."""

    def __init__(self) -> None:
        self.lines = 0


def records(
    path: str, *, since: str = "", containing: str = "", unread: Unread | None = None
) -> Iterator[Record]:
    """Yield every record, oldest first, over the rotated files (path.4 to path.1, then path).

    `since` is a time as the log writes it (UTC, `2026-01-02T03:04:05.678Z`): older lines are
    skipped without being parsed. So is a line that does not contain `containing` (letters and
    digits), unless it looks torn. Lines that are no records are added to `unread`. Raises
    FileNotFoundError if there is no file at all, OSError if one cannot be read.
    """
    count = Unread() if unread is None else unread
    from_then = since.encode("ascii", "replace")
    needle = containing.encode("ascii", "replace")
    descriptors = _open_all(path)
    try:
        for descriptor in descriptors:
            for line in _lines(descriptor):
                if _is_other(line, from_then, needle):
                    continue
                record = take_record(line, count)
                if record is not None and str(record["time"]) >= since:
                    yield record
    finally:
        _close_all(descriptors)


def last_records(
    path: str,
    number: int,
    wanted: Callable[[Record], bool],
    unread: Unread,
    *,
    since: str = "",
    containing: str = "",
    follow: bool = False,
) -> tuple[list[Record], Follower | None]:
    """Return the last `number` records that are `wanted`, oldest first, read from the end.

    `since` and `containing` are as for `records`: if few records are wanted, all files are read,
    which is three times as fast without parsing every line. With `follow`, also return what
    continues exactly where they end. Raises what `records` raises.
    """
    descriptors = _open_all(path)
    try:
        end = _end_of_lines(descriptors[-1]) if follow else None
        found: list[Record] = []
        if number > 0:
            from_then, needle = since.encode("ascii", "replace"), containing.encode("ascii")
            for record in _backwards(descriptors, end, unread, from_then, needle):
                if wanted(record):
                    found.append(record)
                    if len(found) == number:
                        break
        found.reverse()
        if end is None:
            return found, None
        return found, Follower(path, unread, descriptors.pop(), end)
    finally:
        _close_all(descriptors)


class Follower:
    """Yields what is appended to a log from one position on, across rotations."""

    def __init__(self, path: str, unread: Unread, descriptor: int, position: int) -> None:
        """Take over `descriptor`, a file of the log that was read up to byte `position`."""
        self._path = path
        self._unread = unread
        self._descriptor = descriptor
        self._position = position
        self._rest = b""

    def new(self) -> Iterator[Record]:
        """Yield what has arrived since the last time, without waiting. OSError: it cannot be
        read."""
        while True:
            yield from self._read_on()
            following = self._next_file()
            if following is None:
                return
            # These lines were written between the last look and the rotation.
            yield from self._read_on()
            self._go_to(following)

    def close(self) -> None:
        """Close the file; safe to call twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _read_on(self) -> Iterator[Record]:
        if os.fstat(self._descriptor).st_size < self._position:
            # Another program that rotates the log emptied the file in place.
            self._position, self._rest = 0, b""
        while block := os.pread(self._descriptor, BLOCK_SIZE, self._position):
            self._position += len(block)
            *lines, self._rest = (self._rest + block).split(b"\n")
            # One byte more than a line may have is enough to know that this is no line.
            self._rest = self._rest[: LINE_MAX + 1]
            for line in lines:
                record = take_record(line, self._unread)
                if record is not None:
                    yield record

    def _next_file(self) -> int | None:
        """Return the file after ours, opened; None while ours is the current one."""
        for _ in range(OPEN_TRIES):
            here = _identity(self._descriptor)
            if _identity(self._path) == here:
                return None
            names = _names(self._path)  # oldest first
            at = next((n for n, name in enumerate(names) if _identity(name) == here), None)
            if at is None:
                return self._oldest_newer(names)
            descriptor = _open(names[at + 1])
            if descriptor is None:
                return None
            if _identity(names[at]) == here:
                return descriptor
            os.close(descriptor)  # a rotation came in between: this may not be the next file
        return None

    def _oldest_newer(self, names: list[str]) -> int | None:
        """Return the first file that was written after ours, which is gone.

        It was deleted, or rotated away while this process was stopped.
        """
        written = os.fstat(self._descriptor).st_mtime_ns
        for name in names:
            descriptor = _open(name)
            if descriptor is None:
                continue
            if os.fstat(descriptor).st_mtime_ns >= written:
                return descriptor
            os.close(descriptor)
        return None

    def _go_to(self, descriptor: int) -> None:
        if self._rest:
            self._unread.lines += 1
        self.close()
        self._descriptor, self._position, self._rest = descriptor, 0, b""


def take_record(line: bytes, unread: Unread) -> Record | None:
    """Return the record of a line; an empty line is none, and any other line without one is
    counted."""
    line = line.rstrip(b"\n")
    if not line:
        return None
    if len(line) < LINE_MAX:
        try:
            record = _decoder.decode(line.decode("utf-8"))
        except (ValueError, RecursionError):  # brackets within brackets, to the end of the line
            record = None
        if (
            isinstance(record, dict)
            and isinstance(record.get("time"), str)
            and isinstance(record.get("event"), str)
        ):
            return record
    unread.lines += 1
    return None


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is too large")
    return number


# Everything that is read can be written as JSON again.
_decoder = json.JSONDecoder(parse_constant=_no_constant, parse_float=_finite)


def _lines(descriptor: int) -> Iterator[bytes]:
    """Yield lines from the first on; of an overlong line only the beginning, which is overlong
    too."""
    with open(descriptor, "rb", buffering=BLOCK_SIZE, closefd=False) as file:
        while line := file.readline(LINE_MAX + 1):
            yield line
            while len(line) > LINE_MAX and not line.endswith(b"\n"):
                line = file.readline(LINE_MAX + 1)


def _is_other(line: bytes, from_then: bytes, needle: bytes) -> bool:
    """Say, without parsing it, whether a line is older than `from_then` or has no `needle`.

    Say no for a line that looks torn: it has to be counted.
    """
    if line.startswith(_TIME_START):
        at = len(_TIME_START)
        if line[at : at + _TIME_LENGTH] < from_then:
            return True
    return needle not in line and line.startswith(b"{") and line.endswith((b"}\n", b"}"))


def _backwards(
    descriptors: list[int], end: int | None, unread: Unread, from_then: bytes, needle: bytes
) -> Iterator[Record]:
    """Yield records, newest first, except those that `_is_other` skips; the newest file up to
    `end`."""
    for descriptor in reversed(descriptors):
        for line in _lines_backwards(descriptor, end):
            if _is_other(line, from_then, needle):
                continue
            record = take_record(line, unread)
            if record is not None:
                yield record
        end = None


def _lines_backwards(descriptor: int, end: int | None) -> Iterator[bytes]:
    position = os.fstat(descriptor).st_size if end is None else end
    rest = b""
    while position > 0:
        size = min(BLOCK_SIZE, position)
        position -= size
        block = os.pread(descriptor, size, position)
        if len(block) < size:
            rest = b""  # emptied meanwhile: the two parts of a line do not match
        rest, *lines = (block + rest).split(b"\n")
        rest = rest[-(LINE_MAX + 1) :]
        yield from reversed(lines)
    yield rest


def _end_of_lines(descriptor: int) -> int:
    """Return the end of the last complete line: the rest of a line that is being written comes
    later."""
    size = os.fstat(descriptor).st_size
    start = max(0, size - LINE_MAX)
    found = os.pread(descriptor, size - start, start).rfind(b"\n")
    if found >= 0:
        return start + found + 1
    return 0 if start == 0 else size


def _names(path: str) -> list[str]:
    """The names of all files of the log, oldest first."""
    return [f"{path}.{number}" for number in range(FILES_KEPT, 0, -1)] + [path]


def _open_all(path: str) -> list[int]:
    """Return all existing files, oldest first, as they were at one moment."""
    for _ in range(OPEN_TRIES):
        found: dict[str, int] = {}
        try:
            for name in _names(path):
                descriptor = _open(name)
                if descriptor is not None:
                    found[name] = descriptor
            # A rotation in between would leave out the file that moved.
            is_same = all(_identity(name) == _identity(fd) for name, fd in found.items())
        except BaseException:
            _close_all(list(found.values()))
            raise
        if not found:
            raise FileNotFoundError(2, os.strerror(2), path)
        if is_same:
            break
        _close_all(list(found.values()))
    else:
        raise OSError(11, "the log is rotated faster than it can be opened", path)
    return list(found.values())


def _open(name: str) -> int | None:
    """Return an open regular file, or None if no file has this name."""
    try:
        descriptor = os.open(name, _FLAGS)
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(22, "it is not a file", name)
    return descriptor


def _identity(file: int | str) -> tuple[int, int] | None:
    try:
        found = os.stat(file)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _close_all(descriptors: list[int]) -> None:
    while descriptors:
        os.close(descriptors.pop())
