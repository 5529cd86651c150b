"""replace and remove: a write is complete or has no effect, and no other change is lost."""

from __future__ import annotations

import fcntl
import io
import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pedos_cli import policy_files, policy_live
from pedos_cli.policy_files import digest
from pedos_cli.qvm_policy import main
from pedos_host.folder_lock import hold_folder, make_private

if TYPE_CHECKING:
    from conftest import FakeService

Captured = pytest.CaptureFixture[str]

OLD = b"# old\napp.Open  *  work  vault  allow\n"
NEW = b"# new\napp.Open  *  work  vault  deny\n"
BROKEN = b"app.Open * work vault\n"
NAME = "30-user.policy"

STATUS = {"ok": True, "loaded_at": "2025-01-02T03:04:05+00:00", "rules": 1, "errors": []}


@pytest.fixture
def folder(tmp_path: Path, no_service: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    made = tmp_path / "policy.d"
    made.mkdir()
    (made / NAME).write_bytes(OLD)
    monkeypatch.setenv("PEDOS_POLICY_PATH", f"{tmp_path / 'run'}:{made}")
    return made


@pytest.fixture
def fresh(tmp_path: Path) -> str:
    path = tmp_path / "fresh"
    path.write_bytes(NEW)
    return str(path)


def others(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {NAME, policy_files.LOCK}


def test_replace_with_the_right_hash_writes(folder: Path, fresh: str, capsys: Captured) -> None:
    assert main(["replace", NAME, digest(OLD), fresh]) == 0
    assert (folder / NAME).read_bytes() == NEW
    assert capsys.readouterr().out == (
        f"{NAME} written\n  no service is running: it is read when one starts\n"
    )
    assert others(folder) == set()


def test_replace_reads_standard_input(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(NEW)))
    assert main(["-q", "replace", NAME, "any"]) == 0
    assert (folder / NAME).read_bytes() == NEW


@pytest.mark.parametrize(
    ("name", "expected", "said"),
    [
        (NAME, digest(NEW), "changed meanwhile by another program"),
        (NAME, "new", "is there already"),
        ("31-new.policy", digest(OLD), "taken away meanwhile"),
    ],
)
def test_a_lost_update_is_refused(
    folder: Path, fresh: str, capsys: Captured, name: str, expected: str, said: str
) -> None:
    assert main(["replace", name, expected, fresh]) == 6
    assert said in capsys.readouterr().err
    assert (folder / NAME).read_bytes() == OLD
    assert others(folder) == set()


def test_new_makes_a_file_and_any_takes_what_is_there(folder: Path, fresh: str) -> None:
    assert main(["-q", "replace", "31-new.policy", "new", fresh]) == 0
    assert main(["-q", "replace", NAME, "any", fresh]) == 0
    assert (folder / "31-new.policy").read_bytes() == NEW == (folder / NAME).read_bytes()
    assert others(folder) == {"31-new.policy"}


def test_remove_needs_to_know_what_it_removes(folder: Path, capsys: Captured) -> None:
    assert main(["remove", NAME, digest(NEW)]) == 6
    assert (folder / NAME).read_bytes() == OLD
    assert main(["-q", "remove", NAME, digest(OLD)]) == 0
    assert not (folder / NAME).exists()
    assert main(["remove", NAME, "any"]) == 4
    assert main(["remove", NAME, "new"]) == 2


@pytest.mark.parametrize(
    "argv",
    [
        ["replace", "Foo.policy", "any"],
        ["replace", ".x.policy", "any"],
        ["replace", "../x.policy", "any"],
        ["replace", "30-user", "any"],
        ["replace", NAME, "sha256:12"],
        ["replace", NAME, "latest"],
    ],
)
def test_a_wrong_name_or_hash_is_a_usage_error(
    folder: Path, capsys: Captured, argv: list[str]
) -> None:
    assert main(argv) == 2
    assert "qvm-policy: usage: " in capsys.readouterr().err


def test_a_broken_result_is_not_written_and_every_error_is_told(
    folder: Path, tmp_path: Path, capsys: Captured
) -> None:
    (tmp_path / "bad").write_bytes(BROKEN * 2)
    assert main(["replace", NAME, "any", str(tmp_path / "bad")]) == 1
    error = capsys.readouterr().err
    assert f"{NAME}:1:" in error
    assert f"{NAME}:2:" in error
    assert "nothing was changed" in error
    assert (folder / NAME).read_bytes() == OLD
    assert main(["replace", NAME, "any", str(tmp_path / "bad"), "--json"]) == 1
    answer = json.loads(capsys.readouterr().out)
    assert [answer["changed"], len(answer["errors"])] == [False, 2]


def test_an_error_of_another_file_stops_a_change_that_does_not_mend_it(
    folder: Path, fresh: str, capsys: Captured
) -> None:
    (folder / "50-b.policy").write_bytes(BROKEN)
    assert main(["replace", NAME, "any", fresh]) == 1
    assert "qvm-policy edit 50-b.policy" in capsys.readouterr().err
    assert (folder / NAME).read_bytes() == OLD


def test_a_policy_with_two_broken_files_is_mended_one_by_one(
    folder: Path, fresh: str, capsys: Captured
) -> None:
    for name in ("50-b.policy", "51-c.policy"):
        (folder / name).write_bytes(BROKEN)
    assert main(["replace", "50-b.policy", "any", fresh]) == 0
    assert "still has these errors" in capsys.readouterr().err
    assert main(["remove", "51-c.policy", "any"]) == 0
    assert "still" not in capsys.readouterr().err
    assert main(["check"]) == 0


def test_a_file_that_others_include_can_be_replaced(
    folder: Path, fresh: str, tmp_path: Path, capsys: Captured
) -> None:
    (folder / "include").mkdir()
    (folder / "include" / "common").write_bytes(OLD)
    (folder / NAME).write_bytes(b"!include include/common\n")
    assert main(["replace", "include/common", digest(OLD), fresh]) == 0
    assert "warning" not in capsys.readouterr().err
    assert (folder / "include" / "common").read_bytes() == NEW
    (tmp_path / "bad").write_bytes(BROKEN)
    assert main(["-q", "replace", "include/common", "any", str(tmp_path / "bad")]) == 1
    assert main(["-q", "remove", "include/common", "any"]) == 1
    assert (folder / "include" / "common").read_bytes() == NEW


def test_mode_and_owner_stay(folder: Path, fresh: str) -> None:
    path = folder / NAME
    path.chmod(0o640)
    if os.getuid() == 0:
        os.chown(path, 12345, 54321)
    before = path.stat()
    assert main(["-q", "replace", NAME, "any", fresh]) == 0
    after = path.stat()
    assert (after.st_uid, after.st_gid) == (before.st_uid, before.st_gid)
    assert stat.S_IMODE(after.st_mode) == 0o640


@pytest.mark.skipif(os.geteuid() != 0, reason="is about root")
@pytest.mark.parametrize("left", [False, True], ids=["first", "after one of before"])
def test_what_root_makes_in_a_users_folder_is_that_users(
    folder: Path, fresh: str, left: bool
) -> None:
    if left:
        (folder / policy_files.LOCK).mkdir(0o700)
    os.chown(folder, 12345, 54321)
    assert main(["-q", "replace", "50-new.policy", "new", fresh]) == 0
    made = [folder / policy_files.LOCK, folder / "50-new.policy"]
    assert {(each.stat().st_uid, each.stat().st_gid) for each in made} == {(12345, 54321)}


@pytest.mark.skipif(os.geteuid() != 0, reason="is about root")
@pytest.mark.parametrize("expected", ["new", "any"])
@pytest.mark.parametrize("at", ["made", "written", "synced"])
def test_what_root_makes_in_its_own_folder_is_not_left_to_the_owner_of_another(
    folder: Path, fresh: str, monkeypatch: pytest.MonkeyPatch, at: str, expected: str
) -> None:
    users, roots = folder.with_name("users"), folder.with_name("roots")
    users.mkdir()
    os.chown(users, 12345, 54321)
    if expected == "new":
        (folder / NAME).unlink()

    def step(name: str) -> None:
        if name == at:  # another folder gets its name
            folder.rename(roots)
            users.rename(folder)

    monkeypatch.setattr(policy_files, "step", step)
    assert main(["-q", "replace", NAME, expected, fresh]) == 0
    assert {path.stat().st_uid for path in roots.iterdir()} == {0}
    assert (roots / NAME).read_bytes() == NEW
    assert list(folder.iterdir()) == []


def test_a_symbolic_link_stays_one(folder: Path, fresh: str, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    real = tmp_path / "elsewhere" / "rules"
    real.write_bytes(OLD)
    (folder / NAME).unlink()
    (folder / NAME).symlink_to(real)
    assert main(["-q", "replace", NAME, digest(OLD), fresh]) == 0
    assert (folder / NAME).is_symlink()
    assert real.read_bytes() == NEW
    assert [path.name for path in real.parent.iterdir()] == ["rules"]


def test_a_fifo_is_refused_without_waiting(folder: Path, fresh: str, capsys: Captured) -> None:
    (folder / NAME).unlink()
    os.mkfifo(folder / NAME)
    assert main(["replace", NAME, "any", fresh]) == 1
    assert "is not a regular file" in capsys.readouterr().err


def test_without_the_folder_it_says_how_to_make_it(
    tmp_path: Path, no_service: Path, fresh: str, capsys: Captured
) -> None:
    there = str(tmp_path / "none")
    assert main(["replace", NAME, "new", fresh, "--policy-dir", there]) == 1
    assert f"mkdir -p {there}" in capsys.readouterr().err


def test_two_writers_do_not_write_at_once(
    folder: Path, fresh: str, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policy_files, "LOCK_PATIENCE_S", 0.0)
    make_private(folder / policy_files.LOCK)
    with hold_folder(folder / policy_files.LOCK):
        for path in folder.iterdir():  # whatever happens to the files, the lock stays
            if path.is_file() and path.name != NAME:
                path.unlink()
        assert main(["replace", NAME, "any", fresh]) == 6
    assert "another qvm-policy is writing" in capsys.readouterr().err
    assert main(["-q", "replace", NAME, "any", fresh]) == 0


def test_who_may_only_read_the_policy_cannot_keep_others_from_writing(
    folder: Path, fresh: str, capsys: Captured
) -> None:
    folder.chmod(0o755)
    stranger = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(stranger, fcntl.LOCK_SH)
        assert main(["-q", "replace", NAME, "any", fresh]) == 0
    finally:
        os.close(stranger)
    lock = folder / policy_files.LOCK
    assert stat.S_IMODE(lock.stat().st_mode) == 0o700
    lock.chmod(0o755)
    assert main(["replace", NAME, "any", fresh]) == 1
    assert f"chmod 700 {lock}" in capsys.readouterr().err


@pytest.mark.parametrize("expected", ["new", digest(OLD)])
def test_who_writes_without_the_lock_at_the_last_moment_wins(
    folder: Path, fresh: str, monkeypatch: pytest.MonkeyPatch, expected: str
) -> None:
    if expected == "new":
        (folder / NAME).unlink()

    def step(name: str) -> None:
        if name == "synced":
            (folder / NAME).write_bytes(b"# theirs\n")

    monkeypatch.setattr(policy_files, "step", step)
    assert main(["replace", NAME, expected, fresh]) == 6
    assert (folder / NAME).read_bytes() == b"# theirs\n"
    assert others(folder) == set()


def test_the_temporary_file_is_one_that_no_loader_reads(
    folder: Path, fresh: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[set[str]] = []
    monkeypatch.setattr(policy_files, "step", lambda _name: seen.append(others(folder)))
    assert main(["-q", "replace", NAME, "any", fresh]) == 0
    names = set().union(*seen)
    assert len(names) == 1
    assert all(name.startswith(".") and not name.endswith(".policy") for name in names)


def test_a_full_disk_leaves_the_old_file(
    folder: Path, fresh: str, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_fd: int, _data: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(policy_files.os, "write", full)
    status = main(["replace", NAME, "any", fresh])
    monkeypatch.undo()
    assert status == 1
    assert "No space left" in capsys.readouterr().err
    assert (folder / NAME).read_bytes() == OLD
    assert others(folder) == set()


STEPS = [
    "locked", "checked", "made", "written", "synced", "compared", "renamed", "folder synced",
    "done",
]  # fmt: skip

KILLED_AT = """
import os, signal, sys
from pedos_cli import policy_files, qvm_policy
def step(name):
    if name == sys.argv[1]:
        os.kill(os.getpid(), signal.SIGKILL)
policy_files.step = step
sys.exit(qvm_policy.main(sys.argv[2:]))
"""


def killed(at: str, *argv: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED_AT, at, *argv], capture_output=True, timeout=20, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.mark.parametrize("at", STEPS)
def test_killed_at_any_step_the_file_is_the_old_or_the_new(
    folder: Path, fresh: str, at: str
) -> None:
    killed(at, "replace", NAME, "any", fresh)
    late = STEPS.index(at) >= STEPS.index("renamed")
    assert (folder / NAME).read_bytes() == (NEW if late else OLD)
    assert main(["-q", "check"]) == 0  # the loader ignores what was left behind
    assert main(["-q", "replace", NAME, "any", fresh]) == 0  # so does the next writer
    assert others(folder) == set()


@pytest.mark.parametrize("at", ["made", "synced", "compared"])
def test_killed_while_it_makes_a_file_there_is_none(folder: Path, fresh: str, at: str) -> None:
    killed(at, "replace", "31-new.policy", "new", fresh)
    assert not (folder / "31-new.policy").exists()
    assert main(["-q", "check"]) == 0


@pytest.mark.parametrize("at", ["checked", "unlinked"])
def test_killed_while_it_removes_the_file_is_there_or_not(folder: Path, at: str) -> None:
    killed(at, "remove", NAME, "any")
    assert (folder / NAME).exists() == (at == "checked")


# The running service's view of it


def serve(service: FakeService, *answers: dict[str, Any]) -> None:
    left = [{**STATUS, **answer} for answer in answers]

    def reply(_params: dict[str, Any]) -> dict[str, Any]:
        return {"policy": left.pop(0) if len(left) > 1 else left[0]}

    service.replies["service.status"] = reply


@pytest.fixture
def served(tmp_path: Path, service: FakeService, monkeypatch: pytest.MonkeyPatch) -> Path:
    made = tmp_path / "policy.d"
    made.mkdir()
    (made / NAME).write_bytes(OLD)
    monkeypatch.setenv("PEDOS_POLICY_PATH", str(made))
    monkeypatch.setattr(policy_live, "PAUSE_S", 0.0)
    return made


def test_it_says_when_the_service_took_the_change(
    served: Path, service: FakeService, fresh: str, capsys: Captured
) -> None:
    later = "2025-01-02T03:05:00+00:00"
    serve(service, {"folders": [str(served)]}, {}, {"loaded_at": later})
    assert main(["replace", NAME, "any", fresh]) == 0
    assert capsys.readouterr().out == (
        f"{NAME} written\n  the running service took it: in force since {later}\n"
    )


def test_it_warns_when_the_service_did_not(
    served: Path, service: FakeService, fresh: str, capsys: Captured
) -> None:
    error = {"file": "50-b.policy", "line": 3, "column": 1, "message": "no action x"}
    serve(service, {}, {"ok": False, "errors": [error]})
    assert main(["replace", NAME, "any", fresh]) == 0
    assert "did not take it: 50-b.policy:3 has an error" in capsys.readouterr().err


def test_it_says_when_the_service_reads_other_folders(
    served: Path, service: FakeService, fresh: str, capsys: Captured
) -> None:
    serve(service, {"folders": ["/elsewhere"]})
    assert main(["replace", NAME, "any", fresh, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["service"] == {
        "taken": None,
        "why": "the running service reads other policy folders",
    }
    assert answer["sha256"] == digest(NEW)


def test_it_does_not_wait_for_ever(
    served: Path,
    service: FakeService,
    fresh: str,
    capsys: Captured,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(policy_live, "PATIENCE_S", 0.0)
    assert main(["replace", NAME, "any", fresh]) == 0
    assert "the service saw no change: its policy is that of 2025-01-02" in capsys.readouterr().out


def test_it_warns_of_a_file_that_hides_the_one_that_is_written(
    folder: Path, tmp_path: Path, fresh: str, capsys: Captured
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / NAME).write_bytes(OLD)
    assert main(["replace", NAME, "any", fresh]) == 0
    assert "has the same name and counts instead" in capsys.readouterr().err


def test_nothing_from_standard_input_does_not_empty_a_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    assert main(["replace", NAME, "any"]) == 1
    assert (folder / NAME).read_bytes() == OLD
    assert f"nothing came from standard input: {NAME} is left as it is" in capsys.readouterr().err
    assert main(["replace", NAME, "any", "/dev/null"]) == 0
    assert (folder / NAME).read_bytes() == b""


def test_new_content_may_come_from_a_pipe(folder: Path) -> None:
    reader, writer = os.pipe()
    os.write(writer, NEW)
    os.close(writer)
    assert main(["replace", NAME, "any", f"/dev/fd/{reader}"]) == 0
    os.close(reader)
    assert (folder / NAME).read_bytes() == NEW


def test_the_folder_of_an_included_file_has_to_be_there(
    folder: Path, fresh: str, capsys: Captured
) -> None:
    assert main(["replace", "include/common", "new", fresh]) == 1
    said = capsys.readouterr().err
    assert f"there is no folder {folder}/include\n  try:  mkdir -p {folder}/include\n" in said


def test_what_cannot_be_read_can_be_removed(folder: Path) -> None:
    (folder / "40.policy").write_bytes(b"#" * (policy_files.FILE_MAX + 1))
    (folder / "41.policy").symlink_to("nowhere")
    os.mkfifo(folder / "42.policy")
    for name in ("40.policy", "41.policy"):
        # Each takes its errors away and leaves those of the others.
        assert main(["remove", name, "any"]) == 0
    assert main(["remove", "42.policy", "any"]) == 0
    assert others(folder) == set()


@pytest.mark.parametrize(
    ("argv", "hint"),
    [
        (["edit", "/etc/pedos/policy.d/30-user.policy"], "the name 30-user.policy"),
        (["edit", "30-User.policy"], "the name 30-user.policy"),
        (["edit", "30-user"], "the name 30-user.policy"),
        (["edit", "a b"], "qvm-policy edit --help"),
        (["remove", NAME, "0" * 64], "sha256:" + "0" * 64),
    ],
)
def test_what_was_meant_is_guessed(
    folder: Path, argv: list[str], hint: str, capsys: Captured
) -> None:
    assert main(argv) == 2
    assert capsys.readouterr().err.endswith(f"  try:  {hint}\n")


def test_a_vm_has_no_policy_files(
    no_service: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.delenv("PEDOS_POLICY_PATH", raising=False)
    monkeypatch.setenv("PEDOS_VM", "work")
    for action in (["check"], ["get"], ["fmt"], ["graph"], ["edit", NAME]):
        assert main(action) == 1
        assert "only dom0 has the policy, and here is work" in capsys.readouterr().err


def test_an_error_of_the_facts_is_no_refusal_of_the_rules(
    served: Path, service: FakeService, fresh: str, capsys: Captured
) -> None:
    later = "2025-01-02T03:05:00+00:00"
    error = {"file": "vms.d/50.toml", "line": 1, "column": 0, "message": "not valid TOML"}
    serve(service, {}, {"ok": False, "errors": [error], "loaded_at": later})
    assert main(["replace", NAME, "any", fresh]) == 0
    said = capsys.readouterr().out
    assert f"the running service took it: in force since {later}; but " in said
    assert "vms.d/50.toml:1 has an error" in said
