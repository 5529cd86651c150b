"""The rows that outlive the service: assignments, what is held back from them, the journal of
attachments, starts of VMs, muted VMs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pedos_protocol.frozen import frozen

from pedos_dom0.tables.assignment import Assignment, Slot
from pedos_dom0.tables.database_file import MOVE_AWAY, DatabaseFile, Schema, StoreError
from pedos_dom0.tables.leases import STATES, Lease
from pedos_dom0.tables.registry import DeviceKey

if TYPE_CHECKING:
    from pedos_protocol.messages import Mode

# Incremented with every change of the tables; the file has it as its user_version.
SCHEMA_VERSION = 11
# Marks the file as ours ("PeDO"), so that the service does not write into another program's
# database.
APPLICATION_ID = 0x5065444F
# The statements that lead from a version to the next one.
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
    3: """
ALTER TABLE assignment ADD COLUMN orphaned INTEGER NOT NULL DEFAULT 0;
ALTER TABLE journal ADD COLUMN identity TEXT;
ALTER TABLE journal ADD COLUMN instance TEXT;
ALTER TABLE start ADD COLUMN may_run INTEGER NOT NULL DEFAULT 1;
""",
    4: """
ALTER TABLE assignment ADD COLUMN uuid TEXT;
""",
    5: """
ALTER TABLE journal ADD COLUMN by_hypervisor INTEGER;
""",
    # A VM has one assignment to a port, whatever the identity, and one to an identity at any port
    # (device is '').
    6: """
DROP INDEX assignment_of;
ALTER TABLE assignment RENAME TO assignment_6;
CREATE TABLE assignment (
    vm TEXT NOT NULL,
    device_class TEXT NOT NULL,
    backend TEXT NOT NULL,
    device TEXT NOT NULL,
    identity TEXT NOT NULL,
    options TEXT NOT NULL,
    orphaned INTEGER NOT NULL,
    uuid TEXT,
    mode TEXT NOT NULL CHECK (mode IN ('required', 'auto-attach', 'ask')),
    CHECK (device <> '' OR identity <> '')
) STRICT;
CREATE UNIQUE INDEX assignment_to_port ON assignment (vm, device_class, backend, device)
    WHERE device <> '';
CREATE UNIQUE INDEX assignment_to_identity ON assignment (vm, device_class, backend, identity)
    WHERE device = '';
INSERT INTO assignment
    SELECT vm, device_class, backend, device, identity, options, orphaned, uuid, 'required'
    FROM assignment_6;
DROP TABLE assignment_6;
CREATE TABLE held_back (
    device_class TEXT NOT NULL,
    backend TEXT NOT NULL,
    device TEXT NOT NULL,
    instance TEXT NOT NULL,
    runs TEXT NOT NULL,
    PRIMARY KEY (device_class, backend, device)
) STRICT, WITHOUT ROWID;
""",
    7: """
CREATE TABLE suspended (
    attachment TEXT PRIMARY KEY NOT NULL,
    device_class TEXT NOT NULL,
    backend TEXT NOT NULL,
    device TEXT NOT NULL,
    identity TEXT NOT NULL,
    vm TEXT NOT NULL,
    vm_domid INTEGER NOT NULL,
    options TEXT NOT NULL,
    boot TEXT NOT NULL
) STRICT, WITHOUT ROWID;
""",
    8: """
ALTER TABLE suspended ADD COLUMN tried INTEGER NOT NULL DEFAULT 0;
""",
    9: """
CREATE TABLE muted (
    device_class TEXT NOT NULL,
    vm TEXT NOT NULL,
    PRIMARY KEY (device_class, vm)
) STRICT, WITHOUT ROWID;
""",
    # What an older service has noted may have had some: it is not looked for elsewhere.
    10: """
