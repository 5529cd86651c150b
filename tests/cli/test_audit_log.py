"""The audit log's reader: over rotated files, past torn lines, from the end, and as it grows."""

from __future__ import annotations

import json
import os
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pedos_cli import audit_log
from pedos_cli.audit_log import BLOCK_SIZE, LINE_MAX, Follower, Unread, last_records, records
from pedos_dom0.audit import log as audit
from pedos_dom0.audit.log import Audit


def line(number: int, **fields: object) -> bytes:
    time = f"2026-01-02T03:04:05.{number % 1000:03}Z"
    return json.dumps({"time": time, "event": "e", "number": number, **fields}).encode() + b"\n"


def numbers(found: Iterator[dict[str, object]] | list[dict[str, object]]) -> list[object]:
    return [record.get("number") for record in found]


def last(path: Path, number: int, unread: Unread | None = None) -> list[object]:
    found, _ = last_records(str(path), number, lambda _: True, unread or Unread())
    return numbers(found)


def follow(path: Path, unread: Unread | None = None) -> Follower:
    _, follower = last_records(str(path), 0, lambda _: True, unread or Unread(), follow=True)
    assert follower is not None
    return follower


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


def rotate(path: Path) -> None:
    """As the service does it."""
    for number in range(audit_log.FILES_KEPT, 0, -1):
        older = Path(f"{path}.{number - 1}") if number > 1 else path
        if older.exists():
            older.rename(f"{path}.{number}")
    path.touch()


def append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


NOT_RECORDS = [
    b"torn",
    b'{"time": "2026-01-02T03:04:05.678Z", "eve',
    b"5",
    b"null",
    b"[]",
    b"{}",
    b'{"time": 5, "event": "e"}',
    b'{"time": "t"}',
    b'{"time": "t", "event": "e", "x": NaN}',
    b'{"time": "t", "event": "e", "x": -Infinity}',
    b'{"time": "t", "event": "e", "x": 1e999}',
    b'{"time": "t", "event": "e", "x": ' + b"9" * 5000 + b"}",
    b'{"time": "t", "event": "e"} {"time": "t", "event": "e"}',
    b"[" * (LINE_MAX - 2),
    b'{"a":' * 3000,
    b"\xff\xfe\x00",
    b"\x00" * 100,
    b"x" * (LINE_MAX + 1),
    b"x" * (3 * BLOCK_SIZE),
    b'{"time": "t", "event": "e", "x": "' + b"x" * LINE_MAX + b'"}',
]


def test_the_bounds_are_the_service_s() -> None:
    assert audit_log.FILES_KEPT == audit.FILES_KEPT
    assert audit_log.LINE_MAX == audit.LINE_MAX


def test_what_the_service_writes_is_read_in_its_order_over_all_files(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "FILE_MAX", 2000)
    log = Audit(path)
    for number in range(100):
        log.write("e", number=number, text="\x1b\u202e\n" * 5)
    log.close()
    assert sorted(each.name for each in path.parent.iterdir()) == [
        "audit.jsonl", "audit.jsonl.1", "audit.jsonl.2", "audit.jsonl.3", "audit.jsonl.4",
    ]  # fmt: skip
    found = numbers(records(str(path)))
    assert found == list(range(100 - len(found), 100))
    assert len(found) > 40
    assert last(path, 30) == list(range(70, 100))
    assert last(path, 1000) == found


