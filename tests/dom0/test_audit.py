"""The audit log: one line for each event, whatever the fields contain."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pedos_dom0.audit import log as audit_module
from pedos_dom0.audit.log import (
    FILES_KEPT,
    ITEMS_MAX,
    LINE_MAX,
    TEXT_MAX,
    Audit,
    new_request_id,
)
from pedos_dom0.tables.registry import DeviceKey


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


@pytest.fixture
def audit(path: Path) -> Iterator[Audit]:
    audit = Audit(path)
    yield audit
    audit.close()


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


def test_a_line_has_time_event_and_fields(audit: Audit, path: Path) -> None:
    audit.write("attach", request="0123456789ab", device=DeviceKey("block", "sys-usb", "sda"))
    (line,) = lines(path)
    assert line["time"].endswith("Z")
    assert len(line["time"]) == len("2026-01-01T00:00:00.000Z")
    del line["time"]
    assert line == {"event": "attach", "request": "0123456789ab", "device": "sys-usb:sda"}


def test_request_ids_are_twelve_hex_digits_and_differ() -> None:
    ids = {new_request_id() for _ in range(100)}
    assert len(ids) == 100
    assert all(len(i) == 12 and int(i, 16) >= 0 for i in ids)


def test_lines_are_appended_after_a_restart(path: Path) -> None:
    for number in range(3):
        audit = Audit(path)
        audit.write("start", number=number)
        audit.close()
    assert [line["number"] for line in lines(path)] == [0, 1, 2]


def test_only_the_owner_may_read_it(audit: Audit, path: Path) -> None:
    assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0


@pytest.mark.parametrize(
    "text", ["\n{}", "\x1b[2J\x07", "\u202egpj.exe", "\x00\x7f\x9b", "\u2028", "\ud800", "</b>\r\n"]
)
def test_nothing_but_printable_ascii_gets_into_the_file(
    audit: Audit, path: Path, text: str
) -> None:
    audit.write("event", description=text, options={text: text})
    data = path.read_bytes()
    assert data.count(b"\n") == 1
    assert data[:-1].isascii()
    assert all(32 <= byte < 127 for byte in data[:-1])
    assert lines(path)[0]["description"] == text


def test_fields_are_bounded_and_the_line_too(audit: Audit, path: Path) -> None:
    long = "x" * 10_000_000
    audit.write("event", request="0123456789ab", text=long)
    audit.write("event", request="0123456789ab", many=[long] * 1000, few=["y"])
    first, second = lines(path)
    assert first["text"] == "x" * TEXT_MAX + "..."
    assert second["many"] == "..."
    assert second["few"] == ["y"]
    assert second["request"] == "0123456789ab"
    assert all(len(line) <= LINE_MAX for line in path.read_bytes().split(b"\n"))


def test_lists_and_depth_are_bounded_and_what_is_cut_off_is_counted(
    audit: Audit, path: Path
) -> None:
    deep: list[Any] = []
    deep.append(deep)
    wide = {str(number): number for number in range(1000)}
    audit.write("event", wide=list(range(1000)), map=wide, deep=deep)
    (line,) = lines(path)
    more = f"{1000 - ITEMS_MAX} more"
    assert line["wide"] == [*range(ITEMS_MAX), f"... {more}"]
    assert line["map"] == {**dict(list(wide.items())[:ITEMS_MAX]), "...": more}
    assert str(line["deep"]).startswith("[[[[")


class Odd:
    def __str__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (None, None),
        (True, True),
        (-1, -1),
        (0.5, 0.5),
        (float("nan"), "nan"),
        (float("inf"), "inf"),
        (2**70, str(2**70)),
        (10**5000, "<int>"),
        (b"\xff", "b'\\xff'"),
        (Odd(), "<Odd>"),
        ({1: {"a": (1, 2)}}, {"1": {"a": [1, 2]}}),
    ],
    ids=lambda value: type(value).__name__,  # not every value here has a repr
)
def test_any_value_can_be_written(audit: Audit, path: Path, value: object, written: object) -> None:
    audit.write("event", value=value)
    assert lines(path)[0]["value"] == written


def test_a_field_cannot_pass_itself_off_as_the_time(audit: Audit, path: Path) -> None:
    audit.write("event", time="yesterday")
    assert lines(path)[0]["time"] != "yesterday"


@given(st.recursive(st.none() | st.text() | st.integers() | st.binary(), st.lists, max_leaves=10))
@settings(derandomize=True, max_examples=100, deadline=None)
def test_whatever_is_written_one_line_of_json_is_read(value: object) -> None:
    line = audit_module._line(audit_module.make_record("event", {"value": value}))
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert json.loads(line)["event"] == "event"


def test_after_a_death_in_mid_line_the_next_line_is_whole(path: Path) -> None:
    path.write_bytes(b'{"event": "whole"}\n{"event": "ha')
    audit = Audit(path)
    audit.write("next")
    audit.close()
    last = path.read_bytes().split(b"\n")
    assert json.loads(last[0])["event"] == "whole"
    assert last[1] == b'{"event": "ha'
    assert json.loads(last[2])["event"] == "next"


def test_a_full_disk_stops_nothing_is_said_once_and_counted(
    audit: Audit, path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(fd: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(audit_module.os, "write", full)
        audit.write("one")
        audit.write("two")
    audit.write("three")
    audit.write("four")
    three, four = lines(path)
    assert (three["event"], three["lost_before"]) == ("three", 2)
    assert "lost_before" not in four
    (message,) = caplog.messages
    assert message == f"audit: {path}: No space left on device; lines are being lost"


def test_a_short_write_is_finished(
    audit: Audit, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.write
    with monkeypatch.context() as patch:
        patch.setattr(audit_module.os, "write", lambda fd, data: real(fd, data[:7]))
        audit.write("one")
    audit.write("two")
    assert [line["event"] for line in lines(path)] == ["one", "two"]


def test_a_write_that_breaks_off_does_not_spoil_the_next_line(
    audit: Audit, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = os.write, []

    def breaks_off(fd: int, data: bytes) -> int:
        calls.append(data)
        if len(calls) > 1:
            raise OSError(28, "No space left on device")
        return real(fd, data[:7])

    with monkeypatch.context() as patch:
        patch.setattr(audit_module.os, "write", breaks_off)
        audit.write("one")
    audit.write("two")
    torn, whole, _ = path.read_bytes().split(b"\n")
    assert len(torn) == 7
    assert json.loads(whole)["event"] == "two"


def test_a_missing_folder_is_an_error_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Audit(tmp_path / "missing" / "audit.jsonl")


# Other programs change the file


def deleted(path: Path) -> None:
    path.unlink()


def moved_away(path: Path) -> None:
    path.rename(path.with_name("audit.jsonl-20260101"))


def moved_and_made_anew(path: Path) -> None:
    """As logrotate does it with `create`."""
    moved_away(path)
    path.touch(0o600)


def replaced(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(b'{"event": "of another"}\n{"event": "to')
    other.rename(path)


def truncated(path: Path) -> None:
    os.truncate(path, 0)


@pytest.mark.parametrize(
    ("damage", "what", "level"),
    [
        (deleted, "deleted", "CRITICAL"),
        (moved_away, "moved away", "WARNING"),
        (moved_and_made_anew, "moved away", "WARNING"),
        (replaced, "deleted", "CRITICAL"),
        (truncated, "truncated", "CRITICAL"),
    ],
)
def test_no_line_goes_into_a_file_that_has_lost_its_name(
    audit: Audit,
    path: Path,
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[Path], None],
    what: str,
    level: str,
) -> None:
    audit.write("before")
    damage(path)
    audit.write("after")
    audit.write("and on")
    written = [line for line in path.read_bytes().split(b"\n") if b"time" in line]
    notice, *rest = map(json.loads, written)
    assert (notice["event"], notice["what"]) == ("service", f"log begun anew: it was {what}")
    assert [line["event"] for line in rest] == ["after", "and on"]
    (record,) = caplog.records
    assert record.levelname == level
    assert f"{path} was {what} by another program" in record.getMessage()
    assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0 or damage is replaced
    assert audit.trouble is None


def test_a_line_for_which_there_is_no_folder_any_more_is_lost_and_that_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    audit = Audit(folder / "audit.jsonl")
    audit.write("before")
    folder.rename(tmp_path / "elsewhere")
    audit.write("one")
    audit.write("two")
    trouble = f"the audit log {folder / 'audit.jsonl'} cannot be written: No such file or directory"
    assert audit.trouble == trouble
    assert [record.levelname for record in caplog.records] == ["CRITICAL"]
    folder.mkdir()
    audit.write("three")
    audit.close()
    assert audit.trouble is None
    assert [line.get("lost_before") for line in lines(folder / "audit.jsonl")] == [None, 2]


# Rotation


def numbers(path: Path) -> list[int]:
    return [line["number"] for line in lines(path)] if path.exists() else []


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file takes ten lines of these tests."""
    monkeypatch.setattr(
        audit_module,
        "FILE_MAX",
        10 * len(audit_module._line(audit_module.make_record("e", {"number": 10}))),
    )


