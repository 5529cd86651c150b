"""The store: every completed write is there after kill -9, and no half of one; no other process
interferes, and its disk keeps no other request waiting."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn, TypeVar

import attrs
import pytest
import trio
import trio.testing
from pedos_dom0.tables import database_file, store_file
from pedos_dom0.tables.assignment import ANY_PORT
from pedos_dom0.tables.leases import ATTACHED, DETACHING, PENDING, STATES, Lease
from pedos_dom0.tables.registry import DeviceKey
from pedos_dom0.tables.store import (
    Assignment,
    HeldBack,
    StartRow,
    Store,
    StoreError,
    Suspended,
    open_store,
)
from pedos_dom0.tables.store_file import SCHEMA_VERSION, StoreFile
from pedos_dom0.tasks.disk import in_thread

T = TypeVar("T")

KEY = DeviceKey("block", "sys-usb", "sda")
OTHER = DeviceKey("block", "sys-usb", "sdb")
ANYWHERE = DeviceKey("block", "sys-usb", ANY_PORT)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "dom0.sqlite"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    store = Store(StoreFile(path))
    yield store
    store.close()


@pytest.fixture
def file(path: Path) -> Iterator[StoreFile]:
    file = StoreFile(path)
    yield file
    file.close()


def lease(attachment: str = "0123456789abcdef", state: str = PENDING) -> Lease:
    return Lease(
        attachment=attachment,
        key=KEY,
        vm="work",
        options={"read-only": "yes", "frontend-dev": "xvdi"},
        frontend=None,
        port=100,
        backend_domid=3,
        vm_domid=4,
        state=state,
    )


def reopened(store: Store, path: Path) -> Store:
    store.close()
    return Store(StoreFile(path))


async def test_assignments_outlive_the_service(store: Store, path: Path) -> None:
    await store.assign("work", KEY, {"read-only": "yes"})
    await store.assign("vault", KEY, {})
    await store.assign("work", OTHER, {})
    again = reopened(store, path)
    assert again.assignments() == [
        Assignment("vault", KEY, {}),
        Assignment("work", KEY, {"read-only": "yes"}),
        Assignment("work", OTHER, {}),
    ]
    assert again.assignments("vault") == [Assignment("vault", KEY, {})]
    assert again.assignments("nobody") == []
    again.close()


async def test_assigning_again_takes_the_new_options(store: Store) -> None:
    await store.assign("work", KEY, {"read-only": "yes"})
    await store.assign("work", KEY, {"read-only": "no"})
    assert store.assignments() == [Assignment("work", KEY, {"read-only": "no"})]
    await store.assign("work", KEY, {}, "serial::")
    assert store.assignments() == [Assignment("work", KEY, {}, "serial::")]


async def test_unassigning_says_whether_there_was_anything(store: Store) -> None:
    await store.assign("work", KEY, {})
    assert not await store.unassign("vault", KEY)
    assert await store.unassign("work", KEY)
    assert not await store.unassign("work", KEY)


async def test_the_journal_keeps_all_of_a_lease(store: Store, path: Path) -> None:
    carried = [
        attrs.evolve(lease(f"{number:016x}"), frontend="xvdi", by_hypervisor=by_hypervisor)
        for number, by_hypervisor in enumerate((True, False, None))
    ]
    for full in carried:
        await store.journal_put(full)
    again = reopened(store, path)
    assert again.journal() == carried
    assert [row.by_hypervisor for row in again.journal()] == [True, False, None]
    again.close()


async def test_the_journal_follows_an_attachment_to_its_end(store: Store) -> None:
    await store.journal_put(lease())
    for state in (ATTACHED, DETACHING):
        assert await store.journal_state(lease().attachment, state)
        assert store.journal() == [lease(state=state)]
    await store.journal_put(attrs.evolve(lease(), frontend="xvdj"))
    assert [row.frontend for row in store.journal()] == ["xvdj"]
    assert await store.journal_delete(lease().attachment)
    assert not await store.journal_delete(lease().attachment)
    assert not await store.journal_state(lease().attachment, ATTACHED)
    assert store.journal() == []


async def test_a_state_that_does_not_exist_never_gets_into_the_file(store: Store) -> None:
    await store.journal_put(lease())
    with pytest.raises(ValueError, match="half"):
        await store.journal_state(lease().attachment, "half")
    assert store.journal()[0].state in STATES


# Commits one assignment, is in the middle of other writes, says so, and waits to be killed.
VICTIM = """
import sys
from pedos_dom0.tables.registry import DeviceKey
from pedos_dom0.tables.store_file import Assignment, StoreFile

