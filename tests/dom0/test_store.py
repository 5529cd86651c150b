"""The store: what was returned from is there after kill -9, and half of anything is not."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
from pedos_dom0 import store as store_module
from pedos_dom0.leases import ATTACHED, DETACHING, PENDING, STATES, Lease
from pedos_dom0.registry import DeviceKey
from pedos_dom0.store import SCHEMA_VERSION, Assignment, StartRow, Store, StoreError

KEY = DeviceKey("block", "sys-usb", "sda")
OTHER = DeviceKey("block", "sys-usb", "sdb")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "dom0.sqlite"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    store = Store(path)
    yield store
    store.close()


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
    return Store(path)


def test_assignments_outlive_the_service(store: Store, path: Path) -> None:
    store.assign("work", KEY, {"read-only": "yes"})
    store.assign("vault", KEY, {})
    store.assign("work", OTHER, {})
    again = reopened(store, path)
    assert again.assignments() == [
        Assignment("vault", KEY, {}),
        Assignment("work", KEY, {"read-only": "yes"}),
        Assignment("work", OTHER, {}),
    ]
    assert again.assignments("vault") == [Assignment("vault", KEY, {})]
    assert again.assignments("nobody") == []
    again.close()


def test_assigning_again_takes_the_new_options(store: Store) -> None:
    store.assign("work", KEY, {"read-only": "yes"})
    store.assign("work", KEY, {"read-only": "no"})
    assert store.assignments() == [Assignment("work", KEY, {"read-only": "no"})]
    store.assign("work", KEY, {}, "serial::")
    assert store.assignments() == [Assignment("work", KEY, {}, "serial::")]


def test_unassigning_says_whether_there_was_anything(store: Store) -> None:
    store.assign("work", KEY, {})
    assert not store.unassign("vault", KEY)
    assert store.unassign("work", KEY)
    assert not store.unassign("work", KEY)


def test_the_journal_keeps_all_of_a_lease(store: Store, path: Path) -> None:
    full = attrs.evolve(lease(), frontend="xvdi")
    store.journal_put(lease("00" * 8))
    store.journal_put(full)
    again = reopened(store, path)
    assert again.journal() == [lease("00" * 8), full]
    again.close()


def test_the_journal_follows_an_attachment_to_its_end(store: Store) -> None:
    store.journal_put(lease())
    for state in (ATTACHED, DETACHING):
        assert store.journal_state(lease().attachment, state)
        assert store.journal() == [lease(state=state)]
    store.journal_put(attrs.evolve(lease(), frontend="xvdj"))
    assert [row.frontend for row in store.journal()] == ["xvdj"]
    assert store.journal_delete(lease().attachment)
    assert not store.journal_delete(lease().attachment)
    assert not store.journal_state(lease().attachment, ATTACHED)
    assert store.journal() == []


def test_a_state_that_does_not_exist_never_gets_into_the_file(store: Store) -> None:
    store.journal_put(lease())
    with pytest.raises(sqlite3.IntegrityError):
        store.journal_state(lease().attachment, "half")
    assert store.journal()[0].state in STATES


def test_a_transaction_happens_whole_or_not_at_all(store: Store) -> None:
    with store.transaction():
        store.assign("work", KEY, {})
        store.journal_put(lease())
    with pytest.raises(RuntimeError), store.transaction():
        store.unassign("work", KEY)
        store.journal_delete(lease().attachment)
        raise RuntimeError
    assert store.assignments() == [Assignment("work", KEY, {})]
    assert store.journal() == [lease()]


# Commits one assignment, begins another, says so, and waits to be killed.
VICTIM = """
import sys
from pedos_dom0.registry import DeviceKey
from pedos_dom0.store import Store

store = Store(sys.argv[1])
store.assign("work", DeviceKey("block", "sys-usb", "sda"), {"read-only": "yes"})
with store.transaction():
    store.assign("work", DeviceKey("block", "sys-usb", "sdb"), {})
    store.unassign("work", DeviceKey("block", "sys-usb", "sda"))
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
    again = Store(path)
    assert again.assignments() == [Assignment("work", KEY, {"read-only": "yes"})]
    again.assign("work", OTHER, {})
    again.close()


