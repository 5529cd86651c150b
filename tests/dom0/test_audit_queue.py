"""The audit log in the service: in order, before the answer, and without delaying other
requests."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import outcome
import pytest
import trio
import trio.testing
from outcome import Outcome
from pedos_dom0.audit import queue as audit_queue
from pedos_dom0.audit.log import Audit
from pedos_dom0.audit.queue import AuditQueue
from pedos_host.threads import NoThreadError
from trio.abc import Clock

from tests.dom0.fakes import ALLOW_DOM0, World, fails, named, starts_at_once


class Disk:
    """Writes when the test allows it."""

    def __init__(self) -> None:
        self.held = trio.Event()
        self.go = trio.Event()

    def __call__(self, work: Callable[[], Any], then: Callable[[Outcome[Any]], None]) -> None:
        self.held.set()
        trio.lowlevel.spawn_system_task(self._write, work, then)

    async def _write(self, work: Callable[[], Any], then: Callable[[Outcome[Any]], None]) -> None:
        await self.go.wait()
        then(outcome.capture(work))


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log.jsonl"


@pytest.fixture
def audit(path: Path, disk: Disk) -> Iterator[AuditQueue]:
    audit = AuditQueue(Audit(path), disk)
    yield audit
    audit.close()


def events(path: Path) -> list[Any]:
    return [json.loads(line)["event"] for line in path.read_text().splitlines()]


async def test_lines_are_written_in_the_order_in_which_they_came(
    audit: AuditQueue, path: Path, disk: Disk, nursery: trio.Nursery
) -> None:
    audit.write("0")  # before it runs: at once
    assert events(path) == ["0"]
    await nursery.start(audit.run)
    audit.write("1", request="a")
    await disk.held.wait()
    for number in range(2, 100):
        audit.write(str(number), request="b")
    assert events(path) == ["0"]
    disk.go.set()
    await audit.written("b")
    assert events(path) == [str(number) for number in range(100)]


async def test_who_has_nothing_to_wait_for_does_not(
    audit: AuditQueue, disk: Disk, nursery: trio.Nursery, autojump_clock: Clock
) -> None:
    await nursery.start(audit.run)
    audit.write("one", request="a")
    audit.write("of no request")
    await disk.held.wait()
    with trio.testing.assert_no_checkpoints():
        await audit.written("b")
    with trio.move_on_after(60) as scope:
        await audit.written("a")
    assert scope.cancelled_caught
    disk.go.set()
    await audit.written("a")


async def test_fields_are_written_as_they_were_when_it_happened(
    audit: AuditQueue, path: Path, disk: Disk, nursery: trio.Nursery
) -> None:
    await nursery.start(audit.run)
    options = {"read-only": "yes"}
    audit.write("attach", request="a", options=options)
    options["read-only"] = "no"
    disk.go.set()
    await audit.written("a")
    assert json.loads(path.read_text())["options"] == {"read-only": "yes"}


async def test_the_end_of_the_service_costs_no_line(
    audit: AuditQueue, path: Path, disk: Disk
) -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(audit.run)
        audit.write("1")
        await disk.held.wait()
        audit.write("2")
        nursery.cancel_scope.cancel()
        disk.go.set()
    audit.write("3")
    assert events(path) == ["1", "2", "3"]


async def test_a_disk_that_hangs_does_not_fill_the_memory_and_what_is_lost_is_counted(
    audit: AuditQueue,
    path: Path,
    disk: Disk,
    nursery: trio.Nursery,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(audit_queue, "WAITING_MAX", 3)
    await nursery.start(audit.run)
    for number in range(5):
        audit.write(str(number), request=str(number))
    await disk.held.wait()
    assert audit.trouble == "the audit log's disk does not keep up: 2 lines are lost"
    disk.go.set()
    await audit.written("2")
    await audit.written("4")  # was not taken
    audit.write("5", request="5")
    await audit.written("5")
    assert events(path) == ["0", "1", "2", "5"]
    assert json.loads(path.read_text().splitlines()[-1])["lost_before"] == 2
    assert audit.trouble is None
    assert len(caplog.records) == 1


async def test_lines_for_which_nobody_waits_go_with_others_or_after_a_moment(
    path: Path, nursery: trio.Nursery, autojump_clock: Clock
) -> None:
    trips = []

    def disk(work: Callable[[], Any], then: Callable[[Outcome[Any]], None]) -> None:
        def written() -> None:
            work()
            trips.append(len(events(path)))

        starts_at_once(written, then)

    audit = AuditQueue(Audit(path), disk)
    await nursery.start(audit.run)
    audit.write("1")
    audit.write("2")
    await trio.testing.wait_all_tasks_blocked()
    assert events(path) == []
    audit.write("3", request="a")
    await audit.written("a")
    assert trips == [3]
    audit.write("4")
    await trio.sleep(2 * audit_queue.LINGER)
    assert trips == [3, 4]
    began = trio.current_time()
    for number in range(audit_queue.BATCH):
        audit.write(str(number))
    await trio.testing.wait_all_tasks_blocked()
    assert trips == [3, 4, 4 + audit_queue.BATCH]
    assert trio.current_time() == began
    audit.close()


async def test_lines_wait_for_a_thread_where_there_is_none(
    path: Path, nursery: trio.Nursery, autojump_clock: Clock
) -> None:
    tries = []

    def disk(work: Callable[[], Any], then: Callable[[Outcome[Any]], None]) -> None:
        tries.append(work)
        if len(tries) < 3:
            raise NoThreadError
        starts_at_once(work, then)

    audit = AuditQueue(Audit(path), disk)
    await nursery.start(audit.run)
    audit.write("1", request="a")
    await audit.written("a")
    assert events(path) == ["1"]
    assert len(tries) == 3
    audit.close()


async def test_a_mistake_while_lines_are_written_ends_the_service_and_no_wait_for_them(
    path: Path, nursery: trio.Nursery, autojump_clock: Clock
) -> None:
    def disk(work: Callable[[], Any], then: Callable[[Outcome[Any]], None]) -> None:
        starts_at_once(lambda: 1 / 0, then)

    audit = AuditQueue(Audit(path), disk)
    waited: list[str] = []

    async def wait() -> None:
        audit.write("1", request="a")
        await audit.written("a")
        waited.append("a")

    with pytest.raises(ZeroDivisionError):
        nursery.start_soon(wait)
        await audit.run()
    assert events(path) == ["1"]  # the end of `run` writes it
    audit.close()
    assert waited == []


@pytest.fixture
async def world(tmp_path: Path, nursery: trio.Nursery) -> AsyncIterator[World]:
    world = World(tmp_path, nursery, policy=ALLOW_DOM0)
    world.vm("sys-usb", "stick")
    world.vm("work")
    world.dom0_agent()
    await world.start()
    yield world
    await world.kill()


async def test_no_answer_goes_out_before_its_lines_are_written_and_no_other_waits_for_them(
    world: World, disk: Disk, autojump_clock: Clock
) -> None:
    audit = world.state.audit
    audit._start = disk
    await world.service_nursery.start(audit.run)
    answered = []

    async def attach() -> None:
        await world.client.attach("work", "sys-usb:stick")
        answered.append("attach")

    async def denied() -> None:
        with fails("denied"):
            await world.driver.agents["work"].ask("device.detach", **named("work", "sys-usb:stick"))
        answered.append("denied")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(attach)
        await disk.held.wait()
        nursery.start_soon(denied)
        began = trio.current_time()
        await trio.testing.wait_all_tasks_blocked()
        await world.client.call("vm.list")
        assert len(await world.client.list()) == 1
        assert trio.current_time() == began
        assert answered == []
        disk.go.set()
    assert sorted(answered) == ["attach", "denied"]
    audit._start = starts_at_once
    assert [line["outcome"] for line in world.audit("attach")] == ["attached"]
    assert [line["verdict"] for line in world.audit("decision")] == ["allow", "deny"]


async def test_status_says_what_cannot_be_written(world: World, autojump_clock: Clock) -> None:
    assert (await world.client.call("service.status"))["troubles"] == []
    (world.folder / "dom0.sqlite").unlink()
    with fails("failed", "was deleted or replaced while the service had it open"):
        await world.client.attach("work", "sys-usb:stick")
    (trouble,) = (await world.client.call("service.status"))["troubles"]
    assert "dom0.sqlite: it was deleted or replaced" in trouble
