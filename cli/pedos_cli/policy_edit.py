"""`qvm-policy edit`: edits a policy file, and writes it only if the whole policy is good.

The user edits a draft in a private folder. The command touches the policy file once, at the end, by
one rename. Until then nothing that happens to the editor, to this program or to the machine changes
the policy file, and the draft is kept whenever it has unwritten work.
"""

from __future__ import annotations

import os
import sys

from pedos_protocol.errors import CallError

from pedos_cli import output, policy_change, policy_engine, policy_files, policy_live
from pedos_cli.answers import DONE, FAILED
from pedos_cli.arguments import UsageError
from pedos_cli.output import show

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from pedos_cli.arguments import Parser
    from pedos_cli.run import Session

DEFAULT_EDITOR = "vi"
STANDARD_ERROR = 2
EDITOR_VARIABLES = ("VISUAL", "EDITOR")

DIFF_CONTEXT = 3
"""Lines around each change, as diff -u has them."""

AGAIN, WRITE, NO, KEEP, DISCARD = "e", "y", "n", "k", "d"

DESCRIPTION = (
    "Edit a policy file of the administrator's folder, a new one too, in $VISUAL, $EDITOR (either "
    "may have arguments) or vi. The command then checks the whole policy as it would be. With an "
    "error, you may edit again, keep the draft or discard it, and the file stays as it was. "
    "Otherwise the command shows the changes and, after your yes, writes them, unless the file "
    "was changed meanwhile."
)
EXAMPLES = (
    ("qvm-policy edit 30-user.policy", "edit it, or make it"),
    ("qvm-policy edit --yes 30-user.policy", "write without being asked, if there is no error"),
)


def add_arguments(parser: Parser) -> None:
    """Add what `edit` takes."""
    parser.add_argument("name", metavar="NAME", help="a policy file's name, such as 30-user.policy")
    policy_files.add_folder_option(parser)
    parser.add_argument("-y", "--yes", action="store_true", help="write without being asked")
    parser.add_argument(
        "--json", action="store_true", help="print the result as JSON; questions are asked anyhow"
    )


def run(session: Session) -> int:
    """Edit, check, show, ask, write; returns 1 if the user wanted a write that did not happen."""
    args = session.args
    name = policy_files.file_name(args.name)
    where = policy_files.folders(args)
    argv = editor()
    policy_files.require_writable(where[-1])
    before = policy_files.read(os.path.join(where[-1], name))
    counts = policy_files.find(where, name)
    if counts is not None and counts != os.path.join(where[-1], name):
        session.note(f"warning: {counts} has the same name and counts instead of what is edited")
    draft = Draft(name, before or b"")
    session.note(f"{name} of {where[-1]}; the draft is {draft.path}")
    try:
        return _Edit(session, where, name, before, draft).until_done(argv)
    except BaseException as error:
        draft.close(keep=True)
        is_behind = isinstance(error, CallError) and error.code == "busy"
        _tell_draft(session, draft, policy_files.ANY if is_behind else expected(before))
        raise


def expected(before: bytes | None) -> str:
    """Return what the file must contain when the draft is written: its content at the start."""
    return policy_files.NEW if before is None else policy_files.digest(before)


class Draft:
    """The file that the editor gets, in a folder that other users cannot open."""

    def __init__(self, name: str, data: bytes) -> None:
        import tempfile  # noqa: PLC0415

        self.start = data
        self.name = name
        try:
            self.folder = tempfile.mkdtemp(prefix="qvm-policy-")
            # Of a file that others include, such as include/common, the last part of the name
            # alone.
            self.path = os.path.join(self.folder, os.path.basename(name))
            with open(self.path, "xb") as file:
                file.write(data)
        except OSError as error:
            why = error.strerror or type(error).__name__
            raise CallError("failed", f"no draft can be made: {why}") from error
        self.kept = False

    def read(self) -> bytes:
        """Return the draft's content; CallError if it is gone or no text file any more."""
        data = policy_files.read(self.path)
        if data is None:
            raise CallError("failed", f"the editor took the draft {self.path} away")
        return data

    def close(self, *, keep: bool) -> None:
        """Remove the draft, unless it has work in it and is to be kept. Safe to call twice."""
        if self.kept:
            return
        try:
            self.kept = keep and self.read() != self.start
        except CallError:
            self.kept = False
        if not self.kept:
            import shutil  # noqa: PLC0415  (an editor's backup may lie beside it)

            shutil.rmtree(self.folder, ignore_errors=True)


