"""Children cannot outlive the agent, their output is in the log, and mountinfo is parsed."""

from __future__ import annotations

import errno
import os
import signal
import sys
from pathlib import Path

import pytest
import trio
import trio.testing
from pedos_agent.attachments.table import Attachments, Import, explain
from pedos_agent.device_classes.base import Host
from pedos_agent.device_classes.block import borrowed, mounts
from pedos_agent.device_classes.block.borrowed import Borrowed
from pedos_agent.device_classes.block.carriers import BorrowedFile
from pedos_agent.device_classes.tool import LINES_MAX, Tool, run_tool
from pedos_agent.settings import Settings
from pedos_agent.system.revision import Revision
from pedos_host.children import describe_exit, start_child
from pedos_host.mounts import make_placeholder, remove_placeholder
from pedos_protocol.agent_messages import ImportStart
from pedos_protocol.errors import CallError

from tests.patience import PATIENCE

from .conftest import SECONDS, children


async def test_a_childs_end_is_told_to_all_who_wait() -> None:
    child = start_child(["sh", "-c", "exit 7"])
    statuses: list[int] = []

    async def wait() -> None:
        statuses.append(await child.wait())

    with trio.fail_after(SECONDS):
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(wait)
    assert statuses == [7, 7, 7]
    child.kill()  # ended long ago: nothing happens
    assert repr(child).endswith("exited with status 7>")


async def test_a_waiter_that_gives_up_leaves_the_child_to_the_others() -> None:
    child = start_child(["sleep", "1000"])
    with trio.move_on_after(0) as scope:
        await child.wait()
    assert scope.cancelled_caught
    child.kill()
    assert await child.wait() == -signal.SIGKILL
    assert describe_exit(-signal.SIGKILL) == "was killed by SIGKILL"


async def test_a_child_dies_with_its_parent() -> None:
    parent = (
        "import os, sys; from pedos_host.children import start_child\n"
        "print(start_child(['sleep', '1000']).pid, flush=True); sys.stdin.read(1)\n"
        "os.kill(os.getpid(), 9)"
    )
    stdin, go = os.pipe()
    told, stdout = os.pipe()
    child = start_child([sys.executable, "-c", parent], stdin=stdin, stdout=stdout)
    os.close(stdin)
    os.close(stdout)
    await trio.lowlevel.wait_readable(told)
    grandchild = os.pidfd_open(int(os.read(told, 32)))
    os.close(go)
    assert await child.wait() == -signal.SIGKILL
    with trio.fail_after(SECONDS):
        await trio.lowlevel.wait_readable(grandchild)
    os.close(grandchild)
    os.close(told)


async def test_only_the_main_thread_may_start_children() -> None:
    with pytest.raises(RuntimeError, match="main thread"):
        await trio.to_thread.run_sync(start_child, ["true"])


def test_a_child_that_cannot_be_watched_is_not_left_running(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def pidfd_open(_pid: int) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "pidfd_open", pidfd_open)
    before = children().keys()
    with pytest.raises(OSError, match=os.strerror(errno.EMFILE)):
        start_child(["sleep", "1000"])
    assert children().keys() - before == set()


def test_a_program_that_is_not_there_is_named() -> None:
    with pytest.raises(FileNotFoundError, match="no-such-program"):
        start_child(["no-such-program"])


