"""edit: the draft, the questions, and an untouched file until the last moment."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from pedos_cli import policy_files

from tests import warm

NAME = "30-user.policy"
OLD = "# old\napp.Open  *  work  vault  allow\n"
NEW = "# new\napp.Open  *  work  vault  deny\n"
BROKEN = "app.Open * work vault\n"

# An editor: each run carries out its next instruction on the file that is its last argument.
EDITOR = """
import os, pathlib, signal, sys
*options, path = sys.argv[1:]
here = pathlib.Path(os.environ["EDITOR_PLAN"])
first, *rest = here.read_text().split("\\0")
here.write_text("\\0".join(rest))
file = pathlib.Path(path)
(here.parent / "seen").write_text(file.read_text() + repr(options))
if first == "die":
    file.write_text("half a li")
    os.kill(os.getpid(), signal.SIGKILL)
elif first == "fail":
    file.write_text("half a li")
    sys.exit(3)
elif first == "delete":
    file.unlink()
elif first == "kill":
    file.write_text("half a li")
    os.kill(os.getppid(), signal.SIGKILL)
elif first == "interrupt":
    os.kill(os.getppid(), signal.SIGINT)
    file.write_text(rest.pop(0))
elif first.startswith("wait-for-a-y:"):
    import select
    select.select([0], [], [])
    file.write_text(first.removeprefix("wait-for-a-y:"))
elif first.startswith("meanwhile:"):
    pathlib.Path(os.environ["POLICY_FILE"]).write_text("# theirs\\n")
    file.write_text(first.removeprefix("meanwhile:"))
elif first:
    file.write_text(first)