class _Edit:
    """One run of `edit`, from the first look to the last question."""

    def __init__(
        self, session: Session, where: list[str], name: str, before: bytes | None, draft: Draft
    ) -> None:
        self._session = session
        self._where = where
        self._name = name
        self._before = before
        self._draft = draft

    def until_done(self, argv: list[str]) -> int:
        """Return the exit status when the draft is written, kept or discarded."""
        while True:
            _run_editor(argv, self._draft.path)
            data = self._draft.read()
            if data == (self._before or b""):
                self._draft.close(keep=False)
                self._finish("nothing was changed", {"name": self._name, "changed": False})
                return DONE
            choice = self._look(data)
            if choice == WRITE:
                try:
                    return self._write(data)
                except policy_engine.BrokenPolicyError as broken:
                    self._show_errors(broken)  # another file was broken since the last check
                    choice = self._ask_about_errors()
            if choice == DISCARD:
                self._draft.close(keep=False)
                self._finish("discarded", {"name": self._name, "changed": False})
                return FAILED
            if choice in (KEEP, NO):
                self._draft.close(keep=True)
                self._session.note(f"nothing is written: {self._name} is as it was")
                _tell_draft(self._session, self._draft, expected(self._before))
                self._finish(None, {"name": self._name, "changed": False, **self._kept()})
                return FAILED

    def _look(self, data: bytes) -> str:
        """Check and show the draft, and return what to do with it."""
        try:
            left, _ = policy_change.check(self._where, self._name, data)
        except policy_engine.BrokenPolicyError as broken:
            self._show_errors(broken)
            return self._ask_about_errors()
        for line in diff_lines(self._name, self._before, data):
            output.complain(line)
        if left:
            output.complain("the policy is good as far as this file goes, but other errors stay:")
            for line in policy_engine.error_lines(left):
                output.complain(line)
        if self._session.args.yes:
            return WRITE
        return ask(
            "write this? [y]es, [n]o, [e]dit again, [k]eep the draft and leave, [d]iscard: ",
            (WRITE, NO, AGAIN, KEEP, DISCARD),
        )

    def _show_errors(self, broken: policy_engine.BrokenPolicyError) -> None:
        for line in policy_engine.error_lines(broken.errors):
            output.complain(line)
        output.complain(f"with this the policy has {broken.count}; nothing is written")
        if not any(error.file == self._name for error in broken.errors):
            hint = policy_engine.mend_hint(self._where, broken.errors[0])
            output.complain(f"  none is in {self._name}: {hint}")

    def _ask_about_errors(self) -> str:
        # A no to a question that was not asked means: do not write.
        return ask(
            "[e]dit again, [k]eep the draft and leave, [d]iscard: ", (AGAIN, NO, KEEP, DISCARD)
        )

    def _write(self, data: bytes) -> int:
        result = policy_change.apply(
            self._session, self._where, self._name, data, expected(self._before)
        )
        self._draft.close(keep=False)
        policy_live.put_result(self._session, f"{self._name} written", result)
        return DONE

    def _kept(self) -> dict[str, object]:
        return {"draft": self._draft.path} if self._draft.kept else {}

    def _finish(self, said: str | None, result: dict[str, object]) -> None:
        if self._session.args.json:
            said = said or "the draft is kept"
            self._session.did(f"{self._name}: {said}", lambda: output.put_json(result))
        elif said:
            self._session.say(f"{self._name}: {said}")