async def test_a_tools_words_are_bounded_and_harmless(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    script = f"printf '\\033[31mred\\n' >&2; for i in $(seq {LINES_MAX + 50}); do echo $i >&2; done"
    status, said = await run_tool(["sh", "-c", script], seconds=SECONDS)
    assert status == 0
    assert said == f"{LINES_MAX + 48}; {LINES_MAX + 49}; {LINES_MAX + 50}"
    assert "_[31mred" in caplog.messages[0]
    assert len(caplog.messages) == LINES_MAX + 1
    assert "more lines are not logged" in caplog.messages[-1]


async def test_a_line_without_end_is_cut() -> None:
    _, said = await run_tool(["sh", "-c", "head -c 100000 /dev/zero >&2"], seconds=SECONDS)
    assert len(said) <= 400


async def test_a_tool_that_takes_too_long_is_ended() -> None:
    status, _ = await run_tool(["sleep", "1000"], seconds=0.01)
    assert status == -signal.SIGTERM


async def test_a_cancelled_finish_still_reaps_the_tool() -> None:
    tool = Tool(["sleep", "1000"])
    with trio.move_on_after(0):
        await tool.finish(1000)
    assert tool.child.returncode == -signal.SIGKILL


def mountinfo(tmp_path: Path, *points: str) -> str:
    lines = [
        f"{number} 27 0:39 / {point} rw,nosuid - {kind} /dev/fuse rw"
        for number, (point, _, kind) in enumerate(text.partition("|") for text in points)
    ]
    file = tmp_path / "mountinfo"
    file.write_text("\n".join(["garbage", "", *lines]) + "\n")
    return str(file)


def test_mounts_are_ours_by_folder_name_and_kind(tmp_path: Path) -> None:
    dev = tmp_path / "a b"
    dev.mkdir()
    escaped = str(dev).replace(" ", "\\040")
    text = mountinfo(
        tmp_path,
        f"{escaped}/xvdi|fuse",
        f"{escaped}/xvdi|fuse",
        f"{escaped}/xvdj|fuse.nbdfuse",
        f"{escaped}/xvdk|ext4",
        f"{escaped}/data|fuse",
        f"{escaped}/sub/xvdl|fuse",
        "/elsewhere/xvdm|fuse",
    )
    assert mounts.mounted_frontends(dev, text) == ["xvdi", "xvdj"]


def test_only_a_placeholder_is_removed(tmp_path: Path) -> None:
    ours, users = tmp_path / "xvdi", tmp_path / "xvdj"
    make_placeholder(ours)
    users.write_bytes(b"")
    for path in (ours, users, tmp_path / "xvdk"):
        remove_placeholder(path)
    assert os.listdir(tmp_path) == ["xvdj"]
    with pytest.raises(FileExistsError):
        make_placeholder(users)


def test_every_error_of_a_group_is_logged_and_the_first_is_the_answer(
    caplog: pytest.LogCaptureFixture,
) -> None:
    answer = explain(
        ExceptionGroup("", [CallError("busy", "it is lent"), OSError(errno.EIO, "it broke")])
    )
    assert (answer.code, answer.message) == ("busy", "it is lent")
    assert "it broke" in caplog.text


async def test_a_mount_that_is_gone_when_its_fusermount3_ends_late_has_detached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    mounted = True

    async def slow(_argv: object, *, seconds: float) -> tuple[int, str]:
        nonlocal mounted
        mounted = False
        await trio.sleep(seconds / 2)
        return 0, ""

    monkeypatch.setattr(mounts, "is_mounted", lambda _path: mounted)
    monkeypatch.setattr(mounts, "run_tool", slow)
    assert mounts.FUSERMOUNT_SECONDS / 2 > mounts.BUSY_SECONDS
    assert await mounts.unmount(tmp_path / "xvdi")


async def test_a_mount_that_stays_busy_is_refused_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    async def busy(_argv: object, *, seconds: float) -> tuple[int, str]:
        return 1, "busy"

    monkeypatch.setattr(mounts, "is_mounted", lambda _path: True)
    monkeypatch.setattr(mounts, "run_tool", busy)
    began = trio.current_time()
    assert not await mounts.unmount(tmp_path / "xvdi")
    assert trio.current_time() - began < 1


async def test_what_is_just_ending_is_in_the_way_of_no_shutdown(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = ImportStart("a" * 16, "block", "sda", 2, 7, False, "sys-usb", None)
    entry = Import(params, BorrowedFile(params, Borrowed(settings.dev, "xvdi"), Host(settings)))
    table = Attachments(settings, Revision())
    table._imports[params.attachment] = entry
    monkeypatch.setattr(borrowed, "users_of", lambda _path: "cat (pid 71)")
    with pytest.raises(CallError, match=r"xvdi is in use: cat \(pid 71\)"):
        await table.check_import(params.attachment)
    entry.lifetime.end("the source's disk is gone")
    await table.check_import(params.attachment)


async def test_a_program_that_is_just_closing_a_disk_is_in_the_way_of_no_shutdown(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = ImportStart("a" * 16, "block", "sda", 2, 7, False, "sys-usb", None)
    table = Attachments(settings, Revision())
    disk = Borrowed(settings.dev, "xvdi")
    table._imports[params.attachment] = Import(params, BorrowedFile(params, disk, Host(settings)))
    seen = ["", "cat (pid 71)", "cat (pid 71)"]
    monkeypatch.setattr(borrowed, "users_of", lambda _path: seen.pop())
    monkeypatch.setattr(mounts, "BUSY_SECONDS", PATIENCE)
    await table.check_import(params.attachment)
    assert seen == []


async def test_a_detach_that_is_given_up_does_not_hide_an_end_that_comes_later(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = ImportStart("a" * 16, "block", "sda", 2, 7, False, "sys-usb", None)
    disk = Borrowed(settings.dev, "xvdi")
    entry = Import(params, BorrowedFile(params, disk, Host(settings)))

    async def for_ever(_path: Path) -> bool:
        await trio.sleep_forever()
        return True

    monkeypatch.setattr(mounts, "unmount", for_ever)
    with trio.CancelScope() as scope:
        scope.cancel()
        still_asked = trio.lowlevel.cancel_shielded_checkpoint
        await entry.borrowing.give_back(entry.lifetime, may_refuse=True, still_asked=still_asked)
    assert scope.cancelled_caught
    assert not entry.lifetime.requested
