"""`qvm-policy remove`: removes a policy file, if the rest is good without it."""

from __future__ import annotations

from pedos_cli import policy_files
from pedos_cli.arguments import UsageError
from pedos_cli.policy_replace import written

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pedos_cli.arguments import Parser
    from pedos_cli.run import Session

DESCRIPTION = (
    "Remove a policy file of the administrator's folder. The command first checks the policy as a "
    "whole without it. To lose no other change, REMOVES names the expected file: its hash as you "
    "know it, or 'any'."
)
EXAMPLES = (
    ("qvm-policy remove 30-user.policy any", "whatever stands in it"),
    (
        'qvm-policy remove 30-user.policy "$(qvm-policy get 30-user.policy --sha256)"',
        "only if it is not changed meanwhile",
    ),
)


def add_arguments(parser: Parser) -> None:
    """Add what `remove` takes."""
    parser.add_argument("name", metavar="NAME", help="a policy file's name")
    parser.add_argument(
        "expected", metavar="REMOVES", help="the file as it must be now: sha256:HEX, or 'any'"
    )
    policy_files.add_folder_option(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(session: Session) -> int:
    """Check the policy as it would be, and remove the file."""
    name = policy_files.file_name(session.args.name)
    expected = policy_files.token(session.args.expected)
    if expected == policy_files.NEW:
        raise UsageError("a file that is not there cannot be removed", "qvm-policy get")
    return written(session, name, None, expected)