def test_no_file_at_all_is_an_error(path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        list(records(str(path)))
    with pytest.raises(FileNotFoundError):
        last(path, 1)


def test_files_that_are_missing_between_are_no_error(path: Path) -> None:
    Path(f"{path}.4").write_bytes(line(1))
    Path(f"{path}.2").write_bytes(line(2))
    assert numbers(records(str(path))) == [1, 2]
    path.write_bytes(line(3))
    assert numbers(records(str(path))) == last(path, 9) == [1, 2, 3]


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_is_an_error_and_is_not_waited_for(path: Path, make: object) -> None:
    assert callable(make)
    make(path)
    with pytest.raises(OSError, match=r"."):
        list(records(str(path)))


@pytest.mark.parametrize("bad", NOT_RECORDS, ids=range(len(NOT_RECORDS)))
@pytest.mark.parametrize("end", [b"\n", b""])
def test_a_line_that_is_no_record_is_counted_and_passed_over(
    path: Path, bad: bytes, end: bytes
) -> None:
    path.write_bytes(line(1) + bad + b"\n" + line(2) + bad + end)
    unread = Unread()
    assert numbers(records(str(path), unread=unread)) == [1, 2]
    assert unread.lines == 2
    unread = Unread()
    assert last(path, 9, unread) == [1, 2]
    assert unread.lines == 2
    follower = Follower(str(path), unread, os.open(path, os.O_RDONLY), 0)
    assert numbers(follower.new()) == [1, 2]
    follower.close()


def test_empty_lines_are_nothing(path: Path) -> None:
    path.write_bytes(b"\n\n" + line(1) + b"\n\n")
    unread = Unread()
    assert numbers(records(str(path), unread=unread)) == last(path, 9, unread) == [1]
    assert unread.lines == 0


@given(st.lists(st.binary() | st.integers(0, 99).map(line) | st.just(b"\n"), max_size=20))
def test_any_bytes_give_the_same_forwards_backwards_and_as_they_come(parts: list[bytes]) -> None:
    content = b"".join(parts)
    with TemporaryDirectory() as folder:  # a fixture would be shared by all examples
        path = Path(folder) / "audit.jsonl"
        path.write_bytes(b"")
        counts = [Unread() for _ in range(3)]
        follower = follow(path, counts[2])
        came: list[object] = []
        for part in parts:
            append(path, part)
            came += numbers(follower.new())
        forwards = numbers(records(str(path), unread=counts[0]))
        backwards = last(path, len(content) + 1, counts[1])
        assert forwards == backwards
        assert counts[0].lines == counts[1].lines
        append(path, b"\n")  # what is not ended yet is not followed yet
        assert came + numbers(follower.new()) == forwards
        assert counts[2].lines == counts[0].lines
        follower.close()


def test_lines_are_whole_wherever_the_blocks_end(path: Path) -> None:
    for shift in range(0, 200, 7):
        content = b"x" * shift + b"\n" + b"".join(line(n, pad="y" * 90) for n in range(1500))
        path.write_bytes(content)
        assert len(content) > 2 * BLOCK_SIZE
        assert last(path, 2000) == list(range(1500))


def test_since_leaves_out_what_is_older_in_every_file(path: Path) -> None:
    Path(f"{path}.1").write_bytes(line(1) + line(500))
    path.write_bytes(line(3) + line(600) + b'{"event": "e", "time": "2026-01-02T03:04:05.1Z"}\n')
    assert numbers(records(str(path), since="2026-01-02T03:04:05.500Z")) == [500, 600]


def test_the_end_of_a_long_log_is_read_without_reading_the_log(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.write_bytes(b"".join(line(n) for n in range(50_000)))
    read = 0
    pread = os.pread

    def counting(descriptor: int, size: int, position: int) -> bytes:
        nonlocal read
        read += size
        return pread(descriptor, size, position)

    monkeypatch.setattr(os, "pread", counting)
    assert last(path, 3) == [49_997, 49_998, 49_999]
    assert read <= BLOCK_SIZE


def test_memory_does_not_grow_with_the_log_or_with_a_line(path: Path) -> None:
    with path.open("wb") as file:
        for n in range(20_000):
            file.write(line(n, pad="y" * 100))
        file.write(b"z" * 8_000_000)
    tracemalloc.start()
    try:
        assert sum(1 for _ in records(str(path))) == 20_000
        assert len(last(path, 5)) == 5
        follower = Follower(str(path), Unread(), os.open(path, os.O_RDONLY), 0)
        assert sum(1 for _ in follower.new()) == 20_000
        follower.close()
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


def test_a_rotation_while_the_files_are_opened_loses_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for moment in range(audit_log.FILES_KEPT + 1):
        for number in range(audit_log.FILES_KEPT, 0, -1):
            Path(f"{path}.{number}").write_bytes(line(10 - number))
        path.write_bytes(line(10))
        opened = 0
        real = audit_log._open

        def rotating(name: str) -> int | None:
            nonlocal opened
            if opened == moment:  # noqa: B023 - called within this turn of the loop
                rotate(path)
                append(path, line(11))
            opened += 1
            return real(name)  # noqa: B023 - as above

        with monkeypatch.context() as patch:
            patch.setattr(audit_log, "_open", rotating)
            assert numbers(records(str(path))) == [7, 8, 9, 10, 11], moment


# Following


def test_following_begins_where_the_last_records_end(path: Path) -> None:
    path.write_bytes(line(1) + line(2))
    found, follower = last_records(str(path), 1, lambda _: True, Unread(), follow=True)
    assert follower is not None
    assert (numbers(found), numbers(follower.new())) == ([2], [])
    append(path, line(3) + line(4))
    assert numbers(follower.new()) == [3, 4]
    assert numbers(follower.new()) == []
    follower.close()


def test_a_line_that_is_being_written_comes_when_it_is_whole(path: Path) -> None:
    whole = line(2)
    path.write_bytes(line(1) + whole[:20])
    unread = Unread()
    found, follower = last_records(str(path), 9, lambda _: True, unread, follow=True)
    assert follower is not None
    assert (numbers(found), numbers(follower.new())) == ([1], [])
    append(path, whole[20:40])
    assert numbers(follower.new()) == []
    append(path, whole[40:])
    assert numbers(follower.new()) == [2]
    assert unread.lines == 0
    follower.close()


@pytest.mark.parametrize("rotations", [1, 2, 3])
def test_following_goes_on_over_rotations(path: Path, rotations: int) -> None:
    path.write_bytes(line(0))
    follower = follow(path)
    expected = []
    for number in range(rotations):
        append(path, line(2 * number + 1))
        rotate(path)
        append(path, line(2 * number + 2))
        expected += [2 * number + 1, 2 * number + 2]
    assert numbers(follower.new()) == expected
    append(path, line(99))
    assert numbers(follower.new()) == [99]
    follower.close()


def test_following_waits_while_the_file_is_not_there(path: Path) -> None:
    path.write_bytes(line(0))
    follower = follow(path)
    path.rename(f"{path}.1")  # the middle of a rotation
    assert numbers(follower.new()) == []
    append(Path(f"{path}.1"), line(1))
    path.write_bytes(line(2))
    assert numbers(follower.new()) == [1, 2]
    follower.close()


def test_following_goes_on_with_a_log_that_was_removed_or_emptied(path: Path) -> None:
    path.write_bytes(line(0) * 3)
    follower = follow(path)
    fresh = path.with_name("fresh")
    fresh.write_bytes(line(1))
    fresh.rename(path)
    assert numbers(follower.new()) == [1]
    os.truncate(path, 0)
    assert numbers(follower.new()) == []
    append(path, line(2))
    assert numbers(follower.new()) == [2]
    follower.close()


def test_what_was_torn_at_a_rotation_is_counted(path: Path) -> None:
    path.write_bytes(line(0))
    unread = Unread()
    follower = follow(path, unread)
    append(path, line(1)[:10])
    rotate(path)
    append(path, line(2))
    assert numbers(follower.new()) == [2]
    assert unread.lines == 1
    follower.close()


def test_lines_without_a_word_are_left_out_and_torn_ones_still_counted(path: Path) -> None:
    path.write_bytes(line(1, request="aa") + line(2, request="bb") + line(3)[:30] + b"\n")
    unread = Unread()
    assert numbers(records(str(path), containing="bb", unread=unread)) == [2]
    assert unread.lines == 1


def test_what_is_written_just_before_a_rotation_is_followed_too(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.write_bytes(line(0))
    follower = follow(path)
    look = follower._next_file

    def rotate_first() -> int | None:
        monkeypatch.undo()
        append(path, line(1))
        rotate(path)
        append(path, line(2))
        return look()

    monkeypatch.setattr(follower, "_next_file", rotate_first)
    assert numbers(follower.new()) == [1, 2]
    follower.close()


def test_what_was_not_rotated_away_meanwhile_comes_from_the_oldest_on(path: Path) -> None:
    append(path, line(0))
    follower = follow(path)
    for number in range(1, audit_log.FILES_KEPT + 3):
        rotate(path)
        append(path, line(number))
    found = numbers(follower.new())
    assert found == list(range(2, audit_log.FILES_KEPT + 3))
    follower.close()


def test_a_rotation_that_is_under_way_holds_up_only_the_newest_file(path: Path) -> None:
    append(path, line(0))
    follower = follow(path)
    rotate(path)
    append(path, line(1))
    rotate(path)
    path.unlink()
    assert numbers(follower.new()) == [1]
    append(path, line(2))
    assert numbers(follower.new()) == [2]
    follower.close()


def test_the_end_is_searched_without_parsing_what_cannot_be_meant(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append(path, line(1, vm="vault") + b"torn\n" + line(2, vm="work") + line(3, vm="vault"))
    parsed: list[bytes] = []
    take = audit_log.take_record
    monkeypatch.setattr(
        audit_log, "take_record", lambda line, unread: (parsed.append(line), take(line, unread))[1]
    )
    unread = Unread()

    def search(**hints: str) -> list[object]:
        parsed.clear()
        found, _ = last_records(str(path), 9, lambda _: True, unread, **hints)
        return numbers(found)

    assert search(containing="work") == [2]
    assert len(parsed) == 3  # with what is torn, and the nothing behind the last line
    assert unread.lines == 1
    assert search(since="2026-01-02T03:04:05.003Z") == [3]
    assert search(since="2026-01-02T03:04:05.002Z", containing="vault") == [3]