def files(path: Path) -> list[Path]:
    return [path, *(path.with_name(f"{path.name}.{n}") for n in range(1, FILES_KEPT + 1))]


@pytest.mark.usefixtures("small")
def test_a_full_file_is_put_aside_and_a_few_are_kept(path: Path, audit: Audit) -> None:
    for number in range(10, 95):
        audit.write("e", number=number)
    assert sorted(path.parent.iterdir()) == sorted(files(path))
    newest, *older = [numbers(file) for file in files(path)]
    assert newest == [90, 91, 92, 93, 94]
    assert older == [list(range(n, n + 10)) for n in (80, 70, 60, 50)]
    assert all(stat.S_IMODE(file.stat().st_mode) == 0o600 for file in files(path))


@pytest.mark.usefixtures("small")
def test_a_file_that_is_full_already_is_put_aside_after_a_restart(path: Path) -> None:
    for number in range(10, 35):
        audit = Audit(path)
        audit.write("e", number=number)
        audit.close()
    assert numbers(path) == [30, 31, 32, 33, 34]
    assert numbers(files(path)[1]) == list(range(20, 30))


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("step", range(6))
def test_a_crash_between_any_two_steps_of_it_costs_no_line(
    path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    audit = Audit(path)
    for number in range(10, 30):
        audit.write("e", number=number)
    real, steps = os.rename, 0

    def killed(source: Path, target: Path) -> None:
        nonlocal steps
        if steps == step:
            raise SystemExit
        steps += 1
        real(source, target)

    with monkeypatch.context() as patch, suppress(SystemExit):
        patch.setattr(audit_module.os, "rename", killed)
        audit.write("e", number=30)
    audit.close()
    audit = Audit(path)
    for number in range(31, 40):
        audit.write("e", number=number)
    audit.close()
    kept = sorted(number for file in files(path) for number in numbers(file))
    assert [number for number in kept if number != 30] == [*range(10, 30), *range(31, 40)]


@pytest.mark.usefixtures("small")
def test_a_file_that_cannot_be_put_aside_is_written_on_and_no_older_one_is_lost(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise PermissionError(13, "Permission denied")

    audit = Audit(path)
    with monkeypatch.context() as patch:
        patch.setattr(audit_module.os, "rename", refuse)
        for number in range(10, 25):
            audit.write("e", number=number)
    audit.close()
    assert numbers(path) == list(range(10, 25))
    assert caplog.messages == [f"audit: {path} is full and cannot be put aside: Permission denied"]
