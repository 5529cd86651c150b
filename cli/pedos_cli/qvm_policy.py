"""`qvm-policy`: shows, queries, tests and changes the policy, without breaking it."""

from __future__ import annotations

import sys

from pedos_cli import (
    policy_check,
    policy_edit,
    policy_eval,
    policy_explain,
    policy_fmt,
    policy_get,
    policy_graph,
    policy_remove,
    policy_replace,
    policy_status,
    policy_suggest,
    policy_unit_tests,
)
from pedos_cli.arguments import TELLING, Parser, UsageError, examples
from pedos_cli.output import show
from pedos_cli.run import run

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

PROG = "qvm-policy"
DESCRIPTION = (
    "Look at and change the policy that decides which VM may do what: which rule decides a "
    "request, what a change would do, and a change that cannot break the system."
)

MODULES = {
    "check": (policy_check, "check the policy files and show every error"),
    "explain": (policy_explain, "show what the policy says to one request, and why"),
    "eval": (policy_eval, "answer many requests: JSON lines in, JSON lines out"),
    "edit": (policy_edit, "edit a policy file, and write it only if the policy is good with it"),
    "get": (policy_get, "list the policy files, or print one"),
    "replace": (policy_replace, "replace or make a policy file, unless it was changed meanwhile"),
    "remove": (policy_remove, "remove a policy file, unless it was changed meanwhile"),
    "test": (policy_unit_tests, "run the unit tests of a policy"),
    "fmt": (policy_fmt, "align the columns of policy files"),
    "graph": (policy_graph, "draw who may do what, for Graphviz"),
    "suggest": (policy_suggest, "suggest rules that would allow what was denied"),
    "status": (policy_status, "show which policy is in force"),
}
"""Each action: its module, and what it does."""


def build_parser(only: str | None = None) -> Parser:
    """Return the parser of `qvm-policy`.

    `only` is the action on the command line: the parsers of the others are not made.
    """
    parser = Parser(
        prog=PROG,
        description=DESCRIPTION,
        epilog=examples(
            (f"{PROG} check", "is anything wrong with the policy files"),
            (
                f"{PROG} explain device.attach.block +sys-usb:sda work work",
                "may work attach this disk to itself, and which rule says so",
            ),
            (f"{PROG} edit 30-user.policy", "change the rules"),
            (f"{PROG} suggest", "rules for what was denied"),
        ),
    )
    actions = parser.add_subparsers(
        title="actions", metavar="ACTION", dest="action", required=True, prog=PROG
    )
    for action in (only,) if only else MODULES:
        module, summary = MODULES[action]
        leaf = actions.add_parser(
            action,
            help=summary,
            description=module.DESCRIPTION,
            epilog=examples(*module.EXAMPLES),
            level=2,
        )
        module.add_arguments(leaf)
        leaf.set_defaults(verb=module.run, action=action, help_command=f"{PROG} {action} --help")
    return parser


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Return the arguments; raises UsageError, or SystemExit after showing help."""
    # No option that may stand before the action takes a value, so the first word is the action.
    word = next((word for word in argv if not word.startswith("-")), None)
    if word is not None and word in MODULES:
        return build_parser(word).parse_args(argv)
    if {"-h", *TELLING} & set(argv):
        return build_parser().parse_args(argv)
    known = ", ".join(MODULES)
    if word is None:
        raise UsageError(f"no action is given: one of {known}", f"{PROG} --help")
    raise UsageError(f"'{show(word, 64)}' is no action: the actions are {known}", f"{PROG} --help")


def main(argv: Sequence[str] | None = None) -> int:
    """Run `qvm-policy`; returns the exit status."""
    return run(PROG, build_parser, argv, parse)


if __name__ == "__main__":
    sys.exit(main())
