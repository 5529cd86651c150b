"""The loader: with one error in one file, the previous policy stays in force."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
import trio
from pedos_dom0.policy import files as files_module
from pedos_dom0.policy import following
from pedos_dom0.policy import loader as loader_module
from pedos_dom0.policy import reading as reading_module
from pedos_dom0.policy.evaluate import Request, evaluate
from pedos_dom0.policy.loader import PolicyLoader, read_policy
from pedos_dom0.policy.system import System, VmFacts

from tests.patience import PATIENCE

ALLOW = "device.attach.block * dom0 work allow\n"
DENY = "device.attach.block * dom0 work deny\n"
SYSTEM = System({"work": VmFacts("work")})
REQUEST = Request("device.attach.block", "+sys-usb:sda:", "dom0", "work")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "policy.d"
    folder.mkdir()
    return folder


def verdict(loader: PolicyLoader) -> str:
    return evaluate(REQUEST, loader.snapshot, SYSTEM).verdict


def problems(loader: PolicyLoader) -> list[str]:
    return [f"{e.file}:{e.line}:{e.column}: {e.message}" for e in loader.status().errors]


def decided_by(loader: PolicyLoader) -> str | None:
    rule = evaluate(REQUEST, loader.snapshot, SYSTEM).rule
    return None if rule is None else rule.where


def test_before_anything_is_read_all_is_denied(folder: Path) -> None:
    (folder / "30-user.policy").write_text(ALLOW)
    loader = PolicyLoader([folder])
    assert verdict(loader) == "deny"
    assert not loader.status().ok
    assert loader.reload()
    assert verdict(loader) == "allow"


def test_an_empty_folder_is_a_policy_that_denies_all(folder: Path) -> None:
    loader = PolicyLoader([folder])
    assert loader.reload()
    status = loader.status()
    assert (status.ok, status.rules, tuple(status.errors)) == (True, 0, ())
    assert status.loaded_at != ""
    assert verdict(loader) == "deny"


def test_files_are_read_in_the_order_of_their_names(folder: Path) -> None:
    (folder / "9-late.policy").write_text(ALLOW)
    (folder / "10-early.policy").write_text(DENY)
    (folder / "_later.policy").write_text(ALLOW)
    (folder / "a-latest.policy").write_text(ALLOW)
    loader = PolicyLoader([folder])
    assert loader.reload()
    names = [rule.file for rule in loader.snapshot.rules]
    assert names == ["10-early.policy", "9-late.policy", "_later.policy", "a-latest.policy"]


def test_with_the_same_name_the_earlier_folder_wins_and_order_is_by_name_alone(
    tmp_path: Path,
) -> None:
    run, etc = tmp_path / "run", tmp_path / "etc"
    run.mkdir()
    etc.mkdir()
    (etc / "30-user.policy").write_text("this one is broken, but not in force\n")
    (run / "30-user.policy").write_text(ALLOW)
    (etc / "20-site.policy").write_text("# nothing\n")
    (run / "40-more.policy").write_text(DENY)
    loader = PolicyLoader([run, etc])
    assert loader.reload(), problems(loader)
    assert decided_by(loader) == "30-user.policy:1"
    (etc / "20-site.policy").write_text(DENY)
    assert loader.reload()
    assert decided_by(loader) == "20-site.policy:1"


@pytest.mark.parametrize(
    "name", [".30-user.policy", ".#30-user.policy", "30-user.policy~", "30-user.policy.swp", "x"]
)
def test_what_editors_and_packaging_leave_about_is_not_looked_at(folder: Path, name: str) -> None:
    (folder / name).write_text("nonsense\n")
    loader = PolicyLoader([folder])
    assert loader.reload()
    assert len(loader.snapshot) == 0


@pytest.mark.parametrize(
    "name", ["30-User.policy", "30 user.policy", "30-üser.policy", "a\nb.policy", "\udcff.policy"]
)
def test_a_policy_file_that_nobody_would_read_is_an_error(folder: Path, name: str) -> None:
    (folder / name).write_text(DENY)
    (folder / "90-default.policy").write_text(ALLOW)
    loader = PolicyLoader([folder])
    assert not loader.reload()
    assert verdict(loader) == "deny"
    (problem,) = problems(loader)
    assert problem.endswith(":0:0: a policy file's name has only 0-9 a-z _ . -")
    assert problem.isprintable()


def test_a_broken_edit_leaves_the_last_good_policy_in_force(folder: Path) -> None:
    (folder / "30-user.policy").write_text(ALLOW)
    loader = PolicyLoader([folder])
    loader.reload()
    since = loader.status().loaded_at

    (folder / "30-user.policy").write_text(DENY + "device.attach.block * dom0\n")
    assert not loader.reload()
    assert verdict(loader) == "allow"
    status = loader.status()
    assert (status.ok, status.rules, status.loaded_at) == (False, 1, since)
    assert problems(loader) == ["30-user.policy:2:27: TARGET, ACTION missing"]

    (folder / "30-user.policy").write_text(DENY)
    assert loader.reload()
    assert verdict(loader) == "deny"
    assert loader.status().ok


def test_all_errors_of_all_files_are_told_at_once(folder: Path) -> None:
    (folder / "10-a.policy").write_text("x\n\ny\n")
    (folder / "20-b.policy").write_text(ALLOW + "!include x\n")
    (folder / "30-C.policy").write_text("")
    (folder / "40-d.policy").symlink_to("40-d.policy")
    loader = PolicyLoader([folder, folder.parent / "missing"])
    assert not loader.reload()
    assert [problem.split(": ")[0] for problem in problems(loader)] == [
        "'30-C.policy':0:0",
        f"{folder.parent / 'missing'}:0:0",
        "10-a.policy:1:2",
        "10-a.policy:3:2",
        "20-b.policy:2:1",
        "40-d.policy:0:0",
    ]


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_folder(path: Path) -> None:
    path.mkdir()


def make_loop(path: Path) -> None:
    path.symlink_to(path.name)


def make_dangling(path: Path) -> None:
    path.symlink_to("nothing")


def make_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def make_huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


def make_binary(path: Path) -> None:
    path.write_bytes(bytes(range(256)) * 64)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (make_fifo, "is not a regular file"),
        (make_folder, "is not a regular file"),
        (make_device, "is not a regular file"),
        (make_loop, "cannot be read: its symbolic links lead in a circle"),
        (make_dangling, "cannot be read: No such file or directory"),
        (make_huge, "file of more than 4194304 bytes; is this a policy?"),
        (make_binary, "a NUL character; this is not a text file"),
    ],
)
def test_what_is_no_readable_file_is_an_error_and_nothing_hangs(
    folder: Path, make: object, why: str
) -> None:
    (folder / "30-user.policy").write_text(ALLOW)
    loader = PolicyLoader([folder])
    assert loader.reload()
    assert callable(make)
    make(folder / "20-odd.policy")
    assert not loader.reload()
    assert problems(loader)[0].endswith(why)
    assert verdict(loader) == "allow"


def test_an_unreadable_file_is_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through a refused open: the tests may run as root, for whom no mode is closed."""
    (folder / "30-user.policy").write_text(ALLOW)
    real = os.open

    def refuse(path: Path, flags: int) -> int:
        if Path(path).suffix == ".policy":
            raise PermissionError(13, "Permission denied")
        return real(path, flags)

    monkeypatch.setattr(files_module.os, "open", refuse)
    loader = PolicyLoader([folder])
    assert not loader.reload()
    assert problems(loader) == ["30-user.policy:0:0: cannot be read: Permission denied"]