file = StoreFile(sys.argv[1])
file.assign(Assignment("work", DeviceKey("block", "sys-usb", "sda"), {"read-only": "yes"}))
file._db.execute("PRAGMA cache_size = 0")  # so that it is written before it is committed
file._db.execute("BEGIN")
file._db.execute("DELETE FROM assignment")
for number in range(200):
    values = (str(number), "block", "sys-usb", "x" * 100, "", "{}", 0, None, "required")
    file._db.execute("INSERT INTO assignment VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", values)
print("in the middle", flush=True)
sys.stdin.read()
"""


def test_kill_9_in_the_middle_leaves_what_was_committed_and_nothing_else(path: Path) -> None:
    argv = [sys.executable, "-c", VICTIM, str(path)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as victim:
        assert victim.stdout is not None
        assert victim.stdout.readline() == b"in the middle\n"
        victim.send_signal(signal.SIGKILL)
        assert victim.wait(10) == -signal.SIGKILL
    assert path.stat().st_size > 200 * 100
    with contextlib.closing(StoreFile(path)) as again:
        assert again.assignments() == [Assignment("work", KEY, {"read-only": "yes"})]
        again.assign(Assignment("work", OTHER, {}))


def test_writes_are_flushed_to_the_disk_in_the_file_itself(file: StoreFile) -> None:
    assert file._db.execute("PRAGMA journal_mode").fetchone() == ("persist",)
    assert file._db.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL


def says(path: Path) -> str:
    with pytest.raises(StoreError) as error:
        StoreFile(path)
    assert error.value.path == path
    assert str(error.value) == f"{path}: {error.value.why}; {error.value.next_step}"
    return str(error.value)


def test_a_file_that_is_no_database_is_named_with_what_to_do(path: Path) -> None:
    path.write_bytes(b"not a database at all\n" * 100)
    assert "file is not a database; move it and its -journal file away" in says(path)
    assert path.read_bytes().startswith(b"not a database")


async def test_a_damaged_file_is_found_at_the_start(store: Store, path: Path) -> None:
    for number in range(200):
        await store.assign("work", DeviceKey("block", "sys-usb", f"d{number}"), {"x": "y" * 100})
    store.close()
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(size // 2)
        file.write(b"\xff" * 8192)
    assert "move it and its -journal file away" in says(path)


async def test_a_truncated_file_is_found_at_the_start(store: Store, path: Path) -> None:
    for number in range(200):
        await store.assign("work", DeviceKey("block", "sys-usb", f"d{number}"), {"x": "y" * 100})
    store.close()
    with path.open("r+b") as file:
        file.truncate(8192)
    assert "move it" in says(path)


async def test_damaged_options_are_a_store_error(store: Store, path: Path) -> None:
    await store.assign("work", KEY, {})
    store.close()
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("UPDATE assignment SET options = '[1'")
    with (
        contextlib.closing(StoreFile(path)) as file,
        pytest.raises(StoreError, match="options of a device are damaged"),
    ):
        Store(file)


def test_a_file_of_a_newer_service_is_left_alone(file: StoreFile, path: Path) -> None:
    file._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    file.close()
    assert f"its tables have version {SCHEMA_VERSION + 1}" in says(path)


# The tables as the first version of the service made them.
VERSION_1 = """
CREATE TABLE assignment (
    vm TEXT NOT NULL, device_class TEXT NOT NULL, backend TEXT NOT NULL, device TEXT NOT NULL,
    options TEXT NOT NULL, PRIMARY KEY (vm, device_class, backend, device)
) STRICT, WITHOUT ROWID;
CREATE TABLE journal (
    attachment TEXT PRIMARY KEY NOT NULL, device_class TEXT NOT NULL, backend TEXT NOT NULL,
    device TEXT NOT NULL, vm TEXT NOT NULL, options TEXT NOT NULL, frontend TEXT,
    port INTEGER NOT NULL, backend_domid INTEGER NOT NULL, vm_domid INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('pending', 'attached', 'detaching'))
) STRICT, WITHOUT ROWID;
PRAGMA application_id = 0x5065444F;
PRAGMA user_version = 1;
INSERT INTO assignment VALUES ('work', 'block', 'sys-usb', 'sda', '{"read-only": "yes"}');
INSERT INTO journal VALUES ('0123456789abcdef', 'block', 'sys-usb', 'sda', 'work',
    '{"read-only": "yes", "frontend-dev": "xvdi"}', NULL, 100, 3, 4, 'pending');
