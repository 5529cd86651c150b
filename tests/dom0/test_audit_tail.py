"""audit.recent: the last lines of the audit log, from its end, whatever stands in it."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from pedos_dom0.audit import tail
from pedos_dom0.audit.log import LINE_MAX, Audit
from pedos_dom0.audit.tail import Tail, last_lines
from pedos_dom0.requests import recent
from pedos_protocol.codec import FRAME_MAX, encode
from pedos_protocol.fields import RECORD_MAX, RECORDS_MAX
from pedos_protocol.messages import AuditTold, parse_result

from tests.dom0.fakes import World, fails

MUCH = 2**20


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


def write(path: Path, *events: str, **fields: object) -> None:
    audit = Audit(path)
    for event in events:
        audit.write(event, **fields)
    audit.close()


def events(found: Tail | AuditTold) -> list[Any]:
    return [json.loads(line)["event"] for line in found.lines]


def test_the_last_ones_come_oldest_first_and_the_rest_is_said_to_be_there(path: Path) -> None:
    write(path, "one", "two", "three")
    assert (events(last_lines(path, 2, MUCH)), last_lines(path, 2, MUCH).more) == (
        ["two", "three"],
        True,
    )
    assert (events(last_lines(path, 3, MUCH)), last_lines(path, 3, MUCH).more) == (
        ["one", "two", "three"],
        False,
    )


def test_lines_are_read_over_the_rotated_files(path: Path) -> None:
    for number in (2, 1, 0):
        write(path, f"event{number}")
        if number:
            path.rename(path.with_name(f"{path.name}.{number}"))
    found = last_lines(path, 10, MUCH)
    assert (events(found), found.more) == (["event2", "event1", "event0"], False)


def test_a_log_that_was_just_moved_away_is_read_where_it_is(path: Path) -> None:
    write(path, "one")
    path.rename(path.with_name(f"{path.name}.1"))
    assert events(last_lines(path, 10, MUCH)) == ["one"]


def test_a_file_that_a_rotation_gave_the_next_name_is_read_once(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(path, "one")
    lines = tail._lines_backwards

    def rotating(descriptor: int, size: int) -> Any:
        yield from lines(descriptor, size)
        if path.exists():
            path.rename(path.with_name(f"{path.name}.1"))

    monkeypatch.setattr(tail, "_lines_backwards", rotating)
    assert events(last_lines(path, 10, MUCH)) == ["one"]


def test_a_device_is_told_its_own_lines_alone(path: Path) -> None:
    write(path, "theirs", device="sys-usb:sda1")
    write(path, "its", device="sys-usb:sda")
    write(path, "says", reason='"sys-usb:sda"')  # a VM's words
    write(path, "says", reason="sys-usb:sda")
    found = last_lines(path, 10, MUCH, "sys-usb:sda")
    assert (events(found), found.more) == (["its"], False)


@pytest.mark.parametrize(
    "bad",
    [
        b'{"time": "now", "event": "torn',
        b"\xff\xfe",
        b'{"time": "now", "event": "raw \xe2\x80\xae"}',
        b'{"time": "now", "event": "escape \x1b[31m"}',
        b'{"time": "now", "event": 7}',
        b'["time", "event"]',
        b"[" * 10000,
        b'{"time": "now", "event": "' + b"x" * LINE_MAX + b'"}',
        b"",
    ],
)
def test_a_line_that_is_no_record_is_left_out(path: Path, bad: bytes) -> None:
    write(path, "one")
    with path.open("ab") as file:
        file.write(bad + b"\n")
    write(path, "two")
    assert events(last_lines(path, 10, MUCH)) == ["one", "two"]


@given(st.binary(max_size=400), st.integers(1, 40))
def test_any_bytes_give_records_or_nothing(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, block: int
) -> None:
    path = tmp_path_factory.mktemp("log") / "audit.jsonl"
    path.write_bytes(data)
    size, tail.BLOCK_SIZE = tail.BLOCK_SIZE, block
    try:
        found = last_lines(path, RECORDS_MAX, MUCH)
    finally:
        tail.BLOCK_SIZE = size
    for line in found.lines:
        assert {"time", "event"} <= json.loads(line).keys()
        assert line.isascii()
        assert line.isprintable()


def test_no_more_of_the_log_is_looked_at_than_the_bound(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(path, "mine", device="sys-usb:sda")
    write(path, *["others"] * 100)
    assert not last_lines(path, 10, MUCH, "sys-usb:sda").more
    monkeypatch.setattr(tail, "LOOK_MAX", 100)
    found = last_lines(path, 10, MUCH, "sys-usb:sda")
    assert (found.lines, found.more) == ((), True)


def test_without_a_log_there_are_no_lines(path: Path) -> None:
    assert last_lines(path, 10, MUCH) == Tail((), more=False)


def test_a_log_that_cannot_be_read_is_an_error(path: Path) -> None:
    path.mkdir()
    with pytest.raises(OSError, match="directory"):
        last_lines(path, 10, MUCH)


def test_the_protocol_carries_every_line_that_the_log_may_have() -> None:
    assert RECORD_MAX >= LINE_MAX


# The request


async def told(world: World, **params: Any) -> AuditTold:
    answer = await world.client.call("audit.recent", **params)
    assert len(encode([1, 1, None, answer])) <= FRAME_MAX
    found: AuditTold = parse_result("audit.recent", answer)
    return found


async def test_an_answer_has_what_was_asked_a_moment_ago(world_with_a_stick: World) -> None:
    world = world_with_a_stick
    await world.client.attach("work", "sys-usb:stick")
    found = await told(world, count=1, device="sys-usb:stick")
    (line,) = found.lines
    assert json.loads(line) == world.audit("attach")[-1]
    assert found.more
    both = await told(world, count=50, device="sys-usb:stick")
    assert (events(both), both.more) == (["decision", "attach"], False)


async def test_two_hundred_of_the_longest_lines_are_cut_to_a_frame(
    world_with_a_stick: World,
) -> None:
    world = world_with_a_stick
    for number in range(RECORDS_MAX + 1):
        world.state.audit.write("long", number=number, texts=["x" * 1000] * 15)
    found = await told(world, count=RECORDS_MAX)
    numbers = [json.loads(line)["number"] for line in found.lines]
    assert numbers == list(range(RECORDS_MAX + 1))[-len(numbers) :]
    assert (len(numbers), found.more) == (4, True)


@pytest.mark.parametrize("count", [0, RECORDS_MAX + 1, True])
async def test_any_other_number_of_lines_is_malformed(
    world_with_a_stick: World, count: object
) -> None:
    with fails("usage", f"an integer from 1 to {RECORDS_MAX}"):
        await told(world_with_a_stick, count=count)


async def test_a_disk_that_hangs_holds_few_requests_and_no_other_one(
    world_with_a_stick: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, go = world_with_a_stick, trio.Event()

    async def hangs(*_: object) -> Tail:
        await go.wait()
        return Tail((), more=False)

    monkeypatch.setattr(world.state.audit, "recent", hangs)
    async with trio.open_nursery() as nursery:
        for _ in range(recent.READERS_MAX):
            nursery.start_soon(partial(told, world, count=1))
        await trio.testing.wait_all_tasks_blocked()
        with fails("busy", "read the audit log already"):
            await told(world, count=1)
        assert await world.client.list() != []
        go.set()
    assert (await told(world, count=1)).lines == ()
