"""A file system that never answers makes one device stale and delays nothing else."""

from __future__ import annotations

import errno
import gc
import os
import threading
import weakref
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import trio
import trio.testing
from pedos_agent.device_classes import described, pinned
from pedos_agent.device_classes import in_folder as discovery_folder
from pedos_agent.device_classes.base import Carried
from pedos_agent.device_classes.block import discovery_block, folder_disks, reserve
from pedos_agent.settings import Settings
from pedos_agent.system.reading import is_starved
from pedos_host import backoff, folder_watch, in_time, mounts
from pedos_host.folder_watch import FolderWatch
from pedos_protocol.errors import CallError

from tests.patience import PATIENCE

from .conftest import ATTACHMENT, FakeDom0
from .xen_tree import Tree

Hang = Callable[[object, str, str], list[str]]


@pytest.fixture
def hang(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hang]:
    """Makes a call hang where its argument ends so, until the test is over; returns the hanging
    threads. A wait for one that hangs is given up at once, and for all others never."""
    over = threading.Event()
    stuck: set[threading.Thread] = set()

    def wait(asked: in_time.Asked, _seconds: float) -> bool:
        while asked.thread not in stuck:
            asked.thread.join(0.001)
            if not asked.thread.is_alive():
                return True
        return False

    monkeypatch.setattr(in_time.Asked, "wait", wait)

    def patch(module: object, name: str, path: str) -> list[str]:
        real, hanging = getattr(module, name), list[str]()

        def call(*arguments: Any, **more: Any) -> Any:
            if str(arguments[0]).endswith(path):
                thread = threading.current_thread()
                hanging.append(thread.name)
                assert thread.name == in_time.THREAD_NAME, "it would hold up all others"
                stuck.add(thread)
                over.wait()
            return real(*arguments, **more)

        monkeypatch.setattr(module, name, call)
        return hanging

    yield patch
    over.set()
    for thread in stuck:
        thread.join()


def test_a_loop_device_whose_file_system_never_answers_hangs_no_look(
    tmp_path: Path, hang: Hang
) -> None:
    tree = Tree(tmp_path)
    for name in ("loop0", "loop1"):
        tree.add(name)
        tree.field(name, "loop/backing_file", f"/srv/{name}.img")
    tree.mount(tree.add("loop2"), "/mnt")
    tree.field("loop2", "loop/backing_file", "/srv/loop0.img")
    hanging = hang(os, "stat", "/srv/loop0.img")
    for _ in range(2):
        found = {item.key[1]: item for item in discovery_block.scan(Carried(), tree.roots)}
        assert found["loop0"].unseen == "/srv/loop0.img cannot be looked at: it does not answer"
        assert (found["loop1"].unseen, found["loop1"].device.busy) == (None, None)
    assert hanging == [in_time.THREAD_NAME] * 2, "each of the two is asked once"


def test_a_link_to_a_file_system_that_never_answers_hangs_no_look(
    settings: Settings, hang: Hang
) -> None:
    block = settings.devices / "block"
    (block / "stick.img").write_bytes(b"x")
    (block / "far.img").symlink_to("/srv/far.img")
    hang(pinned, "Pin", "far.img")
    found = {item.key[1]: item.unseen for item in discovery_folder.scan(settings.devices)}
    assert found == {"stick.img": None, "far.img": "it does not answer"}