"""


def version_1(path: Path) -> None:
    db = sqlite3.connect(path, isolation_level=None)
    db.executescript(VERSION_1)
    db.close()


async def test_a_file_of_an_older_service_is_brought_up_to_date_with_all_that_it_has(
    path: Path,
) -> None:
    version_1(path)
    for _ in range(2):
        file = StoreFile(path)
        assert file._db.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)
        store = Store(file)
        assert store.assignments() == [Assignment("work", KEY, {"read-only": "yes"})]
        assert store.assignments_of(KEY) == store.assignments()
        assert store.journal() == [lease()]
        await store.start_put("work", None)
        assert store.starts() == [StartRow("work", None)]
        store.close()


# What the version before UUIDs made of that, with one assignment to a VM that was removed.
VERSION_4 = (
    VERSION_1.replace("user_version = 1", "user_version = 4")
    + """
ALTER TABLE assignment ADD COLUMN identity TEXT NOT NULL DEFAULT '';
ALTER TABLE assignment ADD COLUMN orphaned INTEGER NOT NULL DEFAULT 0;
ALTER TABLE journal ADD COLUMN identity TEXT;
ALTER TABLE journal ADD COLUMN instance TEXT;
CREATE TABLE start (
    vm TEXT PRIMARY KEY NOT NULL, domid INTEGER, may_run INTEGER NOT NULL DEFAULT 1
) STRICT, WITHOUT ROWID;
CREATE INDEX assignment_of ON assignment (device_class, backend, device);
INSERT INTO assignment VALUES ('work', 'block', 'sys-usb', 'sdb', '{}', 'serial::', 1);
"""
)


async def test_a_file_from_before_uuids_keeps_its_assignments_whose_vms_are_told_apart_from_now_on(
    path: Path,
) -> None:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.executescript(VERSION_4)
    options = {"read-only": "yes"}
    removed = Assignment("work", OTHER, {}, "serial::", orphaned=True)
    async with open_store(path) as store:
        assert store.assignments() == [Assignment("work", KEY, options), removed]
        assert store.journal() == [lease()]
        assert await store.tell_apart("work", "0-1") == []
    async with open_store(path) as store:
        assert store.assignments() == [Assignment("work", KEY, options, uuid="0-1"), removed]
        assert await store.tell_apart("work", "0-1") == []
        assert [each.key for each in await store.tell_apart("work", "0-2")] == [KEY]
        assert await store.tell_apart("work", "0-1") == []
        assert store._file.assignments() == store.assignments()
    async with open_store(path) as store:
        assert store.assignments() == [
            Assignment("work", KEY, options, orphaned=True, uuid="0-1"),
            removed,
        ]


# What the version before modes made of that; its rows had their columns in this order.
SECOND_ROW = "INSERT INTO assignment VALUES ('work', 'block', 'sys-usb', 'sdb'"
VERSION_6 = (
    VERSION_4.replace("user_version = 4", "user_version = 6").partition(SECOND_ROW)[0]
    + f"""
