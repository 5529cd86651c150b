"""The audit log: one JSON line for every decision and every operation.

Fields come from VMs too. JSON with ASCII alone leaves no control character, escape sequence or
right-to-left mark for the terminal that the log is looked at with; lengths are bounded, so that
nobody writes the disk full with one call, and so is the file: when it is full it becomes NAME.1,
the one before NAME.2, and so on, so that nobody writes the disk full with many.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import secrets
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

log = logging.getLogger(__name__)

# Characters of one text: the longest honest one is a rule of a policy, at most 1024.
TEXT_MAX = 1024
# Entries of one list or map, and how deep they nest: the honest ones are options and devices.
ITEMS_MAX = 32
DEPTH_MAX = 4
# Bytes of one line. Long lines lose their largest fields, never their time, event or request.
LINE_MAX = 16 * 1024
# Bytes of one file: some 50,000 lines, which is months of a desktop's use; and how many older ones
# are kept beside it. Together they are 80 MiB at most.
FILE_MAX = 16 * 1024 * 1024
FILES_KEPT = 4
_FLAGS = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
_KEPT = {"time", "event", "request"}
_CUT = "..."


def new_request_id() -> str:
    """12 hex digits, at random: a VM that is told one learns nothing about other requests."""
    return secrets.token_hex(6)


class Audit:
    """Appends to the log. Losing a line never stops the service; it is said, and counted."""

    def __init__(self, path: str | Path) -> None:
        """Opens or makes the file, readable by its owner alone. OSError: it cannot be."""
        self._path = Path(path)
        self._fd = os.open(self._path, _FLAGS, 0o600)
        self._size = os.fstat(self._fd).st_size
        self._torn = self._ends_in_mid_line()
        self._lost = 0

    def write(self, event: str, **fields: object) -> None:
        """Appends one line: time (UTC), event and `fields`, bounded and escaped.

        The line is with the kernel when this returns, so that it outlives the service, though not
        a power failure.
        """
        if self._lost:
            fields["lost_before"] = self._lost
        line = _line(event, fields)
        if self._size and self._size + len(line) > FILE_MAX:
            self._rotate()
        try:
            self._append(b"\n" + line if self._torn else line)
        except OSError as error:
            self._lost += 1
            if self._lost == 1:
                log.critical("audit: %s: %s; lines are being lost", self._path, error.strerror)
        else:
            self._lost = 0

    def close(self) -> None:
        """Safe to call twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _append(self, data: bytes) -> None:
        """One write, as O_APPEND keeps the lines of two processes apart only so."""
        written = os.write(self._fd, data)
        self._size += len(data)  # or less, should the rest fail: it only bounds the file
        while written < len(data):
            self._torn = True  # should the rest fail, the next line begins on a new one
            written += os.write(self._fd, data[written:])
        self._torn = False

    def _rotate(self) -> None:
        """Puts the full file aside and begins a new one.

        Each step is one rename, and the new file is there before the first: a crash between two of
        them, or a disk without room, costs no line, and the next start finds or makes its file.
        """
        fresh = self._aside("new")
        try:
            fd = os.open(fresh, _FLAGS | os.O_TRUNC, 0o600)
            try:
                for number in range(FILES_KEPT, 0, -1):
                    older = self._aside(number - 1) if number > 1 else self._path
                    with contextlib.suppress(FileNotFoundError):  # somebody tidied up
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
        self._fd, self._size, self._torn = fd, 0, False

    def _aside(self, what: object) -> Path:
        return self._path.with_name(f"{self._path.name}.{what}")

    def _ends_in_mid_line(self) -> bool:
        """Whether the machine or the service died within its last write."""
        size = os.fstat(self._fd).st_size
        return size > 0 and os.pread(self._fd, 1, size - 1) != b"\n"


def _line(event: str, fields: Mapping[str, object]) -> bytes:
    stamp = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    record: dict[str, object] = {"time": stamp, "event": _bounded(event)}
    for name, value in fields.items():
        record.setdefault(name, _bounded(value))
    line = json.dumps(record, ensure_ascii=True)
    if len(line) >= LINE_MAX:
        sizes = {name: len(json.dumps(value)) for name, value in record.items()}
        for name in sorted(sizes.keys() - _KEPT, key=lambda name: (-sizes[name], name)):
            record[name] = _CUT
            line = json.dumps(record, ensure_ascii=True)
            if len(line) < LINE_MAX:
                break
    return line.encode("ascii") + b"\n"


def _bounded(value: object, depth: int = 0) -> object:
    """`value` as something that JSON has, cut to the bounds. Total."""
    if isinstance(value, str):
        return value if len(value) <= TEXT_MAX else value[:TEXT_MAX] + _CUT
    if _is_json_scalar(value):
        return value
    if depth < DEPTH_MAX:
        if isinstance(value, Mapping):
            pairs = list(value.items())[:ITEMS_MAX]
            return {str(_bounded(str(k))): _bounded(v, depth + 1) for k, v in pairs}
        if isinstance(value, list | tuple | set | frozenset):
            return [_bounded(item, depth + 1) for item in list(value)[:ITEMS_MAX]]
    try:
        return _bounded(str(value))
    except Exception:  # no object's own str() may cost a line of the log
        return f"<{type(value).__name__}>"


def _is_json_scalar(value: object) -> bool:
    if isinstance(value, int):  # bool too; larger ones are not numbers to most readers of JSON
        return -(2**63) <= value < 2**64
    return value is None or (isinstance(value, float) and math.isfinite(value))
