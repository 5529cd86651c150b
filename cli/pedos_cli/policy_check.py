"""`qvm-policy check`: every error of every policy file, each with its place."""

from __future__ import annotations

from pedos_cli import output, policy_engine, policy_files
from pedos_cli.run import DONE, FAILED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pedos_cli.arguments import Parser
    from pedos_cli.run import Session

DESCRIPTION = (
    "Check all policy files as the service would read them, and show every error with file, line "
    "and column. Needs no running service. The exit status is 1 if there is an error."
)
EXAMPLES = (
    ("qvm-policy check", "is anything wrong"),
    (
        "qvm-policy check --with 30-user.policy=draft",
        "would anything be wrong if the file draft were put there",
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
    if args.json:
        output.put_json(
            {
                "ok": not loaded.errors,
                "rules": len(loaded.rules),
                "files": list(loaded.files),
                "errors": policy_engine.errors_json(loaded.errors),
            }
        )
    elif loaded.errors:
        for line in policy_engine.error_lines(loaded.errors):
            output.put(line)
        count = len(loaded.errors)
        output.put("1 error" if count == 1 else f"{count} errors")
    else:
        session.say(f"{_count(len(loaded.rules), 'rule')} of {_count(len(loaded.files), 'file')}, "
                    "no errors")  # fmt: skip
    return FAILED if loaded.errors else DONE


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