ALTER TABLE assignment ADD COLUMN uuid TEXT;
ALTER TABLE journal ADD COLUMN by_hypervisor INTEGER;
{SECOND_ROW}, '{{}}', 'serial::', 1, '0-1');
"""
)


async def test_a_file_from_before_modes_keeps_its_assignments_as_required_ones(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.executescript(VERSION_6)
    expected = [
        Assignment("work", KEY, {"read-only": "yes"}),
        Assignment("work", OTHER, {}, "serial::", orphaned=True, uuid="0-1"),
    ]
    for _ in range(2):
        async with open_store(path) as store:
            assert store.assignments() == expected
            assert {each.mode for each in store.assignments()} == {"required"}
            assert store.journal() == [lease()]
            assert store.all_held_back() == []
            await store.assign("work", KEY, {"read-only": "yes"})
            await store.assign("work", ANYWHERE, {}, "serial::", mode="ask")
            assert [*expected, store.assignments()[0]] == store._file.assignments()
            assert await store.unassign("work", ANYWHERE, "serial::")
    # An older service says that it is older, and leaves the file alone.
    with pytest.MonkeyPatch.context() as older:
        older.setattr(store_file, "SCHEMA_VERSION", 6)
        assert f"its tables have version {SCHEMA_VERSION}, and this service knows 6" in says(path)


async def test_muted_vms_are_noted_also_in_a_file_from_before_there_were_any(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.executescript(VERSION_6)
    async with open_store(path) as store:
        assert store.muted("mic") == []
        assert await store.mute("mic", "work") and await store.mute("mic", "vault")
        assert not await store.mute("mic", "work")
        assert await store.unmute("mic", "vault") and not await store.unmute("mic", "vault")
    async with open_store(path) as store:
        assert store.muted("mic") == ["work"] and store.muted("fake") == []
        assert store.is_muted("mic", "work") and not store.is_muted("fake", "work")
        assert len(store.assignments()) == 2
    with pytest.MonkeyPatch.context() as older:
        older.setattr(store_file, "SCHEMA_VERSION", 9)
        assert f"its tables have version {SCHEMA_VERSION}, and this service knows 9" in says(path)


async def test_a_mute_that_the_disk_does_not_take_is_none(path: Path) -> None:
    async with open_store(path) as store:
        with pytest.MonkeyPatch.context() as full:
            full.setattr(store._file, "mute", fails_to_write)
            with pytest.raises(StoreError):
                await store.mute("mic", "work")
        assert not store.is_muted("mic", "work")


def fails_to_write(*_: str) -> None:
    raise StoreError(Path("dom0.sqlite"), "the disk is full", "make room")


def test_an_update_to_modes_that_fails_half_way_leaves_the_old_file(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.executescript(VERSION_6)
    with monkeypatch.context() as patch:
        patch.setitem(store_file._STEPS, 6, store_file._STEPS[6] + "SELECT * FROM none;")
        assert "no such table" in says(path)
    with contextlib.closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (6,)
        assert db.execute("SELECT count(*) FROM assignment").fetchone() == (2,)


async def test_a_vm_has_one_assignment_to_a_port_and_one_to_an_identity(
    store: Store, path: Path
) -> None:
    await store.assign("work", KEY, {}, "serial::", mode="auto-attach")
    await store.assign("work", KEY, {}, "other::", mode="ask")
    await store.assign("work", ANYWHERE, {}, "serial::", mode="auto-attach")
    await store.assign("work", ANYWHERE, {}, "other::")
    await store.assign("work", ANYWHERE, {"read-only": "yes"}, "other::")
    await store.assign("vault", ANYWHERE, {}, "other::")
    expected = [
        Assignment("vault", ANYWHERE, {}, "other::"),
        Assignment("work", ANYWHERE, {"read-only": "yes"}, "other::"),
        Assignment("work", ANYWHERE, {}, "serial::", mode="auto-attach"),
        Assignment("work", KEY, {}, "other::", mode="ask"),
    ]
    for each in (store, store := reopened(store, path)):
        assert each.assignments() == expected
    assert store.assignments_of(KEY) == expected[3:]
    assert store.assignments_of(KEY, "other::") == [*expected[:2], expected[3]]
    assert store.assignments_of(OTHER, "serial::") == [expected[2]]
    assert await store.unassign("work", ANYWHERE, "serial::")
    assert not await store.unassign("work", ANYWHERE, "serial::")
    assert not await store.unassign("work", ANYWHERE)
    assert await store.unassign("work", KEY)
    assert store.assignments() == expected[:2]
    assert sorted(store._file.assignments(), key=repr) == expected[:2]
    store.close()


async def test_what_is_held_back_outlives_the_service_and_is_let_go_by_vm(
    store: Store, path: Path
) -> None:
    await store.hold_back(HeldBack(KEY, "1", {"work": 3}))
    await store.hold_back(HeldBack(KEY, "1", {"vault": 4}))
    store = reopened(store, path)
    assert store.all_held_back() == [HeldBack(KEY, "1", {"work": 3, "vault": 4})]
    assert not await store.let_go(KEY, "personal")
    assert await store.let_go(KEY, "work")
    assert store.held_back(KEY) == HeldBack(KEY, "1", {"vault": 4})
    await store.hold_back(HeldBack(KEY, "2", {"work": 5}))
    assert store.held_back(KEY) == HeldBack(KEY, "2", {"work": 5}), "another device by now"
    store = reopened(store, path)
    assert await store.let_go(KEY)
    assert not await store.let_go(KEY)
    assert store.all_held_back() == store._file.held_back() == []
    store.close()


async def test_assigning_again_is_to_the_vm_that_has_the_name_now(store: Store, path: Path) -> None:
    await store.assign("work", KEY, {}, uuid="0-1")
    assert not await store.assign("work", KEY, {}, uuid="0-1")
    await store.tell_apart("work", "0-2")
    assert await store.assign("work", KEY, {}, uuid="0-2")
    assert await store.tell_apart("work", "0-2") == []
    again = reopened(store, path)
    assert again.assignments() == [Assignment("work", KEY, {}, uuid="0-2")]
    again.close()


def test_an_update_that_fails_half_way_leaves_the_old_file(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version_1(path)
    with monkeypatch.context() as patch:
        patch.setitem(store_file._STEPS, 1, "CREATE TABLE start (vm TEXT); SELECT * FROM none;")
        assert "no such table" in says(path)
    store = Store(StoreFile(path))
    assert store.starts() == []
    store.close()


async def test_starts_outlive_the_service_until_they_are_over(store: Store, path: Path) -> None:
    await store.start_put("work", None)
    await store.start_put("vault", None)
    await store.start_put("work", 7)
    again = reopened(store, path)
    assert again.starts() == [StartRow("vault", None), StartRow("work", 7)]
    assert await again.start_delete("work")
    assert not await again.start_delete("work")
    assert again.starts() == [StartRow("vault", None)]
    again.close()


async def test_what_was_detached_for_a_sleep_outlives_the_service(store: Store, path: Path) -> None:
    rows = [
        Suspended(
            attachment, KEY, "0951:1666:S1:u080650", "work", 3, {"colour": "red"}, "a boot", False
        )
        for attachment in ("0" * 16, "1" * 16)
    ]
    rows[1] = attrs.evolve(rows[1], tried=True)
    for row in rows:
        await store.suspended_put(row)
    again = reopened(store, path)
    assert again.suspended() == rows
    await again.suspended_delete("0" * 16)
    await again.suspended_delete("0" * 16)  # again: nothing
    assert again.suspended() == rows[1:] == again._file.suspended()
    again.close()


async def test_the_users_of_one_device_are_found_alone(store: Store) -> None:
    await store.assign("work", KEY, {"read-only": "yes"})
    await store.assign("vault", KEY, {})
    await store.assign("work", OTHER, {})
    assert store.assignments_of(KEY) == [
        Assignment("vault", KEY, {}),
        Assignment("work", KEY, {"read-only": "yes"}),
    ]


def test_another_program_s_database_is_left_alone(path: Path) -> None:
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE mine (x)")
    db.commit()
    db.close()
    assert "the database of another program" in says(path)


def test_a_missing_folder_says_where_to_look(tmp_path: Path) -> None:
    assert "unable to open database file (No such file or directory); look at the folder's" in says(
        tmp_path / "missing" / "dom0.sqlite"
    )


def test_a_file_that_another_process_has_open_says_so(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_file, "LOCK_WAIT", 0)
    StoreFile(path).close()
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert "another process has it open: end that one" in says(path)
    StoreFile(path).close()


@pytest.mark.parametrize("statement", ["BEGIN IMMEDIATE", "SELECT * FROM journal"])
async def test_no_other_process_can_hold_the_database(
    store: Store, path: Path, statement: str
) -> None:
    with contextlib.closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as other:
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute(statement)
        await store.assign("work", KEY, {})
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute(statement)


async def test_what_an_older_service_left_in_a_wal_is_taken_over(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.executescript(VERSION_1)
        # As a kill -9 leaves it: what was committed stands in the -wal alone.
        left = {name.name: name.read_bytes() for name in path.parent.iterdir()}
    for name, data in left.items():
        (path.parent / name).write_bytes(data)
    async with open_store(path) as store:
        assert store.journal() == [lease()]
        assert not path.with_name(f"{path.name}-wal").exists()


async def test_what_a_caller_puts_in_stays_data(store: Store) -> None:
    await store.assign("x'; DROP TABLE assignment; --", KEY, {"'": '"'})
    assert store.assignments("x'; DROP TABLE assignment; --")[0].options == {"'": '"'}


# Changes of the file under the running service

JOURNAL = "dom0.sqlite-journal"


def deleted(path: Path) -> None:
    path.unlink()


def renamed(path: Path) -> None:
    path.rename(path.with_name("old"))


def truncated(path: Path) -> None:
    os.truncate(path, 0)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 4096)


def replaced(path: Path) -> None:
    copy = shutil.copy(path, path.with_name("copy"))
    os.rename(copy, path)


def restored(path: Path) -> None:
    """As `cp` does it: the same file gets another's bytes."""
    other = path.with_name("other")
    StoreFile(other).close()
    path.write_bytes(other.read_bytes())


