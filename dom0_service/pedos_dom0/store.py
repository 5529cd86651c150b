"""What dom0 remembers across restarts: assignments, and the journal of attachments.

One SQLite file. A call that returned is on the disk (WAL with synchronous=FULL: one fsync, about a
millisecond), and a call that was cut short by a crash or a power failure left nothing behind.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from attrs import frozen

from .leases import STATES, Lease
from .registry import DeviceKey

# Counted up with every change of the tables; stands in the file as its user_version.
SCHEMA_VERSION = 1
# Marks the file as ours ("PeDO"), so that another program's database is not written into.
APPLICATION_ID = 0x5065444F
# Seconds to wait for another process that holds the file: a tool that reads it for a moment.
LOCK_WAIT = 2.0

_SCHEMA = f"""
CREATE TABLE assignment (
    vm TEXT NOT NULL,
    device_class TEXT NOT NULL,
    backend TEXT NOT NULL,
    device TEXT NOT NULL,
    options TEXT NOT NULL,
    PRIMARY KEY (vm, device_class, backend, device)
) STRICT, WITHOUT ROWID;
CREATE TABLE journal (
    attachment TEXT PRIMARY KEY NOT NULL,
    device_class TEXT NOT NULL,
    backend TEXT NOT NULL,
    device TEXT NOT NULL,
    vm TEXT NOT NULL,
    options TEXT NOT NULL,
    frontend TEXT,
    port INTEGER NOT NULL,
    backend_domid INTEGER NOT NULL,
    vm_domid INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN {STATES!r})
) STRICT, WITHOUT ROWID;
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
"""


class StoreError(Exception):
    """The file cannot be used: which, why, and what to do about it."""

    def __init__(self, path: Path, why: str, next_step: str) -> None:
        super().__init__(f"{path}: {why}; {next_step}")
        self.path = path
        self.why = why
        self.next_step = next_step


_MOVE_AWAY = (
    "move it and its -wal and -shm files away and start again:"
    " assignments are then empty, and attach with --persistent makes them anew"
)
_LOOK = "look at the folder's permissions and at the disk's free space"
# By the beginning of SQLite's own name of the error.
_NEXT = (
    ("SQLITE_CORRUPT", _MOVE_AWAY),
    ("SQLITE_NOTADB", _MOVE_AWAY),
    ("SQLITE_BUSY", "another process has it open for writing: end that one"),
    ("SQLITE_LOCKED", "another process has it open for writing: end that one"),
)


@frozen
class Assignment:
    """`key` is to be attached to `vm` whenever that starts."""

    vm: str
    key: DeviceKey
    options: Mapping[str, str]


class Store:
    """The open file. Every method raises StoreError when the file does not do its part."""

    def __init__(self, path: str | Path) -> None:
        """Opens the file, or makes it. Its folder must exist."""
        self._path = Path(path)
        with self._errors():
            # Transactions are begun by hand, so that what belongs to one is seen in the code.
            self._db = sqlite3.connect(self._path, timeout=LOCK_WAIT, isolation_level=None)
        try:
            self._open()
        except BaseException:
            self._db.close()
            raise

    def close(self) -> None:
        """Safe to call twice. Not needed for safety: what was returned from is on the disk."""
        self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All calls within happen, or none of them. Not to be nested, nor held over an await."""
        with self._errors():
            self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            with self._errors():
                self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                with self._errors():
                    self._db.execute("ROLLBACK")
            raise

    # Assignments

    def assign(self, vm: str, key: DeviceKey, options: Mapping[str, str]) -> None:
        """Adds an assignment, or gives an existing one new options."""
        self._run(
            "INSERT OR REPLACE INTO assignment VALUES (?, ?, ?, ?, ?)",
            (vm, key.device_class, key.backend, key.device, json.dumps(dict(options))),
        )

    def unassign(self, vm: str, key: DeviceKey) -> bool:
        """Takes an assignment away; False when there was none."""
        return self._run(
            "DELETE FROM assignment WHERE (vm, device_class, backend, device) = (?, ?, ?, ?)",
            (vm, key.device_class, key.backend, key.device),
        )

    def assignments(self, vm: str | None = None) -> list[Assignment]:
        """All assignments (of a VM), in the order of VM and device."""
        rows = self._rows(
            "SELECT vm, device_class, backend, device, options FROM assignment"
            " WHERE ?1 IS NULL OR vm = ?1 ORDER BY vm, device_class, backend, device",
            (vm,),
        )
        return [
            Assignment(vm_, DeviceKey(device_class, backend, device), self._options(options))
            for vm_, device_class, backend, device, options in rows
        ]

    # Journal

    def journal_put(self, lease: Lease) -> None:
        """Notes an attachment before its first step, or all that has changed of it since."""
        key = lease.key
        self._run(
            "INSERT OR REPLACE INTO journal VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                lease.attachment,
                key.device_class,
                key.backend,
                key.device,
                lease.vm,
                json.dumps(dict(lease.options)),
                lease.frontend,
                lease.port,
                lease.backend_domid,
                lease.vm_domid,
                lease.state,
            ),
        )

    def journal_state(self, attachment: str, state: str) -> bool:
        """Notes how far an attachment is; False when the journal has none of that id."""
        return self._run("UPDATE journal SET state = ? WHERE attachment = ?", (state, attachment))

    def journal_delete(self, attachment: str) -> bool:
        """The attachment is over; False when the journal has none of that id."""
        return self._run("DELETE FROM journal WHERE attachment = ?", (attachment,))

    def journal(self) -> list[Lease]:
        """Everything that was attached, or on its way, when the file was last written."""
        rows = self._rows(
            "SELECT attachment, device_class, backend, device, vm, options, frontend, port,"
            " backend_domid, vm_domid, state FROM journal ORDER BY attachment",
            (),
        )
        return [
            Lease(
                attachment=attachment,
                key=DeviceKey(device_class, backend, device),
                vm=vm,
                options=self._options(options),
                frontend=frontend,
                port=port,
                backend_domid=backend_domid,
                vm_domid=vm_domid,
                state=state,
            )
            for (
                attachment,
                device_class,
                backend,
                device,
                vm,
                options,
                frontend,
                port,
                backend_domid,
                vm_domid,
                state,
            ) in rows
        ]

    # The file

    def _open(self) -> None:
        with self._errors():
            self._check_owner()
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            # Damage that is found now is a clear message; found later, it is an attach that fails.
            (verdict,) = self._db.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise StoreError(self._path, f"the database is damaged ({verdict})", _MOVE_AWAY)

    def _check_owner(self) -> None:
        """Makes the tables in an empty file; refuses a file that is not ours or too new."""
        (application,) = self._db.execute("PRAGMA application_id").fetchone()
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        (tables,) = self._db.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        if not tables:
            # One transaction: a crash leaves an empty file or a whole one.
            self._db.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} COMMIT;")
        elif application != APPLICATION_ID:
            why = "this is the database of another program"
            raise StoreError(self._path, why, "give this service a state folder of its own")
        elif version != SCHEMA_VERSION:
            why = f"its tables have version {version}, and this service knows {SCHEMA_VERSION}"
            raise StoreError(self._path, why, "install the version of the service that wrote it")

    def _run(self, statement: str, values: tuple[str | int | None, ...]) -> bool:
        """One statement, committed at once unless in `transaction`; True when it hit a row."""
        with self._errors():
            return self._db.execute(statement, values).rowcount > 0

    def _rows(self, statement: str, values: tuple[str | None, ...]) -> list[tuple[Any, ...]]:
        # Any: STRICT tables have made sure of the types of their columns.
        with self._errors():
            return self._db.execute(statement, values).fetchall()

    def _options(self, text: str) -> dict[str, str]:
        try:
            options = json.loads(text)
        except ValueError:
            options = None
        if not isinstance(options, dict):
            raise StoreError(self._path, "the options of a device are damaged", _MOVE_AWAY)
        return options

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Every error of SQLite as a StoreError with what to do."""
        try:
            yield
        except (sqlite3.IntegrityError, sqlite3.ProgrammingError):
            raise  # a mistake of this program, not of the file
        except sqlite3.DatabaseError as error:
            code = getattr(error, "sqlite_errorname", "")
            next_step = next((step for start, step in _NEXT if code.startswith(start)), _LOOK)
            raise StoreError(self._path, str(error), next_step) from error
