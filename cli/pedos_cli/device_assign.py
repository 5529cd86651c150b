"""`qvm-device CLASS assign`: which VM is to get a device, and when."""

from __future__ import annotations

from pedos_protocol.errors import CallError

from pedos_cli.answers import DONE, landed, older_service, options_text, take
from pedos_cli.arguments import WILDCARD, UsageError, add_options, options, target_and_pinned
from pedos_cli.assign_words import WHEN, now_lines
from pedos_cli.devices import assignment_name
from pedos_cli.output import show
from pedos_cli.timeouts import ASSIGN_S

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from pedos_cli.arguments import Parser, Pinned
    from pedos_cli.run import Session


def add_arguments(parser: Parser) -> None:
    """Add what `assign` takes."""
    parser.add_argument("vm", metavar="VM", help="the VM that is to get the device")
    add_pinned(parser, None)
    modes = parser.add_mutually_exclusive_group()
    for mode, names, what in (
        ("auto-attach", ("--auto", "--auto-attach"),
         "attach it when VM starts, if it is there, and when it appears while VM runs: the "
         "default, but for a class whose devices a VM can only start with"),
        ("ask", ("--ask", "--ask-to-attach"), "the same, but ask dom0's user each time"),
        ("required", ("-r", "--required"), "attach it when VM starts, and do not start VM without"),
    ):  # fmt: skip
        modes.add_argument(*names, dest="mode", action="store_const", const=mode, help=what)
    add_options(parser)
    parser.add_argument(
        "--dry-run", action="store_true",
        help="only show what would happen if VM were to get the device now",
    )  # fmt: skip
    parser.set_defaults(verb=run)


def add_pinned(parser: Parser, nargs: str | None) -> None:
    """Add the device that an assignment is to, and what of it counts."""
    parser.add_argument(
        "device", metavar="SOURCE:ID[:IDENTITY]", nargs=nargs,
        help="the device, as the first column of list names it; * in place of ID or IDENTITY is "
        "any (quote it from the shell)",
    )  # fmt: skip
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--port", "--only-port", dest="match", action="store_const", const="port",
        help="whatever device is at this port: the same as SOURCE:ID:*",
    )  # fmt: skip
    what.add_argument(
        "--device", "--only-device", dest="match", action="store_const", const="device",
        help="the device that is there now, at whatever port: the same as SOURCE:*:IDENTITY",
    )  # fmt: skip


def matched(name: Pinned, option: str | None) -> str:
    """Return what the assignment is to: "port", "device" or "both". UsageError for a name that
    means neither, or other than the option."""
    if name.id == WILDCARD and name.known_identity is None:
        raise UsageError(
            f"{name.backend}:{WILDCARD} is every device: its id is meant, as list names it, or "
            f"{name.backend}:{WILDCARD}:IDENTITY, with an identity as list -v shows it"
        )
    named = "device" if name.id == WILDCARD else "port" if name.identity == WILDCARD else None
    if option is not None and named not in (None, option):
        means = "at any port" if named == "device" else "any device there"
        raise UsageError(f"--{option} contradicts {name}, which is {means}")
    return option or named or "both"


def run(session: Session) -> int:
    """Assign a device to a VM, or show what would happen."""
    args = session.args
    vm, name = target_and_pinned(args.vm, args.device)
    params: dict[str, object] = {
        "device_class": args.device_class,
        "vm": vm,
        "backend": name.backend,
        "device": name.device,
        "identity": name.known_identity,
        "match": matched(name, args.match),
        "mode": args.mode or ("auto-attach" if args.described.live else "required"),
        "options": options(args.options, args.read_only),
        "dry_run": args.dry_run,
    }
    try:
        answer = session.operate(
            "device.assign",
            params,
            ASSIGN_S,
            f"the assignment of {args.device} to {vm}",
            f"{args.command} list --assignments {vm}",
        )
    except CallError as error:
        at = name.device
        explain = f"{args.command} explain {vm} {name.backend}:{at} --verb assign" if at else None
        hint = f"{args.command} attach --persistent {vm} {name.backend}:{at or 'ID'}"
        return session.refused(older_service(error, "assigns devices only by port", hint), explain)
    if not args.dry_run:
        session.say(_outcome(answer, name.backend, vm, str(params["mode"])))
    if answer.get("now") is not None:
        for line in now_lines(
            answer,
            name.backend,
            mode=args.mode,
            live=args.described.live,
            dry_run=args.dry_run,
        ):
            session.say(f"now: {line}" if args.dry_run else f"  now: {line}")
    session.tell_beside(answer)
    return DONE


def _outcome(answer: Mapping[str, object], backend: str, asked_for: str, mode: str) -> str:
    what = show(assignment_name(answer, backend))
    vm, instead = landed(answer, asked_for)
    if vm is None:
        return f"{what} assigned to {instead}"
    outcome = take(answer, "outcome", str)
    how = {"already": "is already assigned", "changed": "is now assigned"}.get(outcome, "assigned")
    text = f"{what} {how} to {vm}"
    if given := take(answer, "options", dict):
        text += f" ({options_text(given)})"
    return f"{text}{instead}; {WHEN[mode].format(vm=vm)}"