def test_a_missing_folder_denies_all_at_the_start_and_nothing_later(folder: Path) -> None:
    folder.rmdir()
    loader = PolicyLoader([folder])
    assert not loader.reload()
    assert verdict(loader) == "deny"
    gone = f"{folder}:0:0: the folder cannot be read: No such file or directory"
    assert problems(loader) == [gone]
    assert loader.status().loaded_at == ""

    folder.mkdir()
    (folder / "30-user.policy").write_text(ALLOW)
    assert loader.reload()
    (folder / "30-user.policy").unlink()
    folder.rmdir()
    assert not loader.reload()
    assert verdict(loader) == "allow"
    assert problems(loader) == [gone]


def test_no_folder_at_all_is_an_error() -> None:
    loader = PolicyLoader([])
    assert not loader.reload()
    assert problems(loader) == [":0:0: no policy folder was given"]


def test_a_file_that_changes_while_it_is_read_is_read_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the file may be a policy too, and another one."""
    (folder / "30-user.policy").write_text(ALLOW)
    real, passes = reading_module._Pass.read_all, []

    def interrupted(self: reading_module._Pass) -> None:
        passes.append(1)
        real(self)
        if len(passes) == 1:
            (folder / "20-site.policy").write_text(DENY)

    monkeypatch.setattr(reading_module._Pass, "read_all", interrupted)
    loaded = read_policy([folder])
    assert len(passes) == 2
    assert [rule.where for rule in loaded.rules] == ["20-site.policy:1", "30-user.policy:1"]


def test_a_file_that_never_stops_changing_is_an_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "30-user.policy").write_text(ALLOW)
    real = reading_module._Pass.read_all

    def interrupted(self: reading_module._Pass) -> None:
        real(self)
        with (folder / "30-user.policy").open("a") as file:
            file.write(ALLOW)

    monkeypatch.setattr(reading_module._Pass, "read_all", interrupted)
    (error,) = read_policy([folder]).errors
    assert error.message == "the files kept changing while they were read"


def test_more_rules_than_the_bound_in_all_files_are_an_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading_module, "RULES_MAX", 3)
    (folder / "10-a.policy").write_text(ALLOW * 2)
    (folder / "20-b.policy").write_text(ALLOW)
    loader = PolicyLoader([folder])
    assert loader.reload()
    (folder / "20-b.policy").write_text(ALLOW * 2)
    assert not loader.reload()
    assert problems(loader) == ["20-b.policy:0:0: more than 3 rules in all files"]


def test_more_files_than_the_bound_are_an_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files_module, "FILES_MAX", 3)
    for name in "abcd":
        (folder / f"{name}.policy").write_text("")
    loader = PolicyLoader([folder])
    assert not loader.reload()
    assert problems(loader) == [f"{folder}:0:0: more than 3 policy files in one folder"]


def test_a_status_stays_small_and_says_how_many_errors_it_left_off(folder: Path) -> None:
    (folder / "30-user.policy").write_text("x\n" * 100)
    loader = PolicyLoader([folder])
    loader.reload()
    assert len(loader.errors) == 100
    assert len(problems(loader)) == loader_module.ERRORS_MAX
    assert loader.status().errors_left_out == 36


def test_each_error_is_logged_once_with_place_reason_and_what_stays(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    (folder / "30-user.policy").write_text("x\n")
    loader = PolicyLoader([folder])
    loader.reload()
    loader.reload()
    why = "ARGUMENT, SOURCE, TARGET, ACTION missing"
    assert caplog.messages == [
        f"policy: 30-user.policy:1:2: {why} (there is no earlier policy: everything is denied)"
    ]
    caplog.clear()

    (folder / "30-user.policy").write_text(ALLOW)
    loader.reload()
    loader.reload()
    assert caplog.messages == ["policy: 1 rules of 1 files are in force"]
    caplog.clear()

    since = loader.status().loaded_at
    (folder / "30-user.policy").write_text("x\n")
    loader.reload()
    (folder / "30-user.policy").write_text("x\ny\n")
    loader.reload()
    stays = f"(the policy of {since} stays in force)"
    assert caplog.messages == [
        f"policy: 30-user.policy:1:2: {why} {stays}",
        f"policy: 30-user.policy:2:2: {why} {stays}",
    ]


async def until(reads: trio.MemoryReceiveChannel[bool]) -> bool:
    """The result of the next reading of the files."""
    with trio.fail_after(PATIENCE):
        return await reads.receive()


@pytest.fixture
def reads(
    monkeypatch: pytest.MonkeyPatch,
) -> trio.MemoryReceiveChannel[bool]:
    """The result of each reading, as it happens."""
    send, receive = trio.open_memory_channel[bool](100)
    real = PolicyLoader._take

    def take(self: PolicyLoader, loaded: loader_module.Loaded) -> bool:
        result = real(self, loaded)
        send.send_nowait(result)
        return result

    monkeypatch.setattr(PolicyLoader, "_take", take)
    monkeypatch.setattr(following, "SETTLE", 0)
    return receive


async def test_a_running_loader_follows_the_files(
    folder: Path, nursery: trio.Nursery, reads: trio.MemoryReceiveChannel[bool]
) -> None:
    (folder / "30-user.policy").write_text(ALLOW)
    loader = PolicyLoader([folder])
    await nursery.start(loader.run)
    assert await until(reads)
    assert verdict(loader) == "allow"

    temporary = folder / ".30-user.policy.new"
    temporary.write_text(DENY)
    temporary.rename(folder / "30-user.policy")
    while verdict(loader) != "deny":
        await until(reads)

    (folder / "30-user.policy").write_text("nonsense\n")
    while await until(reads):
        pass
    assert verdict(loader) == "deny"
    (folder / "30-user.policy").write_text(ALLOW)
    while verdict(loader) != "allow":
        await until(reads)
    assert loader.status().ok


async def test_a_running_loader_outlives_its_folder_and_sees_it_come_back(
    folder: Path, nursery: trio.Nursery, reads: trio.MemoryReceiveChannel[bool]
) -> None:
    (folder / "30-user.policy").write_text(ALLOW)
    loader = PolicyLoader([folder])
    await nursery.start(loader.run)
    assert await until(reads)

    folder.rename(folder.with_name("away"))
    while await until(reads):
        pass
    assert verdict(loader) == "allow"

    folder.mkdir()
    (folder / "30-user.policy").write_text(DENY)
    while verdict(loader) != "deny":
        await until(reads)
    assert loader.status().ok


async def test_a_loader_with_no_folder_starts_and_denies(
    folder: Path, nursery: trio.Nursery, reads: trio.MemoryReceiveChannel[bool]
) -> None:
    folder.rmdir()
    loader = PolicyLoader([folder])
    await nursery.start(loader.run)
    assert not await until(reads)
    assert verdict(loader) == "deny"
    folder.mkdir()
    (folder / "30-user.policy").write_text(ALLOW)
    while verdict(loader) != "allow":
        await until(reads)


class Unwatchable:
    """In place of FolderWatch, when the folder's permissions or the kernel's limits forbid it."""

    def __init__(self, paths: list[Path]) -> None:
        raise PermissionError(13, "Permission denied")


async def test_a_folder_that_cannot_be_watched_is_read_now_and_then(
    folder: Path,
    nursery: trio.Nursery,
    reads: trio.MemoryReceiveChannel[bool],
    autojump_clock: object,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(following, "FolderWatch", Unwatchable)
    (folder / "30-user.policy").write_text(ALLOW)
    loader = PolicyLoader([folder])
    await nursery.start(loader.run)
    assert await reads.receive()
    assert verdict(loader) == "allow"
    # In one step: a thread may be reading.
    (folder / "new").write_text(DENY)
    (folder / "new").rename(folder / "30-user.policy")
    assert await reads.receive()
    assert await reads.receive()
    assert verdict(loader) == "deny"
    assert caplog.messages == ["policy: the folders cannot be watched: Permission denied"]


class Unnoticed:
    """In place of FolderWatch: changes that no watch sees."""

    def __init__(self, paths: list[Path]) -> None:
        pass

    def __enter__(self) -> Unnoticed:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    async def changed(self) -> None:
        await trio.sleep_forever()


async def test_a_broken_policy_is_looked_at_again_without_a_wake_up(
    folder: Path,
    nursery: trio.Nursery,
    reads: trio.MemoryReceiveChannel[bool],
    autojump_clock: object,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(following, "FolderWatch", Unnoticed)
    (folder / "30-user.policy").symlink_to("../elsewhere")
    loader = PolicyLoader([folder])
    await nursery.start(loader.run)
    assert not await reads.receive()
    (folder.parent / "elsewhere").write_text(ALLOW)
    while verdict(loader) != "allow":
        await reads.receive()
    assert loader.status().ok