def _tell_draft(session: Session, draft: Draft, replaces: str) -> None:
    """Print the draft's path, and the command that writes it instead of `replaces`."""
    if not draft.kept:
        return
    import shlex  # noqa: PLC0415

    output.complain(f"{session.prog}: the draft is kept: {draft.path}")
    words = ["qvm-policy", "replace", draft.name, replaces, draft.path]
    for folder in session.args.folders or ():
        words += ["--policy-dir", folder]
    over = ", over what is there now" if replaces == policy_files.ANY else ""
    output.complain(f"  to write it{over}:  {shlex.join(words)}")


def editor() -> list[str]:
    """Return the editor's program and arguments; raise UsageError if the variable is malformed.

    The variable is split as a shell would, but no shell runs it.
    """
    import shlex  # noqa: PLC0415

    for variable in EDITOR_VARIABLES:
        text = os.environ.get(variable, "").strip()
        if not text:
            continue
        try:
            return shlex.split(text)
        except ValueError as error:
            raise UsageError(f"{variable} cannot be understood: {show(error)}") from None
    return [DEFAULT_EDITOR]


def _run_editor(argv: list[str], path: str) -> None:
    """Run the editor until it ends; raise CallError if it failed.

    Ctrl-C belongs to the editor, which has the same terminal; this program only waits.
    """
    import signal  # noqa: PLC0415
    import subprocess  # noqa: PLC0415

    policy_files.step("editing")
    # A handler, not SIG_IGN, which the editor would inherit.
    kept = {
        number: signal.signal(number, lambda _number, _frame: None)
        for number in (signal.SIGINT, signal.SIGQUIT)
    }
    # What qvm-policy prints for programs must not mix with what an editor draws.
    screen = None if output.on_terminal() else STANDARD_ERROR
    try:
        ended = subprocess.run([*argv, path], check=False, stdout=screen)
    except OSError as error:
        why = error.strerror or type(error).__name__
        message = f"the editor {show(argv[0], 128)} cannot be started: {why}"
        raise CallError("failed", message, {"hint": "EDITOR=PROGRAM qvm-policy edit ..."}) from None
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
    policy_files.step("edited")
    if ended.returncode < 0:
        name = signal.Signals(-ended.returncode).name
        raise CallError("failed", f"the editor was killed ({name}): nothing was changed")
    if ended.returncode:
        raise CallError(
            "failed", f"the editor ended with status {ended.returncode}: nothing was changed"
        )


def ask(question: str, keys: tuple[str, ...]) -> str:
    """Return the first letter of the answer; `k` when standard input has ended."""
    _forget_typed()
    while True:
        if sys.stderr is not None:
            sys.stderr.write(question)
            sys.stderr.flush()
        line = sys.stdin.readline() if sys.stdin is not None else ""
        if not line:
            output.complain("")
            return KEEP
        word = line.strip().lower()
        if word[:1] in keys:
            return word[:1]
        if word:
            output.complain(f"'{show(word, 64)}' is no answer: it is one of {', '.join(keys)}")


def _forget_typed() -> None:
    """Input from before the question, such as keys for the editor, is no answer to it."""
    if sys.stdin is None or not sys.stdin.isatty():
        return
    import termios  # noqa: PLC0415

    try:  # noqa: SIM105  (contextlib is slow to import)
        termios.tcflush(sys.stdin, termios.TCIFLUSH)
    except termios.error:  # the terminal went away, as reading from it will show
        pass


def diff_lines(name: str, before: bytes | None, after: bytes) -> Iterator[str]:
    """Yield the changes, as `diff -u` shows them."""
    import difflib  # noqa: PLC0415

    old = _lines(before or b"")
    new = _lines(after)
    was = f"{name} (as it is)" if before is not None else "(no such file yet)"
    yield from difflib.unified_diff(
        old, new, was, f"{name} (as it would be)", n=DIFF_CONTEXT, lineterm=""
    )


def _lines(data: bytes) -> list[str]:
    lines = data.decode("utf-8", "backslashreplace").split("\n")
    if lines[-1] == "":
        lines.pop()
    return [line.replace("\t", "    ") for line in lines]