"""


class Edits:
    """Runs `qvm-policy edit` with an editor that follows its instructions."""

    def __init__(self, tmp_path: Path) -> None:
        self.folder = tmp_path / "policy.d"
        self.folder.mkdir()
        self.path = self.folder / NAME
        self.path.write_text(OLD)
        self.drafts = tmp_path / "drafts"
        self.drafts.mkdir()
        self.plan = tmp_path / "plan"
        editor = tmp_path / "an editor.py"
        editor.write_text(EDITOR)
        self.environment = {
            **os.environ,
            "PEDOS_POLICY_PATH": str(self.folder),
            "PEDOS_SOCKET": str(tmp_path / "nobody.sock"),
            "TMPDIR": str(self.drafts),
            "EDITOR_PLAN": str(self.plan),
            "POLICY_FILE": str(self.path),
            "VISUAL": f"{sys.executable} -S '{editor}' --flag 'two words'",
            "EDITOR": "false",
        }
        self.environment.pop("PEDOS_VM", None)

    def __call__(
        self, *plan: str, answers: str = "", argv: tuple[str, ...] = (), name: str = NAME
    ) -> subprocess.CompletedProcess[str]:
        self.plan.write_text("\0".join(plan))
        command = [sys.executable, "-m", "pedos_cli.qvm_policy", "edit", name, *argv]
        return warm.finish(command, env=self.environment, send=answers, text=True, timeout=20)

    @property
    def left(self) -> list[str]:
        return [path.read_text() for path in self.drafts.rglob(NAME)]


@pytest.fixture
def edit(tmp_path: Path) -> Edits:
    return Edits(tmp_path)


def kept_draft(done: subprocess.CompletedProcess[str]) -> Path:
    found = re.search(r"the draft is kept: (.*)$", done.stderr, re.MULTILINE)
    assert found, done.stderr
    return Path(found.group(1))


def test_the_diff_is_shown_and_a_yes_writes_it(edit: Edits) -> None:
    done = edit(NEW, answers="y\n")
    assert done.returncode == 0, done.stderr
    assert edit.path.read_text() == NEW
    assert "\n-app.Open  *  work  vault  allow\n" in done.stderr
    assert "\n+app.Open  *  work  vault  deny\n" in done.stderr
    assert "write this?" in done.stderr
    assert done.stdout.startswith(f"{NAME} written\n")
    assert edit.left == []


def test_the_editor_is_split_into_words_without_a_shell(edit: Edits, tmp_path: Path) -> None:
    edit(NEW, argv=("--yes",))
    assert (tmp_path / "seen").read_text() == OLD + "['--flag', 'two words']"


def test_visual_comes_before_editor_and_editor_is_used_without_it(edit: Edits) -> None:
    del edit.environment["VISUAL"]
    done = edit("")
    assert done.returncode == 1
    assert "the editor ended with status 1" in done.stderr


def test_yes_does_not_ask(edit: Edits) -> None:
    done = edit(NEW, argv=("--yes", "--json"))
    answer = json.loads(done.stdout)
    assert [answer["changed"], answer["sha256"]] == [True, policy_files.digest(NEW.encode())]
    assert "write this?" not in done.stderr


def test_what_is_unchanged_is_not_written(edit: Edits) -> None:
    before = edit.path.stat().st_ino
    done = edit("")
    assert (done.returncode, done.stdout) == (0, f"{NAME}: nothing was changed\n")
    assert edit.path.stat().st_ino == before
    assert list(edit.drafts.iterdir()) == []


def test_a_new_file_is_made(edit: Edits) -> None:
    done = edit(NEW, answers="y\n", name="31-new.policy")
    assert done.returncode == 0, done.stderr
    assert (edit.folder / "31-new.policy").read_text() == NEW


def test_errors_are_shown_and_can_be_mended_in_the_same_draft(edit: Edits, tmp_path: Path) -> None:
    done = edit(BROKEN, NEW, answers="e\ny\n")
    assert done.returncode == 0, done.stderr
    assert f"{NAME}:1:22: ACTION missing" in done.stderr
    assert (tmp_path / "seen").read_text().startswith(BROKEN)
    assert edit.path.read_text() == NEW


@pytest.mark.parametrize("argv", [(), ("--yes",)])
def test_a_broken_draft_is_kept_when_nobody_answers(edit: Edits, argv: tuple[str, ...]) -> None:
    done = edit(BROKEN, argv=argv)
    assert done.returncode == 1
    assert kept_draft(done).read_text() == BROKEN
    assert edit.path.read_text() == OLD


@pytest.mark.parametrize(("answer", "left"), [("k\n", [NEW]), ("d\n", []), ("?\nmaybe\nd\n", [])])
def test_a_good_draft_can_be_kept_or_discarded(edit: Edits, answer: str, left: list[str]) -> None:
    done = edit(NEW, answers=answer)
    assert done.returncode == 1
    assert edit.path.read_text() == OLD
    assert edit.left == left


def test_somebody_elses_change_meanwhile_is_not_overwritten(edit: Edits) -> None:
    done = edit("meanwhile:" + NEW, argv=("--yes",))
    assert done.returncode == 6
    assert "changed meanwhile by another program" in done.stderr
    assert edit.path.read_text() == "# theirs\n"
    assert kept_draft(done).read_text() == NEW


@pytest.mark.parametrize(("what", "said"), [("die", "SIGKILL"), ("fail", "status 3")])
def test_an_editor_that_ends_badly_changes_nothing_and_the_draft_is_kept(
    edit: Edits, what: str, said: str
) -> None:
    done = edit(what, argv=("--yes",))
    assert done.returncode == 1
    assert said in done.stderr
    assert edit.path.read_text() == OLD
    assert kept_draft(done).read_text() == "half a li"


def test_an_editor_that_takes_the_draft_away_changes_nothing(edit: Edits) -> None:
    done = edit("delete", argv=("--yes",))
    assert done.returncode == 1
    assert "took the draft" in done.stderr
    assert edit.path.read_text() == OLD
    assert list(edit.drafts.iterdir()) == []


def test_an_editor_that_is_not_there_is_told(edit: Edits) -> None:
    edit.environment["VISUAL"] = "no-such-editor -x"
    done = edit()
    assert done.returncode == 1
    assert "the editor no-such-editor cannot be started" in done.stderr
    edit.environment["VISUAL"] = "vi 'x"
    assert edit().returncode == 2


def test_an_interrupt_is_the_editors(edit: Edits) -> None:
    done = edit("interrupt", NEW, answers="y\n")
    assert done.returncode == 0, done.stderr
    assert edit.path.read_text() == NEW


def test_killed_with_its_editor_open_the_place_of_the_draft_was_told_before(edit: Edits) -> None:
    done = edit("kill")
    assert done.returncode == -signal.SIGKILL
    found = re.search(r"the draft is (.*)$", done.stderr, re.MULTILINE)
    assert found
    assert Path(found.group(1)).exists()
    assert edit.path.read_text() == OLD
    assert [path.name for path in edit.folder.iterdir()] == [NAME]


def test_the_draft_is_in_a_folder_that_nobody_else_can_look_into(edit: Edits) -> None:
    draft = kept_draft(edit(NEW, answers="k\n"))
    assert draft.name == NAME
    assert draft.parent.stat().st_mode & 0o077 == 0


def test_a_hostile_text_is_shown_harmless(edit: Edits) -> None:
    done = edit("# \x1b[2J\u202e\n", answers="d\n")
    assert "+# \\x1b[2J\\u202e" in done.stderr
    assert all(" " <= char <= "~" or char == "\n" for char in done.stderr)


def test_it_warns_before_that_another_folder_has_the_file_that_counts(
    edit: Edits, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / NAME).write_text(OLD)
    edit.environment["PEDOS_POLICY_PATH"] = f"{tmp_path / 'run'}:{edit.folder}"
    done = edit("")
    assert f"{tmp_path / 'run' / NAME} has the same name and counts instead" in done.stderr


def test_what_was_typed_before_the_question_does_not_answer_it(edit: Edits) -> None:
    edit.plan.write_text("wait-for-a-y:" + NEW)
    terminal, inner = os.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "pedos_cli.qvm_policy", "edit", NAME],
        env=edit.environment, stdin=inner, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    ) as program:  # fmt: skip
        assert program.stderr is not None
        os.write(terminal, b"y\n")  # the editor ends only when this has come, and leaves it there
        said = ""
        while not said.endswith("[d]iscard: "):
            said += program.stderr.read(1)
        os.write(terminal, b"d\n")
        assert program.wait(20) == 1
    os.close(terminal)
    os.close(inner)
    assert edit.path.read_text() == OLD


def test_another_file_that_is_broken_can_be_mended_afterwards(edit: Edits) -> None:
    for name in ("50-b.policy", "51-c.policy"):
        (edit.folder / name).write_text(BROKEN)
    done = edit(NEW, argv=("--yes",), name="50-b.policy")
    assert done.returncode == 0, done.stderr
    assert "still has these errors" in done.stderr


@pytest.mark.parametrize(
    "at", ["editing", "edited", "locked", "checked", "made", "synced", "compared", "renamed"]
)
def test_killed_at_any_step_the_file_is_the_old_or_the_new(edit: Edits, at: str) -> None:
    code = (
        "import os, signal, sys\n"
        "from pedos_cli import policy_files, qvm_policy\n"
        "def step(name):\n"
        "    if name == sys.argv[1]:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "policy_files.step = step\n"
        "sys.exit(qvm_policy.main(sys.argv[2:]))\n"
    )
    edit.plan.write_text(NEW)
    done = subprocess.run(
        [sys.executable, "-c", code, at, "edit", "--yes", NAME],
        env=edit.environment, capture_output=True, timeout=20, check=False,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert edit.path.read_text() == (NEW if at == "renamed" else OLD)
    assert [path.name for path in edit.folder.glob("*.policy")] == [NAME]


def test_a_file_that_others_include_is_edited_by_its_path(edit: Edits) -> None:
    edit.path.write_text("!include include/common\n")
    (edit.folder / "include").mkdir()
    (edit.folder / "include" / "common").write_text(OLD)
    done = edit(NEW, answers="y\n", name="include/common")
    assert done.returncode == 0, done.stderr
    assert (edit.folder / "include" / "common").read_text() == NEW
    assert "no file includes" not in done.stderr
    broken = edit(BROKEN, answers="k\n", name="include/common")
    assert broken.returncode == 1
    assert kept_draft(broken).read_text() == BROKEN
    assert "qvm-policy replace include/common sha256:" in broken.stderr


def test_a_file_that_nothing_includes_is_said_to_have_no_effect(edit: Edits) -> None:
    (edit.folder / "include").mkdir()
    done = edit(NEW, argv=("--yes",), name="include/common")
    assert done.returncode == 0
    assert "no file includes include/common" in done.stderr


def test_the_command_that_is_told_writes_the_draft(edit: Edits) -> None:
    done = edit(NEW, answers="k\n", argv=("--policy-dir", str(edit.folder)))
    assert done.returncode == 1
    told = re.search(r"to write it:  qvm-policy (.*)$", done.stderr, re.MULTILINE)
    assert told, done.stderr
    subprocess.run(
        [sys.executable, "-m", "pedos_cli.qvm_policy", *told.group(1).split()],
        env=edit.environment, capture_output=True, timeout=20, check=True,
    )  # fmt: skip
    assert edit.path.read_text() == NEW


def test_a_draft_that_came_too_late_can_only_be_written_over_theirs(edit: Edits) -> None:
    done = edit(f"meanwhile:{NEW}", answers="y\n")
    assert done.returncode == 6
    assert f"over what is there now:  qvm-policy replace {NAME} any " in done.stderr


def test_a_folder_that_is_not_there_is_told_before_the_editor_starts(edit: Edits) -> None:
    done = edit(NEW, argv=("--policy-dir", str(edit.folder / "none")))
    assert done.returncode == 1
    assert f"there is no policy folder {edit.folder}/none\n  try:  mkdir -p " in done.stderr
    assert edit.plan.read_text() == NEW, "the editor was started"
    assert list(edit.drafts.iterdir()) == []


def test_an_error_of_another_file_is_told_with_the_way_to_mend_it(edit: Edits) -> None:
    (edit.folder / "40-other.policy").write_text(BROKEN)
    done = edit(NEW, answers="d\n")
    assert done.returncode == 1
    assert f"none is in {NAME}: correct that first: qvm-policy edit 40-other.policy" in done.stderr


def test_a_bad_name_of_another_file_is_not_to_be_edited(edit: Edits) -> None:
    (edit.folder / "Other.policy").write_text(NEW)
    done = edit(NEW, answers="d\n")
    assert "qvm-policy edit" not in done.stderr
    assert "help: rename it" in done.stderr
    assert ":0:0" not in done.stderr


BAD = "# bad\napp.Open  *  work  vault  alow\n"


@pytest.mark.parametrize("answer", ["n\n", "no\n", "N\n", "k\n", ""])
@pytest.mark.parametrize("draft", [NEW, BAD], ids=["to write it", "to mend it"])
def test_a_no_writes_nothing_keeps_the_draft_and_says_so(
    edit: Edits, answer: str, draft: str
) -> None:
    done = edit(draft, answers=answer)
    assert done.returncode == 1
    assert edit.path.read_text() == OLD
    assert f"qvm-policy: nothing is written: {NAME} is as it was\n" in done.stderr
    assert kept_draft(done).read_text() == draft


def test_another_answer_is_told_which_there_are(edit: Edits) -> None:
    done = edit(NEW, answers="what?\ny\n")
    assert done.returncode == 0
    assert "'what?' is no answer: it is one of y, n, e, k, d\n" in done.stderr
