"""Fault points, readiness and watched folders."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio
import trio.testing
from pedos_host import faultpoints, folder_watch, notify
from pedos_host.folder_watch import FolderWatch
from pedos_host.plain_unix import short_path
from pedos_host.unix import listen_unix

from tests.patience import PATIENCE

# Fault points


async def test_a_fault_point_is_nothing_unless_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(faultpoints, "ADDRESS", "")
    await faultpoints.reach("attach.leased")


@pytest.mark.parametrize("ending", ["byte", "hang up"])
async def test_a_process_stops_at_a_fault_point_until_it_is_let_go(
    ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faultpoints, "ADDRESS", str(tmp_path / "faults"))
    monkeypatch.setattr(faultpoints, "PROCESS", "dom0")
    passed = trio.Event()

    async def process() -> None:
        await faultpoints.reach("attach.leased")
        passed.set()

    with trio.fail_after(PATIENCE):
        async with await listen_unix(tmp_path / "faults", 0o600) as listener:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(process)
                stream = await listener.accept()
                line = b""
                while not line.endswith(b"\n"):
                    line += await stream.receive_some()
                assert line == b"dom0 attach.leased\n"
                assert not passed.is_set()
                if ending == "byte":
                    await stream.send_all(b"x")
                    await passed.wait()
                await stream.aclose()
    assert passed.is_set()


async def test_a_fault_point_goes_on_when_no_test_listens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faultpoints, "ADDRESS", str(tmp_path / "nobody"))
    await faultpoints.reach("attach.leased")


# Readiness


def test_nobody_is_told_where_nobody_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not notify.ready()


@pytest.mark.parametrize("kind", ["path", "long path", "abstract"])
def test_the_service_manager_is_told_once(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        if kind == "abstract":
            manager.bind("")  # the kernel chooses a name
            address = "@" + manager.getsockname()[1:].decode()
        else:
            folder = tmp_path / ("x" * (150 if kind == "long path" else 1))
            folder.mkdir()
            with notify.short_path(folder / "notify") as short:
                manager.bind(short)
            address = str(folder / "notify")
        manager.settimeout(PATIENCE)
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        assert notify.ready()
        assert manager.recv(100) == b"READY=1"
        assert "NOTIFY_SOCKET" not in os.environ
        assert not notify.ready()


@contextlib.contextmanager
def full_manager(folder: Path) -> Iterator[tuple[socket.socket, str, int]]:
    """A service manager that does not read, its address, and how many datagrams wait for it."""
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as other,
    ):
        manager.setblocking(False)
        waiting = 0
        with short_path(folder / "notify") as short, contextlib.suppress(BlockingIOError):
            manager.bind(short)
            while True:
                other.sendto(b"STATUS=of another service", short)
                waiting += 1
        yield manager, str(folder / "notify"), waiting


async def test_a_service_manager_that_does_not_read_holds_nothing_up_and_is_told_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    with full_manager(tmp_path) as (manager, address, waiting):
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        assert notify.ready()
        await trio.sleep(60)  # of a clock that jumps
        for _ in range(waiting):
            assert manager.recv(100).startswith(b"STATUS")
        await trio.sleep(notify.READY_RETRY)
        assert manager.recv(100) == b"READY=1"
        await trio.sleep(60)
        with pytest.raises(BlockingIOError):  # once
            manager.recv(100)


def test_a_service_manager_that_is_gone_is_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    with pytest.raises(FileNotFoundError):
        notify.ready()


# Watched folders


async def see(watch: FolderWatch, change: Callable[[], object]) -> None:
    """`change` is noticed, and nothing is before it."""
    seen = trio.Event()

    async def wait() -> None:
        await watch.changed()
        seen.set()

    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            assert not seen.is_set()
            change()
            await seen.wait()
    while watch._drain():  # what else the same change said
        pass


async def test_what_happens_in_a_folder_is_noticed(tmp_path: Path) -> None:
    folder = tmp_path / "block"
    folder.mkdir()
    disk = folder / "disk.img"
    with FolderWatch([folder]) as watch:
        await see(watch, lambda: disk.write_text("x"))
        await see(watch, lambda: disk.write_text("more"))
        await see(watch, lambda: disk.chmod(0o400))
        await see(watch, lambda: disk.rename(folder / "stick.img"))
        await see(watch, (folder / "stick.img").unlink)


async def test_a_folder_that_comes_goes_and_comes_again_is_noticed(tmp_path: Path) -> None:
    folder = tmp_path / "block"
    with FolderWatch([folder, tmp_path / "usb"]) as watch:
        for _ in range(2):
            await see(watch, folder.mkdir)
            await see(watch, lambda: (folder / "disk.img").write_text("x"))
            await see(watch, lambda: shutil.rmtree(folder))
        await see(watch, (tmp_path / "usb").mkdir)


async def test_many_changes_are_one(tmp_path: Path) -> None:
    folder = tmp_path / "block"
    folder.mkdir()
    with FolderWatch([folder]) as watch:
        for number in range(100):
            (folder / str(number)).touch()
        with trio.fail_after(PATIENCE):
            await watch.changed()
        await see(watch, lambda: (folder / "last").touch())


async def test_writing_to_an_open_file_is_no_change_until_it_is_closed(tmp_path: Path) -> None:
    folder = tmp_path / "block"
    folder.mkdir()
    disk = os.open(folder / "disk.img", os.O_CREAT | os.O_WRONLY)
    with FolderWatch([folder]) as watch:
        os.write(disk, b"x" * 4096)
        await see(watch, lambda: os.close(disk))


async def quiet(watch: FolderWatch, change: Callable[[], object]) -> None:
    """Makes a change, of which the watch says nothing."""
    change()
    assert not watch._drain()


async def test_a_symbolic_link_is_watched_where_it_leads(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "vm/block", tmp_path / "else/where"
    folder.mkdir(parents=True)
    disk = elsewhere / "disk.img"
    (folder / "disk").symlink_to("../../else/where/disk.img")
    with FolderWatch([folder]) as watch:
        await watch.follow_links()
        # It is made, with the folders that lead there.
        await see(watch, (tmp_path / "else").mkdir)
        await see(watch, elsewhere.mkdir)
        await see(watch, lambda: disk.write_text("x"))
        await see(watch, lambda: disk.write_text("more"))
        await see(watch, lambda: disk.chmod(0o400))
        # What else is there does not count.
        await quiet(watch, (elsewhere / "other.img").touch)
        await quiet(watch, (elsewhere / "other.img").unlink)
        await see(watch, lambda: disk.rename(elsewhere / "stick.img"))
        await quiet(watch, (elsewhere / "stick.img").unlink)
        (elsewhere / "new").write_text("y")
        await see(watch, lambda: (elsewhere / "new").rename(disk))
        await see(watch, lambda: shutil.rmtree(tmp_path / "else"))
        await see(watch, lambda: elsewhere.mkdir(parents=True))
        await see(watch, disk.touch)
        # A link that is gone is followed no more.
        await see(watch, (folder / "disk").unlink)
        await quiet(watch, disk.unlink)


async def test_a_link_on_the_way_of_a_link_is_watched_too(tmp_path: Path) -> None:
    folder = tmp_path / "vm/block"
    for path in (folder, tmp_path / "one", tmp_path / "two"):
        path.mkdir(parents=True)
        (path / "disk.img").touch()
    (tmp_path / "now").symlink_to("one")
    (tmp_path / "chain").symlink_to(tmp_path / "now/./../now/disk.img")
    (folder / "disk").symlink_to(tmp_path / "chain")
    (folder / "circle").symlink_to("circle")
    with FolderWatch([folder]) as watch:
        await watch.follow_links()
        await see(watch, lambda: (tmp_path / "one/disk.img").chmod(0o400))
        (tmp_path / "later").symlink_to("two")
        await see(watch, lambda: (tmp_path / "later").rename(tmp_path / "now"))
        await quiet(watch, lambda: (tmp_path / "one/disk.img").unlink())
        await see(watch, lambda: (tmp_path / "two/disk.img").chmod(0o400))


async def test_more_links_than_can_be_followed_are_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_watch, "LINKED_MAX", 3)
    for number in range(4):
        (tmp_path / str(number)).symlink_to("/dev/null")
    with FolderWatch([tmp_path]) as watch, pytest.raises(OSError, match="more than 3 links"):
        await watch.follow_links()


async def test_a_folder_that_is_made_while_a_wait_is_cancelled_is_watched_by_the_next_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "block"
    with FolderWatch([folder]) as watch:
        await watch.follow_links()
        scope, drain = trio.CancelScope(), watch._drain

        def drain_and_cancel() -> bool:
            seen = drain()
            if seen:
                scope.cancel()
            return seen

        folder.mkdir()
        with monkeypatch.context() as patched, scope:
            patched.setattr(watch, "_drain", drain_and_cancel)
            await watch.changed()
        assert scope.cancelled_caught
        with trio.fail_after(PATIENCE):
            await watch.changed()
        await see(watch, lambda: (folder / "disk.img").write_text("x"))


async def test_a_watch_that_is_closed_lets_go_of_who_waits(tmp_path: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))
    watch = FolderWatch([tmp_path / "block"])

    async def wait() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await watch.changed()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        watch.close()
    watch.close()
    assert set(os.listdir("/proc/self/fd")) == before


def test_a_watch_needs_no_trio_to_be_made_and_closed(tmp_path: Path) -> None:
    with FolderWatch([tmp_path]):
        pass
