"""`qvm-calls`: lists the calls of services that run, and ends one."""

from __future__ import annotations

import sys

from pedos_protocol.errors import CallError

from pedos_cli import calls, output
from pedos_cli.answers import DONE, older_service, take
from pedos_cli.arguments import TELLING, Parser, UsageError, examples, vm_names
from pedos_cli.output import show
from pedos_cli.pages import answered
from pedos_cli.place import inside_vm, vm_here
from pedos_cli.run import run

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence

    from pedos_cli.run import Session

PROG = "qvm-calls"
ACTIONS = ("list", "end")
ID_LENGTH = 32
"""Characters of a call's id (128 bits, hexadecimal)."""
PREFIX_MIN = 4
"""Characters of an id that `end` asks for at least, as a slip of the finger is to end no other
call; any beginning that fits one call alone will do."""

HEADER = ("ID", "STATE", "SOURCE", "TARGET", "SERVICE", "USER", "AGE", "IN", "OUT", "ERR")

_HEX = frozenset("0123456789abcdef")


def build_parser() -> Parser:
    """Return the parser of `qvm-calls`."""
    parser = Parser(
        prog=PROG,
        description="List the calls of services between VMs that run now: who called whom, since "
        "when, and how many bytes went in and came out; or end one. Without an action, list.",
        epilog=examples(
            (PROG, "every call"),
            (f"{PROG} list work", "those that work made or serves"),
            (
                f"{PROG} end 3f9c01ab77de",
                "end one: its program gets exit status 125 and is told why",
            ),
        ),
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", dest="action", prog=PROG)
    listing = actions.add_parser(
        "list",
        help="the calls that run",
        description="List calls, the oldest first. IN is what the service was sent, OUT and ERR "
        "what it wrote to standard output and standard error, as far as the agents have told.",
        epilog=examples(
            (f"{PROG} list", "every call"),
            (f"{PROG} list work vault", "those that one of these VMs made or serves"),
            (f"{PROG} list --json", "for programs: whole ids, seconds and bytes"),
        ),
        level=2,
    )
    listing.add_argument("vms", metavar="VM", nargs="*", help="only calls of or to these VMs")
    listing.add_argument("--json", action="store_true", help="print JSON")
    listing.set_defaults(verb=list_calls)
    ending = actions.add_parser(
        "end",
        help="end a call",
        description="End calls: the service is killed with all that it has started (one that "
        "listens on a socket has its connection closed), and the calling program ends with status "
        "125 and the reason. Where a VM does not confirm the end within some seconds, the call may "
        "go on: that is said, and the status is 1.",
        epilog=examples(
            (f"{PROG} end 3f9c01ab77de", "the call with this id, or whose id begins so"),
            (f"{PROG} end 3f9c 81d0", "two of them"),
        ),
        level=2,
    )
    ending.add_argument("ids", metavar="CALL", nargs="+", help="a call's id, or how it begins")
    ending.set_defaults(verb=end_calls)
    return parser


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Return the arguments; raises UsageError, or SystemExit after showing help. Without an action
    it is `list`."""
    words = list(argv)
    at = next((at for at, word in enumerate(words) if not word.startswith("-")), None)
    if at is None:
        if not {"-h", *TELLING} & set(words):
            words.insert(0, "list")
    elif words[at] in ACTIONS:
        words.insert(0, words.pop(at))
    else:
        raise UsageError(
            f"'{show(words[at], 64)}' is no action: the actions are {', '.join(ACTIONS)}",
            f"{PROG} list {words[at]}" if words[at].isalnum() else None,
        )
    return build_parser().parse_args(words)


def list_calls(session: Session) -> int:
    """Print the calls, the oldest first."""
    wanted = vm_names(session.args.vms)
    found = listed(session)
    if wanted:
        found = [each for each in found if {each.get("source"), calls.target(each)} & {*wanted}]
    if session.args.json:
        output.put_json({"calls": found})
    elif found:
        output.table(map(row, found), HEADER)
    else:
        session.note("no call runs" + (f" of or to {', '.join(wanted)}" if wanted else ""))
    return DONE


def end_calls(session: Session) -> int:
    """End each call; continue after a failure and return the status of the first."""
    wanted = [checked_id(text) for text in session.args.ids]
    found = listed(session)
    status = DONE
    tried: set[str] = set()  # two words may name one call
    for prefix in wanted:
        try:
            call = one_that_begins(prefix, found)
            if calls.call_id(call) in tried:
                continue
            tried.add(calls.call_id(call))
            session.call("call.end", {"call": calls.call_id(call)}, calls.TIMEOUT_S)
        except CallError as error:
            failed = session.fail(error)
            status = status or failed
        else:
            session.say(f"{show(calls.call_id(call)[: calls.ID_SHOWN])} ended: {calls.what(call)}")
    return status


def listed(session: Session) -> list[dict[str, object]]:
    """Return all calls, the oldest first."""
    try:
        found, _ = answered(
            lambda method, params: session.call(method, params, calls.TIMEOUT_S), calls.call_pages()
        )
    except CallError as error:
        if error.code == "unknown_method" and inside_vm():
            message = f"only dom0's user may list and end calls, and here is {vm_here()}"
            raise CallError("denied", message, {}) from error
        raise older_service(error, "knows of no calls of services", "qvm-ls") from None
    return found


def checked_id(text: str) -> str:
    """Return `text` if it is an id or its beginning; UsageError if not."""
    lowered = text.lower()
    if not (PREFIX_MIN <= len(lowered) <= ID_LENGTH and set(lowered) <= _HEX):
        raise UsageError(
            f"'{show(text, 64)}' is not a call's id: {PREFIX_MIN} to {ID_LENGTH} hexadecimal "
            "digits, as the list shows them",
            PROG,
        )
    return lowered


def one_that_begins(prefix: str, among: Sequence[Mapping[str, object]]) -> Mapping[str, object]:
    """Return the one call whose id begins so; CallError if there is none, or more than one."""
    found = [each for each in among if calls.call_id(each).startswith(prefix)]
    if not found:
        message = f"no call runs whose id begins with {prefix}; what its service has left may"
        raise CallError("not_found", message, {"hint": PROG})
    if len(found) > 1:
        several = ", ".join(show(calls.call_id(each), ID_LENGTH) for each in found[:4])
        message = f"the ids of {len(found)} calls begin with {prefix}: {several}"
        raise CallError("usage", message, {"hint": f"{PROG} end CALL, with more of its characters"})
    return found[0]


def row(call: Mapping[str, object]) -> tuple[str, ...]:
    """Return the cells of a call under HEADER."""
    return (
        show(calls.call_id(call)[: calls.ID_SHOWN]),
        show(take(call, "state", str)),
        show(take(call, "source", str)),
        calls.target(call),
        calls.service(call),
        show(call.get("user") or output.NOTHING),
        calls.age(calls.seconds(call)),
        *(calls.size(call.get(stream)) for stream in ("stdin", "stdout", "stderr")),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run `qvm-calls`; returns the exit status."""
    return run(PROG, build_parser, argv, parse)


if __name__ == "__main__":
    sys.exit(main())