def test_writes_are_flushed_to_the_disk(store: Store) -> None:
    assert store._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert store._db.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL


def says(path: Path) -> str:
    with pytest.raises(StoreError) as error:
        Store(path)
    assert error.value.path == path
    assert str(error.value) == f"{path}: {error.value.why}; {error.value.next_step}"
    return str(error.value)


def test_a_file_that_is_no_database_is_named_with_what_to_do(path: Path) -> None:
    path.write_bytes(b"not a database at all\n" * 100)
    assert "file is not a database; move it and its -wal and -shm files away" in says(path)
    assert path.read_bytes().startswith(b"not a database")


def test_a_damaged_file_is_found_at_the_start(store: Store, path: Path) -> None:
    for number in range(200):
        store.assign("work", DeviceKey("block", "sys-usb", f"d{number}"), {"x": "y" * 100})
    store.close()
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(size // 2)
        file.write(b"\xff" * 8192)
    assert "move it and its -wal and -shm files away" in says(path)


def test_a_truncated_file_is_found_at_the_start(store: Store, path: Path) -> None:
    for number in range(200):
        store.assign("work", DeviceKey("block", "sys-usb", f"d{number}"), {"x": "y" * 100})
    store.close()
    with path.open("r+b") as file:
        file.truncate(8192)
    assert "move it" in says(path)


def test_damaged_options_are_a_store_error(store: Store, path: Path) -> None:
    store.assign("work", KEY, {})
    store._db.execute("UPDATE assignment SET options = '[1'")
    with pytest.raises(StoreError, match="options of a device are damaged"):
        store.assignments()


def test_a_file_of_a_newer_service_is_left_alone(store: Store, path: Path) -> None:
    store._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    store.close()
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


def test_a_file_of_an_older_service_is_brought_up_to_date_with_all_that_it_has(
    path: Path,
) -> None:
    version_1(path)
    for _ in range(2):
        store = Store(path)
        assert store._db.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)
        assert store.assignments() == [Assignment("work", KEY, {"read-only": "yes"})]
        assert store.assignments_of(KEY) == store.assignments()
        assert store.journal() == [lease()]
        store.start_put("work", None)
        assert store.starts() == [StartRow("work", None)]
        store.close()


def test_an_update_that_fails_half_way_leaves_the_old_file(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version_1(path)
    with monkeypatch.context() as patch:
        patch.setitem(store_module._STEPS, 1, "CREATE TABLE start (vm TEXT); SELECT * FROM none;")
        assert "no such table" in says(path)
    store = Store(path)
    assert store.starts() == []
    store.close()


def test_starts_outlive_the_service_until_they_are_over(store: Store, path: Path) -> None:
    store.start_put("work", None)
    store.start_put("vault", None)
    store.start_put("work", 7)
    again = reopened(store, path)
    assert again.starts() == [StartRow("vault", None), StartRow("work", 7)]
    assert again.start_delete("work")
    assert not again.start_delete("work")
    assert again.starts() == [StartRow("vault", None)]
    again.close()


def test_the_users_of_one_device_are_found_alone(store: Store) -> None:
    store.assign("work", KEY, {"read-only": "yes"})
    store.assign("vault", KEY, {})
    store.assign("work", OTHER, {})
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
    assert "unable to open database file; look at the folder's permissions" in says(
        tmp_path / "missing" / "dom0.sqlite"
    )


def test_a_file_that_another_process_writes_says_so(
    store: Store, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store._db.execute("PRAGMA busy_timeout = 0")
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match="another process has it open for writing"):
        store.assign("work", KEY, {})
    with pytest.raises(StoreError, match="another process"), store.transaction():
        raise AssertionError("not reached")
    other.execute("ROLLBACK")
    other.close()
    store.assign("work", KEY, {})


def test_what_a_caller_puts_in_stays_data(store: Store) -> None:
    store.assign("x'; DROP TABLE assignment; --", KEY, {"'": '"'})
    assert store.assignments("x'; DROP TABLE assignment; --")[0].options == {"'": '"'}


def test_nothing_new_is_promised_once_the_file_is_gone(store: Store, path: Path) -> None:
    path.unlink()
    with pytest.raises(StoreError, match="deleted or replaced"):
        store.assign("work", KEY, {})
    assert store.assignments() == []
