"""`qvm-policy replace`: writes a policy file as a whole, from a program or another machine."""

from __future__ import annotations

import sys

from pedos_protocol.errors import CallError

from pedos_cli import output, policy_change, policy_engine, policy_files, policy_live
from pedos_cli.answers import DONE, FAILED
from pedos_cli.output import show

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pedos_cli.arguments import Parser
    from pedos_cli.run import Session

DESCRIPTION = (
    "Replace a policy file in one step: whatever happens, the old or the new file is there. The "
    "command first checks the policy as a whole, and writes nothing if it would be broken. To lose "
    "no other change, REPLACES names the expected old file: its hash as you know it, 'new' if the "
    "file must not exist yet, or 'any'."
)
EXAMPLES = (
    ("qvm-policy replace 30-user.policy new rules.txt", "a new file, from rules.txt"),
    (
        'qvm-policy replace 30-user.policy "$(qvm-policy get 30-user.policy --sha256)" rules.txt',
        "only if it is not changed meanwhile",
    ),
    ("qvm-policy replace 30-user.policy any rules.txt", "whatever is there now"),
)
REPLACES_HELP = "the file as it must be now: sha256:HEX, 'new' (there is none) or 'any'"


def add_arguments(parser: Parser) -> None:
    """Add what `replace` takes."""
    parser.add_argument("name", metavar="NAME", help="a policy file's name")
    parser.add_argument("expected", metavar="REPLACES", help=REPLACES_HELP)
    parser.add_argument(
        "file", metavar="FILE", nargs="?", default="-",
        help="the new content (default: standard input)",
    )  # fmt: skip
    policy_files.add_folder_option(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(session: Session) -> int:
    """Check the policy as it would be, and write the file."""
    args = session.args
    name = policy_files.file_name(args.name)
    expected = policy_files.token(args.expected)
    data = content(args.file)
    if not data and args.file == "-":
        # In `qvm-policy get X | something | qvm-policy replace X any`, the middle has failed.
        raise CallError(
            "failed",
            f"nothing came from standard input: {name} is left as it is",
            {"hint": f"qvm-policy remove {name} any, or an empty FILE such as /dev/null"},
        )
    return written(session, name, data, expected)


def written(session: Session, name: str, data: bytes | None, expected: str) -> int:
    """Write or (None) remove the file, report the result, and return the exit status."""
    where = policy_files.folders(session.args)
    try:
        result = policy_change.apply(session, where, name, data, expected)
    except policy_engine.BrokenPolicyError as broken:
        return refused(session, name, broken)
    verb = "removed" if data is None else "written"
    policy_live.put_result(session, f"{name} {verb}", result)
    return DONE


def refused(session: Session, name: str, broken: policy_engine.BrokenPolicyError) -> int:
    """Report the errors that prevented a change; returns the exit status."""
    if session.args.json:
        errors = policy_engine.errors_json(broken.errors)
        output.put_json({"name": name, "changed": False, "errors": errors})
        return FAILED
    for line in policy_engine.error_lines(broken.errors):
        output.complain(line)
    if any(error.file == name for error in broken.errors):
        hint = f"correct {name} and try again"
    else:
        hint = policy_engine.mend_hint(policy_files.folders(session.args), broken.errors[0])
    return session.fail(
        CallError(
            "failed", f"nothing was changed: with it, the policy has {broken.count}", {"hint": hint}
        )
    )


def content(path: str) -> bytes:
    """Return the content of the file at `path`, or standard input for `-`.

    Raises CallError if the file does not exist, or has more than a policy file may have.
    """
    if path != "-":
        data = policy_files.read_input(path)
        if data is None:
            raise CallError("not_found", f"there is no file {show(path, 256)}")
        return data
    if sys.stdin is None:
        raise CallError("failed", "standard input is closed, and no FILE is given")
    say_if_typed()
    data = sys.stdin.buffer.read(policy_files.FILE_MAX + 1)
    if len(data) > policy_files.FILE_MAX:
        message = f"more than {policy_files.FILE_MAX} bytes came: is that a policy?"
        raise CallError("failed", message)
    return data


def say_if_typed() -> None:
    """Remind a person who forgot FILE what the command waits for."""
    if sys.stdin is not None and sys.stdin.isatty():
        output.complain("reading from the terminal: Ctrl-D at the start of a line ends the text")
