"""A borrowed disk whose file is used, moved or stuck where the agent does not look for it."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from pedos_agent.device_classes.block import borrowed, frontend_use, mounts
from pedos_agent.device_classes.block.frontend_use import elsewhere, users_of
from pedos_agent.device_classes.block.mounts import is_mounted
from pedos_agent.system.roots import Roots
from pedos_host.mounts import Mount
from pedos_protocol.errors import CallError

from tests.failing_calls import STARVED, Failing, each_call_failing

from .conftest import ATTACHMENT, Pair, needs_fuse, pid_of
from .test_attach import opened

pytestmark = needs_fuse
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts")

# open_tree(2), which Python does not have: its number is the same on all machines.
OPEN_TREE = 428
OPEN_TREE_CLONE = 1
AT_FDCWD = -100


@contextmanager
def bound(file: Path, point: Path) -> Iterator[None]:
    """Bind-mounts a file over another one."""
    point.touch()
    subprocess.run(["mount", "--bind", file, point], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", point], check=True)


@contextmanager
def opened_by_another_mount(file: Path) -> Iterator[int]:
    """By a mount that is in no visible table, as in other users' namespaces. (A whole namespace
    would copy the mounts of all tests that run just now.)"""
    libc = ctypes.CDLL(None, use_errno=True)
    mount = libc.syscall(OPEN_TREE, AT_FDCWD, os.fsencode(file), OPEN_TREE_CLONE | os.O_CLOEXEC)
    if mount < 0:
        pytest.skip(f"no open_tree(2) here: {os.strerror(ctypes.get_errno())}")
    try:
        with opened(Path(f"/proc/self/fd/{mount}"), os.O_RDWR) as user:
            yield user
    finally:
        os.close(mount)


@needs_root
async def test_a_disk_that_is_open_by_a_mount_that_is_not_seen_is_kept(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = await pair.attach()
    monkeypatch.setattr(borrowed, "SERVES_SECONDS", 0.0)
    with opened_by_another_mount(file) as user:
        for _ in range(2):
            with pytest.raises(CallError, match="xvdi is in use") as refused:
                await pair.target.call("import.stop", attachment=ATTACHMENT, may_refuse=True)
            assert refused.value.code == "busy"
            with pytest.raises(CallError, match="xvdi is in use"):
                await pair.target.call("import.check", attachment=ATTACHMENT)
        assert not is_mounted(file)
        await trio.to_thread.run_sync(os.pwrite, user, b"kept", 0)
    assert (await pair.target.ended()).reason == "nbdfuse exited with status 0"
    assert pair.disk.read_bytes()[:4] == b"kept"


OURS = "42 27 0:39 / /vm/dev/xvdi rw{ours} - fuse /dev/fuse rw\n"
THEIRS = "64 44 0:{minor} / /vm/dev/xvdi rw{theirs} - fuse /dev/fuse rw\n"
IT_IS = "sh (pid 71) has it in another mount namespace"


def write_processes(proc: Path, tables: dict[str, tuple[str, str]]) -> None:
    """By pid the mount namespace of each process, and the table of that namespace."""
    for pid, (namespace, table) in tables.items():
        (proc / pid / "ns").mkdir(parents=True)
        (proc / pid / "ns/mnt").symlink_to(f"mnt:[{namespace}]")
        (proc / pid / "mountinfo").write_text(table)
        (proc / pid / "comm").write_text("sh\n")


@pytest.mark.parametrize(
    ("ours", "theirs", "minor", "said"),
    [
        ("", "", 39, IT_IS),
        (" shared:7", "", 39, IT_IS),
        (" shared:7", " shared:8", 39, IT_IS),
        ("", "", 40, ""),
        # It is unmounted there with ours, or both are busy.
        (" shared:7", " shared:7", 39, ""),
        (" shared:7", " shared:8 master:7", 39, ""),
    ],
)
def test_a_copy_in_another_mount_namespace_is_a_use_unless_it_goes_with_ours(
    tmp_path: Path, ours: str, theirs: str, minor: int, said: str
) -> None:
    tables = {"self": ("1", OURS.format(ours=ours)), "70": ("1", OURS.format(ours=ours))}
    tables["71"] = ("2", THEIRS.format(theirs=theirs, minor=minor))
    write_processes(tmp_path, tables)
    (tmp_path / "72").mkdir()  # has just ended
    assert elsewhere(Path("/vm/dev/xvdi"), Roots(proc=tmp_path)) == said


def a_user_elsewhere(proc: Path) -> Callable[[], str]:
    """A look that finds one."""
    ours = ("1", OURS.format(ours=""))
    tables = {"self": ours, "70": ours, "71": ("2", THEIRS.format(theirs="", minor=39))}
    write_processes(proc, tables)
    (proc / "71/fd").mkdir()
    (proc / "71/fd/3").symlink_to("/vm/dev/xvdi")
    return partial(elsewhere, Path("/vm/dev/xvdi"), Roots(proc=proc))


@pytest.mark.parametrize(
    ("namespace", "mount", "is_user"), [("1", 42, True), ("1", 43, False), ("2", 64, True)]
)
def test_who_has_the_file_open_under_another_name_is_a_user(
    tmp_path: Path, namespace: str, mount: int, is_user: bool
) -> None:
    ours = OURS.format(ours="") + "43 27 0:40 / /mnt rw - tmpfs none rw\n"
    theirs = THEIRS.format(theirs="", minor=39)
    write_processes(
        tmp_path, {"self": ("1", ours), "71": (namespace, ours if namespace == "1" else theirs)}
    )
    for folder in ("fd", "fdinfo"):
        (tmp_path / "71" / folder).mkdir()
    (tmp_path / "71/fd/3").symlink_to("/renamed/disk")
    (tmp_path / "71/fdinfo/3").write_text(f"pos:\t0\nflags:\t02\nmnt_id:\t{mount}\nino:\t1\n")
    (tmp_path / "71/fd/4").symlink_to("/closed")  # meanwhile: it has no fdinfo any more
    users = users_of(Path("/vm/dev/xvdi"), Roots(proc=tmp_path, sys=tmp_path))
    assert users == ("sh (pid 71)" if is_user else "")


@pytest.mark.parametrize("code", [*STARVED, errno.EIO])
def test_a_use_that_cannot_be_looked_for_is_never_none(tmp_path: Path, code: int) -> None:
    find_elsewhere = a_user_elsewhere(tmp_path)
    find_users = partial(users_of, Path("/vm/dev/xvdi"), Roots(proc=tmp_path, sys=tmp_path))
    for find, right in ((find_elsewhere, IT_IS), (find_users, "sh (pid 71)")):
        assert find() == right
        for failing in each_call_failing(find, [code]):
            with failing, contextlib.suppress(OSError):
                assert "(pid 71)" in find(), str(failing)


@pytest.mark.parametrize("code", [errno.EACCES, errno.EPERM, errno.ESRCH, errno.EINVAL])
def test_a_process_that_has_ended_or_is_another_users_keeps_no_disk(
    tmp_path: Path, code: int
) -> None:
    find = a_user_elsewhere(tmp_path)
    with Failing(None, code, always="71/mountinfo") as failing:
        assert find() == ""
    assert failing.failed


@pytest.mark.parametrize("code", STARVED)
async def test_a_disk_is_kept_when_its_agent_lacks_what_it_takes_to_see_who_uses_it(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    file = await pair.attach()
    real = frontend_use.mounted

    def mounted(table: Path) -> Iterator[Mount]:
        if table.parent.name != "self":
            raise OSError(code, os.strerror(code))
        return real(table)

    monkeypatch.setattr(frontend_use, "mounted", mounted)
    monkeypatch.setattr(frontend_use, "link_target", lambda path: f"a namespace of {path}")
    asked: dict[str, Any] = {"import.check": {}, "import.stop": {"may_refuse": True}}
    for method, more in asked.items():
        with pytest.raises(CallError, match="whether xvdi is in use cannot be told: ") as refused:
            await pair.target.call(method, attachment=ATTACHMENT, **more)
        assert refused.value.code == "busy"
    assert is_mounted(file)


@needs_root
async def test_a_disk_that_is_mounted_at_another_place_too_is_kept(
    pair: Pair, tmp_path: Path
) -> None:
    file = await pair.attach()
    other = tmp_path / "other"
    with bound(file, other), pytest.raises(CallError) as refused:
        await pair.target.call("import.stop", attachment=ATTACHMENT, may_refuse=True)
    # A long place is cut.
    said = re.fullmatch("xvdi is in use: it is mounted at (.+?)(?:[.]{3})? too", str(refused.value))
    assert said and str(other).startswith(said[1])
    await pair.target.call("import.stop", attachment=ATTACHMENT, may_refuse=True)


async def test_a_disk_is_kept_and_given_back_though_its_folder_was_renamed(
    pair: Pair, tmp_path: Path
) -> None:
    file = await pair.attach()
    (tmp_path / "moved").mkdir()
    moved = file.parent.rename(tmp_path / "moved/dev")
    with opened(moved / "xvdi", os.O_RDWR) as user:
        asked: dict[str, Any] = {"import.check": {}, "import.stop": {"may_refuse": True}}
        for method, more in asked.items():
            with pytest.raises(CallError, match=r"xvdi is in use: .* has it open"):
                await pair.target.call(method, attachment=ATTACHMENT, **more)
        await trio.to_thread.run_sync(os.pwrite, user, b"kept", 0)
    await pair.target.call("import.stop", attachment=ATTACHMENT, may_refuse=True)
    assert os.listdir(moved) == []
    assert pair.disk.read_bytes()[:4] == b"kept"
    file.parent.mkdir()


async def test_a_stuck_source_does_not_make_a_disk_look_used(pair: Pair) -> None:
    await pair.attach()
    kit = pid_of("nbdkit")
    os.kill(kit, signal.SIGSTOP)
    try:
        await pair.target.call("import.stop", attachment=ATTACHMENT, may_refuse=True)
    finally:
        os.kill(kit, signal.SIGCONT)
    assert os.listdir(pair.target.settings.dev) == []


async def test_a_placeholder_that_cannot_be_removed_costs_its_name_until_it_can(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    file = await pair.attach()

    def refuse(path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(mounts, "remove_placeholder", refuse)
        await pair.detach()
        await mounts.clean_leftovers(file.parent)  # as a new agent does
        assert "xvdi cannot be removed: Permission denied" in caplog.text
        assert (await pair.attach()).name == "xvdj"
        await pair.detach()
    assert (await pair.attach()).name == "xvdi"
    mounts.clear_placeholder(file.with_name("xvdj"))
