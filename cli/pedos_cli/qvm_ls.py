"""`qvm-ls`: lists the VMs, whether they run, and whether their agent is connected."""

from __future__ import annotations

import sys

from pedos_protocol.errors import CallError
from pedos_protocol.names import natural_key

from pedos_cli import output
from pedos_cli.answers import DONE, take, take_maps
from pedos_cli.arguments import Parser, examples, vm_names
from pedos_cli.run import run

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pedos_cli.run import Session

PROG = "qvm-ls"
TIMEOUT_S = 10.0
"""Seconds for a list: the service answers from memory."""

HEADER = ("NAME", "STATE", "DOMID", "AGENT")


def build_parser() -> Parser:
    """Return the parser of `qvm-ls`."""
    parser = Parser(
        prog=PROG,
        description="List VMs: name, state, domain id, and whether the agent is connected.",
        epilog=examples(
            (PROG, "every VM"),
            (f"{PROG} work sys-usb", "these two"),
            (f"{PROG} --json", "for programs"),
        ),
    )
    parser.add_argument("vms", metavar="VM", nargs="*", help="only these VMs")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(verb=list_vms)
    return parser


def list_vms(session: Session) -> int:
    """Print the VMs; report a name that no VM has as an error after the others."""
    wanted = vm_names(session.args.vms)
    answer = session.call("vm.list", {}, TIMEOUT_S)
    vms = sorted(take_maps(answer, "vms"), key=lambda each: natural_key(take(each, "name", str)))
    known = {take(each, "name", str) for each in vms}
    if wanted:
        vms = [each for each in vms if each["name"] in wanted]
    if session.args.json:
        output.put_json({"vms": vms})
    elif vms:
        output.table(map(row, vms), HEADER)
    status = DONE
    for name in wanted:
        if name not in known:
            missing = CallError("not_found", f"no VM named '{name}'", {"hint": PROG})
            status = session.fail(missing)
    return status


def row(vm: Mapping[str, object]) -> tuple[str, str, str, str]:
    """Return the cells of a VM under HEADER."""
    domid = vm.get("domid")
    return (
        take(vm, "name", str),
        take(vm, "state", str),
        "-" if domid is None else str(domid),
        "yes" if vm.get("agent") else "-",
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run `qvm-ls`; returns the exit status."""
    return run(PROG, build_parser, argv)


if __name__ == "__main__":
    sys.exit(main())
