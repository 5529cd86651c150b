"""An SQLite file of this service alone. Every call waits for the disk, so it belongs into a thread.

A call that returned is on the disk, and a call that was cut short by a crash or a power failure
left nothing behind. No other process can read or write the file while it is open (exclusive
locking): a lock that is never released is one that is never waited for.

A rollback journal and no WAL: everything acknowledged is in the one file with the name, so that
losing a file beside it loses no acknowledged row (docs/decisions). Before each write, and again
before it is acknowledged, the file is compared with what this process left there.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pedos_protocol.frozen import frozen

logger = logging.getLogger(__name__)

# Seconds to wait at the start for another process that has the file open: a tool that reads it for
# a moment, or a service that is just ending.
LOCK_WAIT = 2.0


@frozen
class Schema:
    """The tables of a file, and how those of an older version become them."""

    application: int  # application_id of SQLite: marks the file as this service's
    version: int
    first: str  # the statements that make version 1; a new file takes the same steps from there
    steps: Mapping[int, str]  # the statements that lead from a version to the next one


class StoreError(Exception):
    """The file cannot be used: which, why, and what to do about it."""

    def __init__(self, path: Path, why: str, next_step: str) -> None:
        super().__init__(f"{path}: {why}; {next_step}")
        self.path = path
        self.why = why
        self.next_step = next_step


MOVE_AWAY = (
    "move it and its -journal file away and start again:"
    " assignments are then empty, and attach with --persistent makes them anew"
)
_LOOK = "look at the folder's permissions and at the disk's free space"
_RESTART = (
    "no assignment and no attachment is made any more until the service is restarted,"
    " which takes the file as it is then, or makes it anew"
)
# By the beginning of SQLite's own name of the error.
_NEXT = (
    ("SQLITE_CORRUPT", MOVE_AWAY),
    ("SQLITE_NOTADB", MOVE_AWAY),
    ("SQLITE_BUSY", "another process has it open: end that one"),
    ("SQLITE_LOCKED", "another process has it open: end that one"),
)


class DatabaseFile:
    """The open file. Every method raises StoreError when the file fails."""

    def __init__(self, path: str | Path, schema: Schema) -> None:
        """Opens the file, or makes it. Its folder must exist."""
        self._path = Path(path)
        self._schema = schema
        self._journal_path = self._path.with_name(f"{self._path.name}-journal")
        self._broken: StoreError | None = None
        self._failed: StoreError | None = None  # the last write, as on a full disk
        # For looking at the file. It stays open for as long as SQLite has the file: closing any
        # descriptor of a file releases all locks that the process has on it.
        try:
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            why = f"unable to open database file ({error.strerror})"
            raise StoreError(self._path, why, _LOOK) from error
        try:
            with self._errors():
                # Transactions are begun by hand, so that the code shows what belongs to one. One
                # thread after the other uses it, and no two at once (store.py).
                self._db = sqlite3.connect(
                    self._path, timeout=LOCK_WAIT, isolation_level=None, check_same_thread=False
                )
            try:
                self._open()
            except BaseException:
                self._db.close()
                raise
        except BaseException:
            os.close(self._fd)
            raise

    def close(self) -> None:
        """Safe to call twice. Not needed for safety: every call that returned is on the disk."""
        self._db.close()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    # The state of the files on the disk

    @property
    def is_broken(self) -> bool:
        """Whether nothing is written any more."""
        return self._broken is not None

    @property
    def trouble(self) -> str | None:
        """Why nothing is written any more, or why the last write failed; None if neither is so."""
        trouble = self._broken or self._failed
        return None if trouble is None else str(trouble)

    def _check(self) -> None:
        """Raises StoreError if the files are not as this process left them; from then on always.

        What must outlive the service must not go into a file that has no name, nor into one that
        another program has changed meanwhile.
        """
        if self._broken is not None:
            raise self._broken
        if (why := self._wrong()) is not None:
            self._break(why)

    def _wrong(self) -> str | None:
        if why := self._misplaced():
            return why
        if self._digest() != self._left:
            return "it was changed by another program while the service had it open"
        return None

    def _misplaced(self) -> str | None:
        """What is wrong with the files' names, if anything."""
        for path, known in ((self._path, self._file_id), (self._journal_path, self._journal_id)):
            if _file_id(path) != known:
                its = "it" if path == self._path else f"its {path.name}"
                return f"{its} was deleted or replaced while the service had it open"
        return None

    def _note(self) -> None:
        """Remembers what was just written; StoreError if it did not get under the files' names."""
        why = self._misplaced()
        pages = self._pragma("page_count") * self._pragma("page_size")
        if why is None and os.fstat(self._fd).st_size != pages:
            why = "it was truncated while the service wrote to it"
        if why is not None:
            self._break(why)
        self._left = self._digest()

    def _break(self, why: str) -> None:
        self._broken = StoreError(self._path, why, _RESTART)
        logger.critical("%s", self._broken)
        raise self._broken

    def _digest(self) -> bytes:
        """Of the whole file, which is some hundred kilobytes for a thousand VMs."""
        digest, offset = hashlib.blake2b(), 0
        while piece := os.pread(self._fd, 1 << 20, offset):
            digest.update(piece)
            offset += len(piece)
        return digest.digest()

    # The file

    def _open(self) -> None:
        with self._errors():
            self._db.execute("PRAGMA locking_mode = EXCLUSIVE")
            self._check_owner()
            # What an older version of the service left in a WAL is in the file after this.
            self._db.execute("PRAGMA journal_mode = PERSIST")
            self._db.execute("PRAGMA synchronous = FULL")
            # Damage that is found now is a clear message; found later, it is a failed attach.
            (verdict,) = self._db.execute("PRAGMA quick_check(1)").fetchone()
            if verdict == "ok":
                # A write takes the lock, and makes the journal's file; both stay from here on.
                self._db.execute(f"PRAGMA user_version = {self._schema.version}")
        if verdict != "ok":
            raise StoreError(self._path, f"the database is damaged ({verdict})", MOVE_AWAY)
        found = os.fstat(self._fd)
        self._file_id, self._journal_id = (found.st_dev, found.st_ino), _file_id(self._journal_path)
        self._left = b""
        with self._errors():
            self._note()

    def _check_owner(self) -> None:
        """Makes the tables in an empty file; refuses a file that is another program's or too
        new."""
        application, version = self._pragma("application_id"), self._pragma("user_version")
        schema = self._schema
        (tables,) = self._db.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        if not tables:
            self._make(schema.first, 1)
        elif application != schema.application:
            why = "this is the database of another program"
            raise StoreError(self._path, why, "give this service a state folder of its own")
        elif 0 < version < schema.version:
            self._make("", version)
        elif version != schema.version:
            why = f"its tables have version {version}, and this service knows {schema.version}"
            raise StoreError(self._path, why, "install the version of the service that wrote it")

    def _make(self, tables: str, version: int) -> None:
        """Makes `tables` and takes the steps from `version` on. One transaction: a crash leaves the
        file as it was, or complete and of this version."""
        schema = self._schema
        steps = "".join(schema.steps[each] for each in range(version, schema.version))
        mark = f"PRAGMA application_id = {schema.application}; "
        mark += f"PRAGMA user_version = {schema.version};"
        try:
            self._db.executescript(f"BEGIN IMMEDIATE; {tables} {steps} {mark} COMMIT;")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    def _run(self, statement: str, values: tuple[str | int | None, ...]) -> None:
        """One statement, committed when this returns."""
        try:
            with self._errors():
                self._write(statement, values)
        except StoreError as error:
            self._failed = error
            raise
        self._failed = None

    def _write(self, statement: str, values: tuple[str | int | None, ...]) -> None:
        self._check()
        try:
            self._db.execute(statement, values)
        except sqlite3.DatabaseError as error:
            # SQLite has rolled it back, unless that failed as well.
            self._or_break(self._unchanged, f"a write failed ({error}), and was not taken back")
            raise
        self._or_break(self._note, "what was just written could not be looked at")

    def _or_break(self, look: Callable[[], None], why: str) -> None:
        """If the look fails, the content of the file is not known: no other program has caused
        that, and nothing can be built on the file."""
        try:
            look()
        except (OSError, sqlite3.Error) as error:
            self._break(f"{why} ({error})")

    def _unchanged(self) -> None:
        if self._digest() != self._left:
            raise OSError("it is not as it was before")

    def _rows(self, statement: str) -> list[tuple[Any, ...]]:
        # Any: STRICT tables have ensured the types of their columns.
        with self._errors():
            return self._db.execute(statement).fetchall()

    def _pragma(self, name: str) -> int:
        (value,) = self._db.execute(f"PRAGMA {name}").fetchone()
        return int(value)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Every error of SQLite and of the disk as a StoreError with what to do."""
        try:
            yield
        except (sqlite3.IntegrityError, sqlite3.ProgrammingError):
            raise  # a mistake of this program, not of the file
        except sqlite3.DatabaseError as error:
            code = getattr(error, "sqlite_errorname", "")
            next_step = next((step for start, step in _NEXT if code.startswith(start)), _LOOK)
            raise StoreError(self._path, str(error), next_step) from error
        except OSError as error:
            raise StoreError(self._path, error.strerror or str(error), _LOOK) from error


def _file_id(path: Path) -> tuple[int, int] | None:
    """The file that has this name now; None if none has."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino
