"""The audit log: one JSON line for every decision and every operation.

Fields come from VMs too. Pure ASCII JSON contains no control character, escape sequence or
right-to-left mark for the terminal that shows the log. Lengths are bounded, so that one call cannot
fill the disk, and so is the file: when it is full it becomes NAME.1, the previous one NAME.2, and
so on, so that many calls cannot fill the disk either.

Writing waits for the disk; the service does it in a thread (queue.py).
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

log = logging.getLogger(__name__)

# Characters of one text: the longest legitimate one is a rule of a policy, at most 1024.
TEXT_MAX = 1024
# Entries of one list or map, and how deep they nest: legitimate ones are options and devices.
ITEMS_MAX = 32
DEPTH_MAX = 4
# Bytes of one line. Longer lines lose their largest fields, never their time, event or request.
LINE_MAX = 16 * 1024
# Bytes of one file: some 50,000 lines, which is months of a desktop's use; and the number of older
# files. Together they take 80 MiB at most.
FILE_MAX = 16 * 1024 * 1024
FILES_KEPT = 4
_FLAGS = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
_KEPT = {"time", "event", "request"}
_CUT = "..."


def new_request_id() -> str:
    """12 random hex digits: a VM that learns one learns nothing about other requests."""
    return os.urandom(6).hex()


# One line before it is JSON; bounded, and sharing nothing that may change.
Record = dict[str, object]


class AuditWriter(Protocol):
    """The interface that parts of the service use."""

    def write(self, event: str, **fields: object) -> None: ...


class Audit:
    """Appends to the log. A lost line never stops the service; it is logged, and counted.

    An administrator may move the file away (logrotate does): a new one is begun under its name, and
    logged. If the file was deleted or truncated, lines are lost, which is logged as an error.
    """

    def __init__(self, path: str | Path) -> None:
        """Opens or makes the file, readable by its owner alone. OSError: it cannot be."""
        self._path = Path(path)
        self._fd = os.open(self._path, _FLAGS, 0o600)
        self._size = self._seen = os.fstat(self._fd).st_size
        self._torn = self._ends_in_mid_line()
        self._lost = 0
        self._why = ""

    def write(self, event: str, **fields: object) -> None:
        """Appends one line: time (UTC), event and `fields`, bounded and escaped.

        The line is with the kernel when this returns, so that it outlives the service, though not
        a power failure.
        """
        self.append(make_record(event, fields))

    def append(self, record: Record) -> None:
        """As `write`, for a line that was made before."""
        if self._lost:
            before = record.get("lost_before")
            record["lost_before"] = self._lost + (before if isinstance(before, int) else 0)
        try:
            self._keep_the_name()
            line = _line(record)
            if self._size and self._size + len(line) > FILE_MAX:
                self._rotate()
            self._append(line)
        except OSError as error:
            self._lost += 1
            self._why = error.strerror or str(error)
            if self._lost == 1:
                log.critical("audit: %s: %s; lines are being lost", self._path, self._why)
        else:
            self._lost = 0

    @property
    def path(self) -> Path:
        return self._path

    @property
    def trouble(self) -> str | None:
        """Why lines are being lost, if they are."""
        if not self._lost:
            return None
        return f"the audit log {self._path} cannot be written: {self._why}"

    def close(self) -> None:
        """Safe to call twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _keep_the_name(self) -> None:
        """Checks that the open file is still the one of that name, and complete; if not, continues
        in the one that is, or in a new one. Both the new log and the service's log mention it."""
        ours = os.fstat(self._fd)
        try:
            named = os.stat(self._path)
        except FileNotFoundError:
            named = None
        if named is None or not os.path.samestat(ours, named):
            what = "moved away" if ours.st_nlink else "deleted"
            fd = os.open(self._path, _FLAGS, 0o600)
            os.close(self._fd)
            self._fd = fd
            self._size = os.fstat(fd).st_size
            self._torn = self._ends_in_mid_line()
        elif ours.st_size < self._seen:
            what = "truncated"
            self._size = ours.st_size
            self._torn = self._ends_in_mid_line()
        else:
            self._seen = ours.st_size
            return
        self._seen = self._size
        log.log(
            logging.WARNING if what == "moved away" else logging.CRITICAL,
            "audit: %s was %s by another program; it is begun anew",
            self._path,
            what,
        )
        self._append(_line(make_record("service", {"what": f"log begun anew: it was {what}"})))

    def _append(self, data: bytes) -> None:
        """One write, because only this keeps O_APPEND lines of two processes apart."""
        data = b"\n" + data if self._torn else data
        written = os.write(self._fd, data)
        self._size += len(data)  # or less, if the rest fails: it only bounds the file
        self._seen += written
        while written < len(data):
            self._torn = True  # if the rest fails, the next line begins on a new one
            more = os.write(self._fd, data[written:])
            written += more
            self._seen += more
        self._torn = False

    def _rotate(self) -> None:
        """Renames the full file and begins a new one.

        Each step is one rename, and the new file exists before the first: a crash between two of
        them, or a full disk, loses no line, and the next start finds or makes its file.
        """
        fresh = self._aside("new")
        try:
            fd = os.open(fresh, _FLAGS | os.O_TRUNC, 0o600)
            try:
                for number in range(FILES_KEPT, 0, -1):
                    older = self._aside(number - 1) if number > 1 else self._path
                    with contextlib.suppress(FileNotFoundError):  # it was deleted meanwhile
                        os.rename(older, self._aside(number))
                os.rename(fresh, self._path)
            except BaseException:
                os.close(fd)
                raise
        except OSError as error:
            log.error("audit: %s is full and cannot be put aside: %s", self._path, error.strerror)
            # Tried again after as much again, not with every line: older files would be lost.
            self._size = 0
            return
        os.close(self._fd)
        self._fd, self._size, self._seen, self._torn = fd, 0, 0, False

    def _aside(self, what: object) -> Path:
        return self._path.with_name(f"{self._path.name}.{what}")

    def _ends_in_mid_line(self) -> bool:
        """Whether the machine or the service died within its last write."""
        size = os.fstat(self._fd).st_size
        return size > 0 and os.pread(self._fd, 1, size - 1) != b"\n"


