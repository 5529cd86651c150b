"""`qvm-prompt`: asks dom0's user, in a terminal, about requests that a rule says to ask about."""

from __future__ import annotations

import os
import sys

from pedos_cli.arguments import Parser, UsageError, examples
from pedos_cli.output import encoding_of
from pedos_cli.run import run

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from pedos_cli.run import Session

PROG = "qvm-prompt"


def build_parser() -> Parser:
    """Return the parser of `qvm-prompt`."""
    parser = Parser(
        prog=PROG,
        description="Show the questions of rules that say 'ask', and take the answers. Each VM "
        "that may get the device has a number; n denies, and so does Ctrl-C. Enter alone takes the "
        "default if the rule names one. A question without an answer in time is denied. Keys typed "
        "before the prompt shows the choices do not answer a question. Ctrl-C without a question "
        "ends the program, and so does Ctrl-D.",
        epilog=examples(
            (PROG, "show each question as it arrives"),
            (f"{PROG} --once", "end after one question"),
        ),
    )
    parser.add_argument("--once", action="store_true", help="end after one question")
    parser.set_defaults(verb=serve)
    return parser


def serve(session: Session) -> int:
    """Register with the service, and serve until the user ends it."""
    _require_terminal()
    # Help does not need these, and starts faster without them.
    from pedos_cli.prompt_link import Link  # noqa: PLC0415
    from pedos_cli.prompt_loop import Loop  # noqa: PLC0415
    from pedos_cli.prompt_signals import Signals  # noqa: PLC0415
    from pedos_cli.prompt_terminal import Terminal  # noqa: PLC0415

    link = Link()
    try:
        # Signals outermost: a signal during the restoring of the terminal must not end the program.
        with Signals() as signals, Terminal(0, 1, encoding_of(sys.stdout)) as terminal:
            once, quiet = session.args.once, session.verbosity < 0
            loop = Loop(terminal, link, Link, signals=signals, once=once, quiet=quiet)
            try:
                return loop.run()
            finally:
                loop.close()
    finally:
        link.close()


def _require_terminal() -> None:
    for descriptor, name in ((0, "standard input"), (1, "standard output")):
        if not os.isatty(descriptor):
            raise UsageError(
                f"{name} is not a terminal, and a person has to answer here",
                f"{PROG} (in a terminal, without a pipe or redirection)",
            )
    try:
        is_in_front = os.tcgetpgrp(0) == os.getpgrp()
    except OSError:
        return  # not the terminal of this session: no job control applies
    if not is_in_front:
        raise UsageError("this runs in the background, where no answer can be typed", PROG)


def main(argv: Sequence[str] | None = None) -> int:
    """Run `qvm-prompt`; returns the exit status."""
    return run(PROG, build_parser, argv)


if __name__ == "__main__":
    sys.exit(main())
