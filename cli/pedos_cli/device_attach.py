"""`qvm-device CLASS attach`: give a device to a VM, now or at each of its starts."""

from __future__ import annotations

from pedos_protocol.errors import CallError

from pedos_cli.answers import DONE, MESSAGE_MAX, landed, options_text, take
from pedos_cli.arguments import WILDCARD, UsageError, add_options, options, target_and_pinned
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
        "device", metavar="SOURCE:ID[:IDENTITY]",
        help="the device, as the first column of list names it; with an identity, as list -v shows "
        "it, it is attached only if it still has that",
    )  # fmt: skip
    parser.add_argument(
        "-p", "--persistent", action="store_true",
        help="attach it at every start of VM too; the start fails if the device is missing",
    )  # fmt: skip
    add_options(parser)
    parser.set_defaults(verb=run)


def run(session: Session) -> int:
    """Attach one device, or assign it when its VM does not run."""
    args = session.args
    vm, name = target_and_pinned(args.vm, args.device)
    if name.device is None:
        raise UsageError(
            f"'{WILDCARD}' is no device that can be attached: its id is meant, as list names it",
            f"{args.command} list",
        )
    device = f"{name.backend}:{name.id}"
    asked = options(args.options, args.read_only)
    params: dict[str, object] = {
        "device_class": args.device_class,
        "vm": vm,
        "backend": name.backend,
        "device": name.id,
        "options": asked,
        "persistent": args.persistent,
    }
    if name.known_identity is not None:  # an older service, which cannot check it, refuses it
        params["identity"] = name.known_identity
    try:
        answer = session.operate(
            "device.attach",
            params,
            ATTACH_S,
            f"the attach of {device} to {vm}",
            f"{args.command} list {vm}",
        )
    except CallError as error:
        return session.refused(error, f"{args.command} explain {vm} {device}")
    session.say(f"{device} {_outcome(answer, vm, args.persistent)}")
    _warn_of_other_options(session, answer, vm, device, asked)
    if answer.get("note"):
        session.note(show(answer["note"], MESSAGE_MAX))
    session.tell_beside(answer)
    return DONE


def _warn_of_other_options(
    session: Session, answer: Mapping[str, object], vm: str, device: str, asked: Mapping[str, str]
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
    vm, instead = landed(answer, asked_for)
    if vm is None:
        return f"was given to {instead}"
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
