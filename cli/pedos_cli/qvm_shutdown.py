"""`qvm-shutdown`: shuts VMs down and waits until they are."""

from __future__ import annotations

import sys

from pedos_protocol.errors import CallError

from pedos_cli.answers import DONE
from pedos_cli.arguments import Parser, examples, vm_names
from pedos_cli.run import run
from pedos_cli.timeouts import SHUTDOWN_S

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from pedos_cli.run import Session

PROG = "qvm-shutdown"


def build_parser() -> Parser:
    """Return the parser of `qvm-shutdown`."""
    parser = Parser(
        prog=PROG,
        description="Shut VMs down, and return when they are down. A VM that lends a device which "
        "another VM uses is not shut down.",
        epilog=examples(
            (f"{PROG} work", "ask work to shut down"),
            (f"{PROG} --force work", "end it without waiting for its file systems"),
        ),
    )
    parser.add_argument("vms", metavar="VM", nargs="+", help="the VMs to shut down, in this order")
    parser.add_argument(
        "--force",
        action="store_true",
        help="end the VM by force, even if it does not shut down or lends a device in use",
    )
    parser.add_argument(
        "--wait", action="store_true", help="accepted for compatibility: qvm-shutdown always waits"
    )
    parser.set_defaults(verb=shut_down)
    return parser


def shut_down(session: Session) -> int:
    """Shut each VM down; continue after a failure and return the status of the first."""
    status = DONE
    for vm in vm_names(session.args.vms):
        try:
            session.operate(
                "vm.shutdown",
                {"vm": vm, "force": session.args.force},
                SHUTDOWN_S,
                f"the shutdown of {vm}",
                f"qvm-ls {vm}",
            )
        except CallError as error:
            failed = session.fail(error)
            status = status or failed
        else:
            session.say(f"{vm} shut down")
    return status


def main(argv: Sequence[str] | None = None) -> int:
    """Run `qvm-shutdown`; returns the exit status."""
    return run(PROG, build_parser, argv)


if __name__ == "__main__":
    sys.exit(main())
