"""`qvm-policy`: look at the policy that is in force."""

from __future__ import annotations

import sys

from pedos_cli import output
from pedos_cli.arguments import Parser, UsageError, examples
from pedos_cli.output import show
from pedos_cli.run import DONE, run, take, take_maps

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from pedos_cli.run import Session

PROG = "qvm-policy"
ACTIONS = ("status",)
TIMEOUT_S = 10.0
"""Seconds for the status: the service answers from memory."""


def build_parser() -> Parser:
    """Return the parser of `qvm-policy`."""
    parser = Parser(
        prog=PROG,
        description="Look at the policy that decides who may list, attach and detach devices.",
        epilog=examples((f"{PROG} status", "which policy is in force, and what is wrong with it")),
    )
    actions = parser.add_subparsers(
        title="actions", metavar="ACTION", dest="action", required=True, prog=PROG
    )
    leaf = actions.add_parser(
        "status",
        help="show which policy is in force",
        description="Show which policy is in force, since when, and the errors of a newer one "
        "that was not taken. The exit status tells only whether the question was answered.",
        epilog=examples(
            (f"{PROG} status", "for people"), (f"{PROG} status --json", "for programs")
        ),
        level=2,
    )
    leaf.add_argument("--json", action="store_true", help="print JSON")
    leaf.set_defaults(verb=status)
    return parser


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Return the arguments; raises UsageError, or SystemExit after showing help."""
    words = [word for word in argv if not word.startswith("-")]
    if words and words[0] not in ACTIONS:
        raise UsageError(
            f"'{show(words[0], 64)}' is no action: the actions are {', '.join(ACTIONS)}",
            f"{PROG} status",
        )
    if not words and not {"-h", "--help"} & set(argv):
        raise UsageError(f"no action is given: one of {', '.join(ACTIONS)}", f"{PROG} status")
    return build_parser().parse_args(argv)


def status(session: Session) -> int:
    """Print what the service says about its policy."""
    policy = take(session.call("service.status", {}, TIMEOUT_S), "policy", dict)
    if session.args.json:
        output.put_json(policy)
        return DONE
    loaded_at = policy.get("loaded_at")
    rules = take(policy, "rules", int)
    counted = "1 rule" if rules == 1 else f"{rules} rules"
    if not loaded_at:
        output.put("policy: none in force, everything is denied")
    else:
        output.put(f"policy: in force since {loaded_at}, {counted}")
    errors = take_maps(policy, "errors")
    if errors:
        output.put("a newer policy was not taken, because of:")
    for error in errors:
        where = ":".join(show(error.get(part)) for part in ("file", "line", "column"))
        output.put(f"  {where}: {error.get('message')}")
    return DONE


def main(argv: Sequence[str] | None = None) -> int:
    """Run `qvm-policy`; returns the exit status."""
    return run(PROG, build_parser, argv, parse)


if __name__ == "__main__":
    sys.exit(main())