def make_record(event: str, fields: Mapping[str, object]) -> Record:
    """A line with the present time."""
    stamp = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    record: Record = {"time": stamp, "event": _bounded(event)}
    for name, value in fields.items():
        if name not in record:
            # Most fields are already what `_bounded` makes of them.
            is_plain = value is None or (type(value) is str and len(value) <= TEXT_MAX)
            record[name] = value if is_plain else _bounded(value)
    return record


def _line(record: Record) -> bytes:
    line = json.dumps(record, ensure_ascii=True)
    if len(line) >= LINE_MAX:
        sizes = {name: len(json.dumps(value)) for name, value in record.items()}
        for name in sorted(sizes.keys() - _KEPT, key=lambda name: (-sizes[name], name)):
            record[name] = _CUT
            line = json.dumps(record, ensure_ascii=True)
            if len(line) < LINE_MAX:
                break
    return line.encode("ascii") + b"\n"


def _more(items: Sequence[object]) -> str:
    return f"{len(items) - ITEMS_MAX} more"


def _bounded(value: object, depth: int = 0) -> object:
    """`value` as something that JSON can express, cut to the bounds. Total."""
    if isinstance(value, str):
        return value if len(value) <= TEXT_MAX else value[:TEXT_MAX] + _CUT
    if _is_json_scalar(value):
        return value
    if depth < DEPTH_MAX:
        if isinstance(value, Mapping):
            pairs = list(value.items())
            cut = {str(_bounded(str(k))): _bounded(v, depth + 1) for k, v in pairs[:ITEMS_MAX]}
            return cut | ({_CUT: _more(pairs)} if len(pairs) > ITEMS_MAX else {})
        if isinstance(value, list | tuple | set | frozenset):
            items = list(value)
            some = [_bounded(item, depth + 1) for item in items[:ITEMS_MAX]]
            return some + ([f"{_CUT} {_more(items)}"] if len(items) > ITEMS_MAX else [])
    try:
        return _bounded(str(value))
    except Exception:  # no object's own str() may cost a line of the log
        return f"<{type(value).__name__}>"


def _is_json_scalar(value: object) -> bool:
    if isinstance(value, int):  # bool too; larger ones are not numbers to most readers of JSON
        return -(2**63) <= value < 2**64
    return value is None or (isinstance(value, float) and math.isfinite(value))