def test_what_is_mounted_in_the_folder_and_never_answers_hangs_no_look(
    settings: Settings, hang: Hang, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = settings.devices / "block"
    for name in ("far.img", "stick.img"):
        (block / name).write_bytes(b"x")
    monkeypatch.setattr(
        discovery_folder,
        "fuse_mounts",
        lambda folder: [str(block / "far.img")] if Path(folder) == block else [],
    )
    hang(pinned, "Pin", "far.img")
    found = {item.key[1]: item.unseen for item in discovery_folder.scan(settings.devices)}
    assert found == {"stick.img": None, "far.img": "it does not answer"}


@pytest.mark.parametrize(
    ("device_class", "module", "name"),
    [("block", folder_disks, "may_write"), ("usb", described, "_description")],
)
def test_a_file_system_that_answers_from_its_cache_alone_hangs_no_look(
    settings: Settings, tmp_path: Path, hang: Hang, device_class: str, module: ModuleType, name: str
) -> None:
    (tmp_path / "far").write_bytes(b"x")
    (settings.devices / device_class / "far").symlink_to(tmp_path / "far")
    hanging = hang(module, name, "")
    (found,) = discovery_folder.scan(settings.devices)
    assert (found.key, found.unseen) == ((device_class, "far"), "it does not answer")
    assert hanging == [in_time.THREAD_NAME]


async def test_a_link_to_a_file_system_that_never_answers_hangs_no_watch(
    settings: Settings, hang: Hang
) -> None:
    block = settings.devices / "block"
    (block / "far.img").symlink_to("/srv/far.img")
    hang(os, "readlink", "/srv")
    with FolderWatch([block]) as watch, trio.fail_after(PATIENCE):
        await watch.follow_links()
        (block / "stick.img").write_bytes(b"x")
        await watch.changed()


@pytest.mark.parametrize(("module", "name"), [(os, "stat"), (reserve, "_locked")])
async def test_an_attach_of_what_never_answers_ends_and_holds_up_nobody(
    settings: Settings,
    start: Callable[[Settings], Awaitable[FakeDom0]],
    hang: Hang,
    module: object,
    name: str,
) -> None:
    (settings.devices / "block/stick.img").write_bytes(b"x")
    dom0 = await start(settings)
    hanging = hang(module, name, "/stick.img" if module is os else "")
    with pytest.raises(CallError, match="it does not answer"):
        await dom0.lend(ATTACHMENT, "stick.img", 3)
    assert hanging == [in_time.THREAD_NAME], "and not the event loop"
    await dom0.until(lambda report: not report.exports)


MOUNTS = """\
20 1 8:1 / / rw - ext4 /dev/sda1 rw
31 20 0:51 / /far rw - nfs far:/ rw
32 20 0:51 /below /srv/far\\040too rw - nfs far:/below rw
33 20 8:2 / /home rw - ext4 /dev/sda2 rw
34 33 0:52 / /home/user/near rw - fuse near rw
"""


@pytest.fixture
def far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mountinfo").write_text(MOUNTS)
    monkeypatch.setattr(mounts, "MOUNTINFO", str(tmp_path / "mountinfo"))


@pytest.mark.parametrize(
    ("path", "file_system"),
    [
        *(("/far", "0:51"), ("/far/a/b", "0:51"), ("/srv/far too/c", "0:51")),
        *(("/home/user/near/d", "0:52"), ("/home/user/nearer", None), ("/e", None), ("/", None)),
    ],
)
@pytest.mark.usefixtures("far")
def test_a_file_system_that_may_hang_is_known_by_where_it_is_mounted(
    path: str, file_system: str | None
) -> None:
    assert mounts.remote_at(path) == file_system


def test_the_file_system_that_all_runs_from_is_never_said_to_hang(tmp_path: Path) -> None:
    table = tmp_path / "mountinfo"
    table.write_text("9 1 0:40 / / rw - overlay o rw\n10 9 0:40 /b /var/b rw - overlay o rw\n")
    assert [mounts.remote_at(path, str(table)) for path in ("/a", "/var/b/c")] == [None, None]


@pytest.mark.usefixtures("far")
def test_many_links_to_one_server_that_hangs_cost_one_wait_and_no_other_its_answer(
    settings: Settings, tmp_path: Path, hang: Hang
) -> None:
    block = settings.devices / "block"
    many = [f"far{number}.img" for number in range(in_time.HANGING_MAX + 4)]
    for name in many:
        (block / name).symlink_to(tmp_path / "way" / name)
    (tmp_path / "way").symlink_to("/far")
    (tmp_path / "near.img").write_bytes(b"x")
    (block / "near.img").symlink_to(tmp_path / "near.img")
    hanging = hang(os, "readlink", "/far")
    for _ in range(2):
        found = {item.key[1]: item.unseen for item in discovery_folder.scan(settings.devices)}
        assert found == dict.fromkeys(many, "it does not answer") | {"near.img": None}
    assert hanging == [in_time.THREAD_NAME]


@pytest.mark.usefixtures("far")
def test_many_loop_devices_of_one_server_that_hangs_cost_one_wait(
    tmp_path: Path, hang: Hang
) -> None:
    tree = Tree(tmp_path)
    for number in range(3):
        tree.add(f"loop{number}")
        tree.field(f"loop{number}", "loop/backing_file", f"/far/{number}.img")
    hanging = hang(os, "stat", ".img")
    found = discovery_block.scan(Carried(), tree.roots)
    assert [bool(item.unseen) for item in found] == [True] * 3
    assert len(hanging) == 1


def all_are_over() -> None:
    """Wait until no question is under way, nor what is done with a late answer."""
    for thread in threading.enumerate():
        if thread.name == in_time.THREAD_NAME:
            thread.join(PATIENCE)


@pytest.mark.usefixtures("far")
def test_a_file_system_that_answers_again_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = threading.Event()
    with pytest.raises(TimeoutError):
        in_time.in_time("one", answer.wait, path="/far/one", seconds=0)
    with pytest.raises(TimeoutError):
        in_time.in_time("two", lambda: 2, path="/srv/far too/two", seconds=PATIENCE)
    assert in_time.in_time("three", lambda: 3, path="/home/user/near", seconds=PATIENCE) == 3
    answer.set()
    all_are_over()
    assert in_time.in_time("two", lambda: 2, path="/far/two", seconds=PATIENCE) == 2


@pytest.mark.usefixtures("far")
def test_a_question_that_hangs_next_at_another_file_system_keeps_nobody_from_the_first() -> None:
    answers = [threading.Event(), threading.Event()]
    goes_on, is_over = threading.Event(), threading.Event()

    def ask() -> None:
        answers[0].wait()
        in_time.going_to("/home/user/near/one")
        goes_on.set()
        answers[1].wait()

    def late(_: object) -> None:
        is_over.set()

    with pytest.raises(TimeoutError):
        in_time.in_time("one", ask, path="/far/one", seconds=0, late=late)
    answers[0].set()
    assert goes_on.wait(PATIENCE)
    try:
        assert in_time.in_time("two", lambda: 2, path="/far/two", seconds=PATIENCE) == 2
        with pytest.raises(TimeoutError):
            in_time.in_time("three", lambda: 3, path="/home/user/near/three", seconds=PATIENCE)
    finally:
        answers[1].set()
        assert is_over.wait(PATIENCE)


def test_looks_that_hang_leave_an_attach_its_turn(hang: Hang) -> None:
    hang(os, "stat", "/srv")
    for number in range(in_time.HANGING_MAX):
        with pytest.raises(TimeoutError):
            in_time.in_time(f"path {number}", lambda: os.stat("/srv"))
    with pytest.raises(TimeoutError):
        in_time.in_time("a look", int)
    assert in_time.in_time("an attach", int, kind="attach") == 0


def test_attaches_that_hang_leave_a_give_back_its_turn(hang: Hang) -> None:
    hang(os, "stat", "/srv")
    kinds: list[in_time.Kind] = ["attach"] * in_time.HANGING_MAX
    kinds += ["give-back"] * (in_time.GIVING_BACK_MAX - 1)
    for number, kind in enumerate(kinds):
        with pytest.raises(TimeoutError):
            in_time.in_time(f"path {number}", lambda: os.stat("/srv"), kind=kind)
    with pytest.raises(TimeoutError):
        in_time.in_time("an attach", int, kind="attach")
    assert in_time.in_time("a give-back", int, kind="give-back") == 0
    with pytest.raises(TimeoutError):
        in_time.in_time("the last", lambda: os.stat("/srv"), kind="give-back")
    with pytest.raises(TimeoutError):
        in_time.in_time("one too many", int, kind="give-back")


async def test_a_link_that_did_not_answer_is_watched_when_it_does(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    block, disk = settings.devices / "block", tmp_path / "far.img"
    (block / "far.img").symlink_to(disk)
    real, failures = in_time.in_time, ["steps", "watch", "steps"]

    def ask(what: str, *arguments: Any, **more: Any) -> Any:
        if failures and ("far.img" in what) == (failures[-1] == "steps"):
            failures.pop()
            raise TimeoutError
        return real(what, *arguments, **more)

    monkeypatch.setattr(folder_watch, "in_time", ask)
    monkeypatch.setattr(backoff, "BACKOFF_FIRST", 0)
    with FolderWatch([block]) as watch, trio.fail_after(PATIENCE):
        await watch.follow_links()
        while failures:
            await watch.changed()
        changes: list[str] = []

        async def note(change: str) -> None:
            await watch.changed()
            changes.append(change)

        await note("it is watched now")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(note, "it was written")
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert changes == ["it is watched now"]
            disk.write_bytes(b"x")


def test_what_comes_late_is_given_back_before_it_is_asked_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(in_time, "ANSWER_SECONDS", 0.01)
    begun, answer = threading.Event(), threading.Event()
    undoing, undone = threading.Event(), threading.Event()
    asked: list[int] = []

    def ask() -> str:
        asked.append(0)
        begun.set()
        answer.wait()
        return "held"

    def late(result: str) -> None:
        assert result == "held"
        undoing.set()
        undone.wait()

    for _ in range(2):
        with pytest.raises(TimeoutError, match="it does not answer"):
            in_time.in_time("a path", ask, late=late)
    assert begun.wait(PATIENCE)
    answer.set()
    assert undoing.wait(PATIENCE)
    try:
        with pytest.raises(TimeoutError, match="it does not answer"):
            in_time.in_time("a path", ask, late=late)
    finally:
        undone.set()
    assert len(asked) == 1
    all_are_over()
    assert in_time.in_time("a path", ask, seconds=PATIENCE) == "held"
    with pytest.raises(ZeroDivisionError):
        in_time.in_time("a path", lambda: 1 / 0, seconds=PATIENCE)


def test_what_was_open_when_an_answer_was_an_error_is_not_kept() -> None:
    class Open:
        pass

    kept: list[weakref.ref[Open]] = []

    def ask() -> None:
        held = Open()
        kept.append(weakref.ref(held))
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    gc.disable()
    try:
        with pytest.raises(OSError, match="Stale"):
            in_time.in_time("a path", ask, seconds=PATIENCE)
        all_are_over()
        assert kept[0]() is None
    finally:
        gc.enable()


def test_that_no_thread_is_left_is_a_lack_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(OSError, match="no thread can be started") as lack:
        in_time.in_time("a path", lambda: None)
    assert is_starved(lack.value)


def test_only_so_many_questions_hang_at_once(hang: Hang) -> None:
    hanging = hang(os, "stat", "/srv")
    for number in range(in_time.HANGING_MAX + 3):
        with pytest.raises(TimeoutError):
            in_time.in_time(f"path {number}", lambda: os.stat("/srv"))
    assert len(hanging) == in_time.HANGING_MAX
