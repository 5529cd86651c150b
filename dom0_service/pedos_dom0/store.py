"""What dom0 remembers across restarts: assignments, and the journals of attachments and starts.

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
SCHEMA_VERSION = 3
# Marks the file as ours ("PeDO"), so that another program's database is not written into.
APPLICATION_ID = 0x5065444F
# Seconds to wait for another process that holds the file: a tool that reads it for a moment.
LOCK_WAIT = 2.0

# What leads from a version to the next one.
_STEPS = {
    1: """
CREATE TABLE start (
    vm TEXT PRIMARY KEY NOT NULL,
    domid INTEGER
) STRICT, WITHOUT ROWID;
CREATE INDEX assignment_of ON assignment (device_class, backend, device);
""",
    2: """
ALTER TABLE assignment ADD COLUMN identity TEXT NOT NULL DEFAULT '';
""",
}

# Version 1; a new file takes the steps from there as an old one does.
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
"""


_ASSIGNMENTS = """SELECT vm, device_class, backend, device, options, identity FROM assignment
    ORDER BY vm, device_class, backend, device"""
# Each of these has an index: what one VM asks for does not cost what all others have.
_ASSIGNMENTS_OF_VM = """SELECT vm, device_class, backend, device, options, identity FROM assignment
    WHERE vm = ? ORDER BY vm, device_class, backend, device"""
_ASSIGNMENTS_OF_DEVICE = """SELECT vm, device_class, backend, device, options, identity
    FROM assignment WHERE (device_class, backend, device) = (?, ?, ?) ORDER BY vm"""


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
    """`key` is to be attached to `vm` whenever that starts, if it still is the device with that
    identity (registry.lasting_identity; "" is any)."""

    vm: str
    key: DeviceKey
    options: Mapping[str, str]
    identity: str = ""


@frozen
class StartRow:
    """A start of `vm` that is in progress; `domid` is None until the hypervisor gave one."""

    vm: str
    domid: int | None


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
            self._inode = self._path.stat().st_ino
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

    def assign(
        self, vm: str, key: DeviceKey, options: Mapping[str, str], identity: str = ""
    ) -> None:
        """Adds an assignment, or gives an existing one new options and the identity of today."""
        self._require_file()
        self._run(
            "INSERT OR REPLACE INTO assignment VALUES (?, ?, ?, ?, ?, ?)",
            (vm, key.device_class, key.backend, key.device, json.dumps(dict(options)), identity),
        )

    def unassign(self, vm: str, key: DeviceKey) -> bool:
        """Takes an assignment away; False when there was none."""
        return self._run(
            "DELETE FROM assignment WHERE (vm, device_class, backend, device) = (?, ?, ?, ?)",
            (vm, key.device_class, key.backend, key.device),
        )

    def assignments(self, vm: str | None = None) -> list[Assignment]:
        """All assignments (of a VM), in the order of VM and device."""
        if vm is None:
            return self._assignments(_ASSIGNMENTS, ())
        return self._assignments(_ASSIGNMENTS_OF_VM, (vm,))

    def assignments_of(self, key: DeviceKey) -> list[Assignment]:
        """The assignments of one device, in the order of VMs."""
        values = (key.device_class, key.backend, key.device)
        return self._assignments(_ASSIGNMENTS_OF_DEVICE, values)

    def _assignments(self, statement: str, values: tuple[str, ...]) -> list[Assignment]:
        rows = self._rows(statement, values)
        return [
            Assignment(
                vm_, DeviceKey(device_class, backend, device), self._options(options), identity
            )
            for vm_, device_class, backend, device, options, identity in rows
        ]

    # Journal

    def journal_put(self, lease: Lease) -> None:
        """Notes an attachment before its first step, or all that has changed of it since."""
        self._require_file()
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

    # Starts of VMs

    def start_put(self, vm: str, domid: int | None) -> None:
        """The VM is being started: before the hypervisor is asked, and when it has answered."""
        self._run("INSERT OR REPLACE INTO start VALUES (?, ?)", (vm, domid))

    def start_delete(self, vm: str) -> bool:
        """The start is over, well or not; False when there was none."""
        return self._run("DELETE FROM start WHERE vm = ?", (vm,))

    def starts(self) -> list[StartRow]:
        """The starts that were in progress when the file was last written."""
        return [StartRow(*row) for row in self._rows("SELECT vm, domid FROM start ORDER BY vm", ())]

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
            self._make(_SCHEMA, 1)
        elif application != APPLICATION_ID:
            why = "this is the database of another program"
            raise StoreError(self._path, why, "give this service a state folder of its own")
        elif 0 < version < SCHEMA_VERSION:
            self._make("", version)
        elif version != SCHEMA_VERSION:
            why = f"its tables have version {version}, and this service knows {SCHEMA_VERSION}"
            raise StoreError(self._path, why, "install the version of the service that wrote it")

    def _make(self, tables: str, version: int) -> None:
        """Makes `tables` and takes the steps from `version` on. One transaction: a crash leaves
        the file as it was, or whole and of this version."""
        steps = "".join(_STEPS[each] for each in range(version, SCHEMA_VERSION))
        mark = f"PRAGMA user_version = {SCHEMA_VERSION};"
        try:
            self._db.executescript(f"BEGIN IMMEDIATE; {tables} {steps} {mark} COMMIT;")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    def _require_file(self) -> None:
        """What is promised to outlive the service must not go into a file that has no name."""
        try:
            there = self._path.stat().st_ino == self._inode
        except OSError:
            there = False
        if not there:
            raise StoreError(
                self._path,
                "it was deleted or replaced while the service had it open",
                "restart the service, which makes it anew",
            )

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
