"""`qvm-device CLASS attach`: give a device to a VM, now or at each of its starts."""

from __future__ import annotations

from pedos_protocol.device_classes import CLASSES
from pedos_protocol.errors import CallError

from pedos_cli.answers import DONE, take
from pedos_cli.arguments import options, target_and_device
from pedos_cli.device_list import options_text
from pedos_cli.output import show
from pedos_cli.timeouts import ATTACH_S

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from pedos_cli.arguments import Parser
    from pedos_cli.run import Session


def add_arguments(parser: Parser) -> None:
    """Add what `attach` takes."""
    parser.add_argument("vm", metavar="VM", help="the VM that gets the device")
    parser.add_argument(
        "device", metavar="SOURCE:ID", help="the device, as the first column of list names it"
    )
    parser.add_argument(
        "-p", "--persistent", action="store_true",
        help="attach it at every start of VM too; the start fails if the device is missing",
    )  # fmt: skip
    parser.add_argument(
        "-o", "--option", metavar="NAME=VALUE", dest="options", action="append", default=[],
        help=f"an option of the class, such as {_example_options()}; repeatable",
    )  # fmt: skip
    parser.add_argument(
        "--ro", dest="read_only", action="store_true", help="the same as -o read-only=yes"
    )
    parser.set_defaults(verb=run)


def _example_options() -> str:
    *others, last = [each.shown_example for known in CLASSES for each in known.options]
    return f"{', '.join(others)} or {last}"


def run(session: Session) -> int:
    """Attach one device, or assign it when its VM does not run."""
    args = session.args
    vm, name = target_and_device(args.vm, args.device)
    asked = options(args.options, args.read_only)
    params: dict[str, object] = {
        "device_class": args.device_class,
        "vm": vm,
        "backend": name.backend,
        "device": name.id,
        "options": asked,
        "persistent": args.persistent,
    }
    try:
        answer = session.operate(
            "device.attach",
            params,
            ATTACH_S,
            f"the attach of {args.device} to {vm}",
            f"{args.command} list {vm}",
        )
    except CallError as error:
        status = session.fail(error, f"{args.command} explain {vm} {args.device}")
        if error.code == "denied":  # perhaps by a rule that was just edited and has an error
            session.warn_of_policy()
        return status
    session.say(f"{args.device} {_outcome(answer, vm, args.persistent)}")
    _warn_of_other_options(session, answer, vm, asked)
    if session.verbosity > 0 and answer.get("request"):
        session.say(f"request: {answer['request']}")
    if answer.get("policy_ok") is False:
        session.warn_of_policy()
    return DONE


def _warn_of_other_options(
    session: Session, answer: Mapping[str, object], vm: str, asked: Mapping[str, str]
) -> None:
    """Say so when the device is attached with other options than requested."""
    told = take(answer, "options", dict)
    options = {each.name: each for each in session.args.described.options}
    defaults = {name: each.default for name, each in options.items() if each.default is not None}
    real = {**defaults, **told}  # the answer may omit a default
    other = {
        name: real[name]
        for name, value in asked.items()
        if name in real
        and real[name] != (options[name].canonical(value) if name in options else value)
    }
    device = session.args.device
    if not told or not other:
        return
    if answer.get("outcome") == "attached":
        session.note(
            f"warning: {device} is attached with {options_text(other)}, as the device itself or "
            "the policy wants it"
        )
    else:
        session.note(
            f"warning: {device} stays attached with {options_text(other)}, which is not what was "
            f"asked for; to change it: {session.args.command} detach {vm} {device}"
        )


def _outcome(answer: Mapping[str, object], asked_for: str, persistent: bool) -> str:
    outcome = take(answer, "outcome", str)
    landed = answer.get("vm", asked_for)
    if landed is None:  # a VM does not learn which one
        return "was given to another VM, as dom0's policy wants it"
    vm = show(landed)
    instead = (
        "" if vm == asked_for else f", and not to {asked_for}, as the policy or dom0's user said"
    )
    if outcome == "assigned":
        return f"assigned to {vm}{instead}; it will be attached when {vm} starts"
    shown = dict(take(answer, "options", dict))
    frontend = shown.pop("frontend-dev", None)
    text = f"attached to {vm}"
    if outcome == "already":
        text = f"is already {text}"
    if frontend:
        text += f" as {frontend}"
    if shown:
        text += f" ({options_text(shown)})"
    text += instead
    if persistent:
        text += f"; assigned too, so it will be attached whenever {vm} starts"
    return text