def damaged(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"!")


def without_journal(path: Path) -> None:
    path.with_name(JOURNAL).unlink()


DAMAGES = (deleted, renamed, truncated, cut, replaced, restored, damaged, without_journal)


@pytest.mark.parametrize("damage", DAMAGES)
async def test_nothing_is_acknowledged_in_a_file_that_was_lost_or_changed(
    store: Store, path: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    await store.assign("work", KEY, {})
    await store.journal_put(lease())
    damage(path)
    changed = "was (deleted or replaced|changed by another program) while the service had it open"
    for write in (
        lambda: store.assign("vault", KEY, {}),
        lambda: store.unassign("work", KEY),
        lambda: store.journal_put(lease("00" * 8)),
        lambda: store.journal_state(lease().attachment, ATTACHED),
        lambda: store.journal_delete(lease().attachment),
        lambda: store.start_put("work", 1),
        lambda: store.tell_apart("work", "0-1"),
    ):
        with pytest.raises(StoreError, match=f"{changed}; .* until the service is restarted"):
            await write()
    assert "until the service is restarted" in str(store.trouble)
    # What was acknowledged stays so while the service runs, and nothing else is acknowledged.
    assert store.assignments() == [Assignment("work", KEY, {})]
    assert store.journal() == [lease()]
    assert store.starts() == []
    (record,) = caplog.records
    assert record.levelname == "CRITICAL"


@pytest.mark.parametrize("damage", [deleted, renamed, truncated, cut, replaced])
async def test_nor_in_one_that_is_lost_while_it_is_written(
    path: Path, damage: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = StoreFile(path)
    note = file._note

    def late() -> None:
        damage(path)
        note()

    monkeypatch.setattr(file, "_note", late)
    with contextlib.closing(Store(file)) as store:
        with pytest.raises(StoreError, match="until the service is restarted"):
            await store.assign("work", KEY, {})
        assert store.assignments() == []


@pytest.mark.parametrize("call", ["pread", "fstat", "stat"])
async def test_a_write_that_could_not_be_looked_at_breaks_the_store_in_true_words(
    store: Store, path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """It is in the file though its caller was told that it failed; no other program did that."""
    await store.assign("work", KEY, {})
    note = store._file._note

    def fails(*_: object) -> NoReturn:
        raise OSError(errno.EIO, "Input/output error")

    def late() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(os, call, fails)
            note()

    monkeypatch.setattr(store._file, "_note", late)
    true = "what was just written could not be looked at .*Input/output error.* until the service"
    with pytest.raises(StoreError, match=true):
        await store.assign("vault", KEY, {})
    with pytest.raises(StoreError, match=true):
        await store.journal_put(lease())
    assert store.trouble is not None
    assert store.assignments() == [Assignment("work", KEY, {})]
    store.close()
    with contextlib.closing(Store(StoreFile(path))) as after:
        assert [each.vm for each in after.assignments()] == ["vault", "work"]


async def test_a_write_that_failed_and_was_not_taken_back_breaks_the_store_in_true_words(
    path: Path,
) -> None:
    class Failing:
        """The disk fails in the middle of a write, and again when that is taken back."""

        def __init__(self, db: sqlite3.Connection) -> None:
            self._db = db

        def __getattr__(self, name: str) -> object:
            return getattr(self._db, name)

        def execute(self, statement: str, *values: object) -> object:
            if statement.startswith("INSERT"):
                damaged(path)
                raise sqlite3.OperationalError("disk I/O error")
            return self._db.execute(statement, *values)

    with contextlib.closing(StoreFile(path)) as file:
        file._db = Failing(file._db)  # type: ignore[assignment]
        store = Store(file)
        for _ in range(2):
            with pytest.raises(
                StoreError, match=r"a write failed .disk I/O error., and was not tak"
            ):
                await store.assign("work", KEY, {})


async def test_a_file_whose_contents_are_damaged_is_closed_again(store: Store, path: Path) -> None:
    await store.assign("work", KEY, {"read-only": "yes"})
    store.close()
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("UPDATE assignment SET options = '7'")
        db.commit()
    before = os.listdir("/proc/self/fd")
    with pytest.raises(StoreError, match="options of a device are damaged"):
        async with open_store(path):
            pass
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize("damage", [without_journal, deleted])
async def test_the_loss_of_another_file_takes_nothing_acknowledged_along(
    store: Store, path: Path, damage: Callable[[Path], None]
) -> None:
    await store.assign("work", KEY, {})
    for name in list(path.parent.iterdir()):
        if name != path:
            name.unlink()
    with contextlib.closing(Store(StoreFile(shutil.copy(path, path.with_name("copy"))))) as copy:
        assert copy.assignments() == [Assignment("work", KEY, {})]


# Writes and the event loop


class Gate:
    """A thread whose work has begun, and is held until the test continues it."""

    def __init__(self) -> None:
        self.begun = trio.Event()
        self._go = threading.Event()
        self.held = 0

    async def __call__(self, work: Callable[[], T]) -> T:
        token = trio.lowlevel.current_trio_token()

        def held() -> T:
            self.held += 1
            token.run_sync_soon(self.begun.set)
            assert self._go.wait(10)
            return work()

        return await in_thread(held)

    def open(self) -> None:
        self._go.set()


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def slow(path: Path, gate: Gate) -> Iterator[Store]:
    store = Store(StoreFile(path), gate)
    yield store
    store.close()


async def test_a_read_does_not_wait_for_a_write_and_shows_it_when_it_is_on_the_disk(
    slow: Store, gate: Gate
) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(slow.journal_put, lease())
        await gate.begun.wait()
        assert slow.journal() == []
        assert slow.assignments() == slow.assignments_of(KEY) == slow.starts() == []
        gate.open()
    assert slow.journal() == [lease()]


async def test_writes_are_done_in_the_order_in_which_they_were_asked_for(
    slow: Store, gate: Gate
) -> None:
    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(slow.start_put, "work", number)
            await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(slow.start_delete, "work")
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(slow.start_put, "work", 99)
        await trio.testing.wait_all_tasks_blocked()
        await gate.begun.wait()  # which is a thread's to say
        assert gate.held == 1
        gate.open()
    assert slow.starts() == [StartRow("work", 99)]
    assert slow._file.starts() == slow.starts()


async def test_a_write_whose_caller_is_cancelled_meanwhile_happens_and_is_seen(
    slow: Store, gate: Gate
) -> None:
    async def give_up(scope: trio.CancelScope) -> None:
        await gate.begun.wait()
        scope.cancel()
        gate.open()

    returned = False
    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            nursery.start_soon(give_up, scope)
            await slow.journal_put(lease())
            returned = True  # so what has to be undone can be
            await trio.lowlevel.checkpoint()
            raise AssertionError("not cancelled")
    assert returned
    assert slow.journal() == slow._file.journal() == [lease()]


async def test_a_write_whose_caller_is_cancelled_before_its_turn_does_not_happen(
    slow: Store, gate: Gate
) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(slow.journal_put, lease())
        await gate.begun.wait()
        with trio.CancelScope() as scope:
            scope.cancel()
            await slow.start_put("work", 1)
        gate.open()
    assert slow.starts() == slow._file.starts() == []


async def test_what_a_check_has_seen_is_so_when_the_assignment_is_written(
    slow: Store, gate: Gate
) -> None:
    refused = []

    async def one_at_most(vm: str) -> None:
        def check() -> None:
            if slow.assignments_of(KEY):
                raise RuntimeError

        try:
            await slow.assign(vm, KEY, {}, check=check)
        except RuntimeError:
            refused.append(vm)

    async with trio.open_nursery() as nursery:
        for vm in ("work", "vault", "dev"):
            nursery.start_soon(one_at_most, vm)
        await gate.begun.wait()
        gate.open()
    assert len(slow.assignments()) == 1
    assert len(refused) == 2


async def test_a_write_that_fails_is_neither_in_memory_nor_in_the_file(store: Store) -> None:
    await store.assign("work", KEY, {})
    store._file._db.execute("PRAGMA max_page_count = 1")
    with pytest.raises(StoreError, match="database or disk is full"):
        for number in range(1000):
            await store.assign(
                "vault", DeviceKey("block", "sys-usb", f"d{number}"), {"x": "y" * 99}
            )
    assert sorted(map(str, store._file.assignments())) == sorted(map(str, store.assignments()))
    store._file._db.execute("PRAGMA max_page_count = 10000")
    await store.assign("work", OTHER, {})


async def test_a_write_that_failed_is_trouble_until_one_succeeds(store: Store, path: Path) -> None:
    database = store._file._db
    (pages,) = database.execute("PRAGMA page_count").fetchone()
    database.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StoreError, match="full"):
        await store.assign("work", KEY, {"o" * 30: "x" * 20_000})
    assert "disk is full; look at the folder" in str(store.trouble)
    assert not store.is_broken
    database.execute("PRAGMA max_page_count = 1000")
    await store.assign("work", KEY, {})
    assert store.trouble is None
