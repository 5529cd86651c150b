"""`qvm-start`: starts VMs, with the devices that are assigned to them."""

from __future__ import annotations

import sys

from pedos_protocol.errors import CallError

from pedos_cli.answers import DONE, take
from pedos_cli.arguments import Parser, examples, vm_names
from pedos_cli.run import run
from pedos_cli.timeouts import START_S

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from pedos_cli.run import Session

PROG = "qvm-start"


def build_parser() -> Parser:
    """Return the parser of `qvm-start`."""
    parser = Parser(
        prog=PROG,
        description="Start VMs and attach the devices that are assigned to them. A VM does not "
        "start while one of its assigned devices is missing or taken.",
        epilog=examples((f"{PROG} work", "start work"), (f"{PROG} sys-usb work", "in this order")),
    )
    parser.add_argument("vms", metavar="VM", nargs="+", help="the VMs to start, in this order")
    parser.set_defaults(verb=start)
    return parser


def start(session: Session) -> int:
    """Start each VM; continue after a failure and return the status of the first."""
    status = DONE
    for vm in vm_names(session.args.vms):
        try:
            answer = session.operate(
                "vm.start", {"vm": vm}, START_S, f"the start of {vm}", f"qvm-ls {vm}"
            )
        except CallError as error:
            failed = session.fail(error)
            status = status or failed
            continue
        line = f"{vm} started (domain {take(answer, 'domid', int)})"
        attached = take(answer, "attached", list)
        if attached:
            line += "; attached: " + ", ".join(str(each) for each in attached)
        session.say(line)
    return status


def main(argv: Sequence[str] | None = None) -> int:
    """Run `qvm-start`; returns the exit status."""
    return run(PROG, build_parser, argv)


if __name__ == "__main__":
    sys.exit(main())
