"""`qvm-policy check`: shows every error of every policy file, each with its place."""

from __future__ import annotations

from pedos_cli import output, policy_engine, policy_files
from pedos_cli.answers import DONE, FAILED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pedos_cli.arguments import Parser
    from pedos_cli.run import Session

DESCRIPTION = (
    "Check all policy files as the service would read them, and show every error with file, line "
    "and column. Needs no running service. The exit status is 1 if there is an error. A user= "
    "that no Linux user can have is an error here, although the service accepts it. A rule that "
    "can never match, or is never reached, gives a warning. A rule that allows a kind of USB "
    "device, and what has a keyboard beside it, gives a note."
)
EXAMPLES = (
    ("qvm-policy check", "is anything wrong"),
    (
        "qvm-policy check --with 30-user.policy=draft",
        "would there be an error with the file draft in its place",
    ),
    ("qvm-policy check --policy-dir ./policy.d --json", "a folder of one's own, for programs"),
)


def add_arguments(parser: Parser) -> None:
    """Add what `check` takes."""
    policy_engine.add_trial_options(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(session: Session) -> int:
    """Print the errors; returns 1 if there are any."""
    args = session.args
    loaded = policy_engine.read(policy_files.folders(args), policy_engine.replaced(args))
    # Of a file with errors only the good rules are known, but not what they would hide.
    found = policy_engine.Findings(() if loaded.errors else loaded.rules)
    errors = (*loaded.errors, *found.errors)
    if args.json:
        output.put_json(
            {
                "ok": not errors,
                "rules": len(loaded.rules),
                "files": list(loaded.files),
                "errors": policy_engine.errors_json(errors),
                "warnings": policy_engine.errors_json(found.warnings),
                "notes": policy_engine.errors_json(found.notes),
            }
        )
        return FAILED if errors else DONE
    for line in policy_engine.error_lines([*errors, *found.doubts()]):
        output.put(line)
    counted = _count(len(errors), "error")
    for doubtful, word in ((found.warnings, "warning"), (found.notes, "note")):
        if doubtful:
            counted += f", {_count(len(doubtful), word)}"
    if errors:
        output.put(counted)
        return FAILED
    session.say(f"{_count(len(loaded.rules), 'rule')} of {_count(len(loaded.files), 'file')}, "
                f"no errors{counted.removeprefix('0 errors')}")  # fmt: skip
    return DONE


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
