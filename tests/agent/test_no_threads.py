"""A lack of threads, or of a source of events, ends neither the agent nor what it lends."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from outcome import Outcome, capture
from pedos_agent.device_classes import in_folder as discovery_folder
from pedos_agent.device_classes import on_machine as discovery_sysfs
from pedos_agent.device_classes.base import Carried
from pedos_agent.device_classes.block import discovery_block, disk_events
from pedos_agent.inventory.local_device import LocalDevice
from pedos_agent.inventory.priority import Priority
from pedos_agent.settings import Settings
from pedos_agent.system import closing
from pedos_agent.system.revision import Revision
from pedos_agent.system.uevents import UNHEARD_SECONDS, keep_hearing
from pedos_dom0.tasks import disk
from pedos_host import threads
from pedos_vchan.threads import in_thread
from trio.abc import Clock

from .xen_tree import Tree

STARVED = OSError(errno.EMFILE, os.strerror(errno.EMFILE))


@pytest.fixture
def lacking(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """While this is not empty, no thread can be started; otherwise work for a thread is done at
    once, because a thread would let the clock jump."""
    why = ["can't start new thread"]

    async def run_sync(work: Callable[[], object], **_more: object) -> object:
        await trio.lowlevel.checkpoint()
        if why:
            raise RuntimeError(why[0])
        return work()

    def start(work: Callable[[], object], deliver: Callable[[Outcome[object]], object]) -> None:
        if why:
            raise RuntimeError(why[0])
        deliver(capture(work))

    monkeypatch.setattr(trio.to_thread, "run_sync", run_sync)
    monkeypatch.setattr(trio.lowlevel, "start_thread_soon", start)
    return why


async def test_that_there_is_no_thread_is_told_from_an_error_of_the_work(
    lacking: list[str],
) -> None:
    with pytest.raises(threads.NoThreadError, match="no thread can be started"):
        await threads.to_thread(int)
    with pytest.raises(threads.NoThreadError, match="no thread can be started"):
        await in_thread(int, limiter=trio.CapacityLimiter(1))
    lacking.clear()
    with pytest.raises(RuntimeError, match="a mistake"):
        await threads.to_thread(_raise, RuntimeError("a mistake"))


def _raise(error: Exception) -> None:
    raise error


async def test_dom0_waits_for_a_thread_to_write(lacking: list[str], autojump_clock: Clock) -> None:
    written: list[str] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(disk.in_thread, partial(written.append, "row"))
        await trio.sleep(10 * disk.NO_THREAD_SECONDS)
        assert written == []
        lacking.clear()
    assert written == ["row"]


async def test_what_is_held_is_closed_also_without_a_thread_of_its_own(lacking: list[str]) -> None:
    ours, theirs = os.pipe()
    closing.get_ready()
    await closing.close_and_wait(partial(os.close, theirs))
    await closing.close_and_wait(partial(_raise, OSError(errno.EIO, "not flushed")))
    closing.close_later(ours)
    closing.wait_until_closed()
    for fd in (ours, theirs):
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)


async def test_a_folder_is_looked_at_again_when_there_are_threads_again(
    settings: Settings, lacking: list[str], autojump_clock: Clock
) -> None:
    block = settings.devices / "block"
    (block / "stick.img").write_bytes(b"x")
    looks: list[list[str]] = []
    failures: list[str] = []

    def deliver(found: list[LocalDevice], _left_out: object) -> None:
        looks.append([item.key[1] for item in found])

    async def release_removed() -> None:
        await threads.to_thread(int)

    watch = partial(discovery_folder.watch, failed=failures.append, release_removed=release_removed)
    async with trio.open_nursery() as nursery:
        await nursery.start(watch, settings.devices, deliver, Priority())
        assert (looks, set(failures)) == ([], {"no thread can be started"})
        lacking.clear()
        await trio.sleep(discovery_folder.UNWATCHED_SECONDS)
        assert looks[-1] == ["stick.img"]
        lacking.append("can't start new thread")
        (block / "another.img").write_bytes(b"x")
        await trio.sleep(discovery_folder.UNWATCHED_SECONDS)
        lacking.clear()
        await trio.sleep(10 * discovery_folder.UNWATCHED_SECONDS)
        assert looks[-1] == ["another.img", "stick.img"]
        nursery.cancel_scope.cancel()


async def test_while_no_event_is_heard_of_anything_may_be_news(autojump_clock: Clock) -> None:
    changes, lack, heard = Revision(), [STARVED, STARVED], trio.Event()

    @contextmanager
    def sources() -> Iterator[None]:
        if lack:
            raise lack.pop()
        yield

    async def hear(_source: None) -> None:
        heard.set()
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        await nursery.start(keep_hearing, sources, hear, [changes])
        assert changes.number == 0
        await trio.sleep(1.5 * UNHEARD_SECONDS)
        assert (changes.number, heard.is_set()) == (1, False)
        await heard.wait()
        assert changes.number == 3, "and what happened just before it was heard of is looked at"
        nursery.cancel_scope.cancel()


async def test_each_time_that_events_stop_to_be_heard_of_is_said_once(
    autojump_clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    lack = [STARVED, STARVED, None, STARVED, STARVED]

    @contextmanager
    def sources() -> Iterator[None]:
        if lack and (error := lack.pop(0)) is not None:
            raise error
        yield

    async def hear(_source: None) -> None:
        await trio.sleep(10 * UNHEARD_SECONDS)
        raise STARVED

    async with trio.open_nursery() as nursery:
        await nursery.start(keep_hearing, sources, hear, [Revision()])
        await trio.sleep(UNHEARD_SECONDS * 9)
        assert len(caplog.messages) == 1
        await trio.sleep(UNHEARD_SECONDS * 9)
        assert (len(caplog.messages), lack) == (2, [])
        nursery.cancel_scope.cancel()


Watch = Callable[[Settings, Path], Any]


def of_folders(settings: Settings, _root: Path) -> Any:
    return partial(discovery_folder.watch, settings.devices, lambda *_: None, Priority())


def of_disks(_settings: Settings, root: Path) -> Any:
    roots = Tree(root).roots
    return partial(discovery_block.watch, lambda _: None, Carried, Revision(), roots)


def of_hardware(_settings: Settings, _root: Path) -> Any:
    return partial(discovery_sysfs.watch, lambda _: None)


@pytest.mark.parametrize("watch", [of_folders, of_disks, of_hardware])
async def test_an_agent_that_can_hear_of_no_events_works(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, watch: Watch
) -> None:
    def opened(*_: object, **_more: object) -> AbstractContextManager[object]:
        raise STARVED

    for module in (disk_events, discovery_sysfs):
        monkeypatch.setattr(module, "opened", opened)
    async with trio.open_nursery() as nursery:
        await nursery.start(watch(settings, tmp_path / "tree"))
        nursery.cancel_scope.cancel()