ALTER TABLE suspended ADD COLUMN had_twins INTEGER NOT NULL DEFAULT 1;
""",
}

# Version 1; a new file takes the same steps from there as an old one.
_FIRST = f"""
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
"""


@frozen
class HeldBack:
    """A person has detached the device `key`, as it is now plugged in (`instance`): it is not
    attached again by itself to these VMs while these domains of theirs run (`runs`, by name)."""

    key: DeviceKey
    instance: str
    runs: Mapping[str, int]


@frozen
class StartRow:
    """A start of `vm` that is in progress; `domid` is None until the hypervisor gave one.

    `may_run`: it was unpaused, or may have been, if a VM that is made waits for that.
    """

    vm: str
    domid: int | None
    may_run: bool = False


@frozen
class Suspended:
    """An attachment that was ended, or was to be, for the sleep of the machine: `key` had the
    `identity`, and the domain `vm_domid` of this `boot` had it. `begun`: it is being made again
    after the sleep; `tried`: that was in vain. `had_twins`: before it, other devices of its source
    had that identity, too."""

    attachment: str
    key: DeviceKey
    identity: str
    vm: str
    vm_domid: int
    options: Mapping[str, str]
    boot: str
    had_twins: bool
    begun: bool = False
    tried: bool = False


# The column `tried` of a row in the table.
_TRIED, _BEGUN = 1, 2


class StoreFile(DatabaseFile):
    """The open file and its tables. Every method raises StoreError when the file fails."""

    def __init__(self, path: str | Path) -> None:
        """Opens the file, or makes it. Its folder must exist."""
        super().__init__(path, Schema(APPLICATION_ID, SCHEMA_VERSION, _FIRST, _STEPS))

    # Assignments

    def assign(self, assignment: Assignment) -> None:
        """Adds an assignment, or replaces the VM's one to that port or identity."""
        key = assignment.key
        self._run(
            "INSERT OR REPLACE INTO assignment"
            " (vm, device_class, backend, device, identity, options, orphaned, uuid, mode)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                assignment.vm,
                key.device_class,
                key.backend,
                key.device,
                assignment.identity,
                json.dumps(dict(assignment.options)),
                int(assignment.orphaned),
                assignment.uuid,
                assignment.mode,
            ),
        )

    def unassign(self, vm: str, slot: Slot) -> None:
        """Takes an assignment away."""
        key, identity = slot
        self._run(
            "DELETE FROM assignment WHERE (vm, device_class, backend, device) = (?, ?, ?, ?)"
            " AND (device <> '' OR identity = ?)",
            (vm, key.device_class, key.backend, key.device, identity),
        )

    def orphan(self, vm: str) -> None:
        """Marks all assignments of a VM as those of a removed one."""
        self._run("UPDATE assignment SET orphaned = 1 WHERE vm = ?", (vm,))

    def tell_apart(self, vm: str, uuid: str) -> None:
        """The VM has this UUID: marks assignments to one that had another, and gives it those to
        one whose UUID was not known."""
        self._run(
            "UPDATE assignment SET orphaned = uuid IS NOT NULL AND uuid <> ?,"
            " uuid = coalesce(uuid, ?) WHERE vm = ? AND NOT orphaned",
            (uuid, uuid, vm),
        )

    def assignments(self) -> list[Assignment]:
        """All assignments."""
        rows = self._rows(
            "SELECT vm, device_class, backend, device, options, identity, orphaned, uuid, mode"
            " FROM assignment"
        )
        return [
            Assignment(
                vm,
                DeviceKey(device_class, backend, device),
                self._options(options),
                identity,
                bool(orphaned),
                uuid,
                cast("Mode", mode),  # the table ensures it
            )
            for vm, device_class, backend, device, options, identity, orphaned, uuid, mode in rows
        ]

    # What is held back

    def hold_back(self, row: HeldBack) -> None:
        """Notes which VMs do not get a device again by themselves."""
        key = row.key
        values = (key.device_class, key.backend, key.device, row.instance)
        self._run(
            "INSERT OR REPLACE INTO held_back VALUES (?, ?, ?, ?, ?)",
            (*values, json.dumps(dict(row.runs))),
        )

    def let_go(self, key: DeviceKey) -> None:
        """Nothing keeps the device back any more."""
        self._run(
            "DELETE FROM held_back WHERE (device_class, backend, device) = (?, ?, ?)",
            (key.device_class, key.backend, key.device),
        )

    def held_back(self) -> list[HeldBack]:
        """Every device that was held back when the file was last written."""
        rows = self._rows("SELECT device_class, backend, device, instance, runs FROM held_back")
        return [
            HeldBack(DeviceKey(device_class, backend, device), instance, self._map(runs))
            for device_class, backend, device, instance, runs in rows
        ]

    # Journal

    def journal_put(self, lease: Lease) -> None:
        """Notes an attachment before its first step, or its later changes."""
        key = lease.key
        self._run(
            "INSERT OR REPLACE INTO journal VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
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
                lease.identity,
                lease.instance,
                lease.by_hypervisor,
            ),
        )

    def journal_delete(self, attachment: str) -> None:
        """The attachment is over."""
        self._run("DELETE FROM journal WHERE attachment = ?", (attachment,))

    def journal(self) -> list[Lease]:
        """Every attachment, complete or in progress, when the file was last written."""
        rows = self._rows(
            "SELECT attachment, device_class, backend, device, vm, options, frontend, port,"
            " backend_domid, vm_domid, state, identity, instance, by_hypervisor FROM journal"
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
                identity=identity,
                instance=instance,
                by_hypervisor=None if by_hypervisor is None else bool(by_hypervisor),
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
                identity,
                instance,
                by_hypervisor,
            ) in rows
        ]

    # Starts of VMs

    def start_put(self, row: StartRow) -> None:
        """The VM is being started: before the hypervisor is asked, and when it has answered."""
        values = (row.vm, row.domid, int(row.may_run))
        self._run("INSERT OR REPLACE INTO start VALUES (?, ?, ?)", values)

    def start_delete(self, vm: str) -> None:
        """The start is over, well or not."""
        self._run("DELETE FROM start WHERE vm = ?", (vm,))

    def starts(self) -> list[StartRow]:
        """The starts that were in progress when the file was last written."""
        rows = self._rows("SELECT vm, domid, may_run FROM start")
        return [StartRow(vm, domid, bool(may_run)) for vm, domid, may_run in rows]

    # Attachments that ended for the machine's sleep

    def suspended_put(self, row: Suspended) -> None:
        """The attachment is about to be ended."""
        key, tried = row.key, _TRIED if row.tried else _BEGUN if row.begun else 0
        self._run(
            "INSERT OR REPLACE INTO suspended VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                *(row.attachment, key.device_class, key.backend, key.device, row.identity),
                *(row.vm, row.vm_domid, json.dumps(dict(row.options)), row.boot, tried),
                row.had_twins,
            ),
        )

    def suspended_delete(self, attachment: str) -> None:
        """It is made again, or is not to be."""
        self._run("DELETE FROM suspended WHERE attachment = ?", (attachment,))

    def suspended(self) -> list[Suspended]:
        """Those that are to be made again."""
        rows = self._rows(
            "SELECT attachment, device_class, backend, device, identity, vm, vm_domid, options,"
            " boot, tried, had_twins FROM suspended"
        )
        return [
            Suspended(
                attachment,
                DeviceKey(*key),
                identity,
                vm,
                domid,
                self._options(options),
                boot,
                bool(had_twins),
                begun=tried == _BEGUN,
                tried=tried == _TRIED,
            )
            for attachment, *key, identity, vm, domid, options, boot, tried, had_twins in rows
        ]

    # Muted VMs

    def mute(self, device_class: str, vm: str) -> None:
        """The VM hears nothing of the devices of that class."""
        self._run("INSERT OR REPLACE INTO muted VALUES (?, ?)", (device_class, vm))

    def unmute(self, device_class: str, vm: str) -> None:
        """It hears them again."""
        self._run("DELETE FROM muted WHERE (device_class, vm) = (?, ?)", (device_class, vm))

    def muted(self) -> list[tuple[str, str]]:
        """Class and name of all muted VMs."""
        return [(name, vm) for name, vm in self._rows("SELECT device_class, vm FROM muted")]

    def _options(self, text: str) -> dict[str, str]:
        return self._map(text)

    def _map(self, text: str) -> dict[str, Any]:
        try:
            found = json.loads(text)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise StoreError(self._path, "the options of a device are damaged", MOVE_AWAY)
        return found
