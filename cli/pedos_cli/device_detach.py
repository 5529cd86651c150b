"""`qvm-device CLASS detach`: take one device, or all of the class, from a VM."""

from __future__ import annotations

from pedos_protocol.errors import CallError

from pedos_cli.answers import DONE, error_in, left_out, take, take_maps
from pedos_cli.arguments import WILDCARD, UsageError, target_and_pinned, vm_name
from pedos_cli.timeouts import DETACH_S

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from pedos_cli.arguments import Parser
    from pedos_cli.run import Session


def add_arguments(parser: Parser) -> None:
    """Add what `detach` takes."""
    parser.add_argument("vm", metavar="VM", help="the VM that has the device")
    parser.add_argument(
        "device", metavar="SOURCE:ID[:IDENTITY]", nargs="?",
        help="the device; with an identity, as list -v shows it, it is detached only if it still "
        "has that; without a device, every one of the class is detached from VM, and all its "
        "assignments of the class are removed",
    )  # fmt: skip
    parser.add_argument(
        "--force", action="store_true",
        help="detach it even if VM uses it (only in dom0); what VM has not written is lost",
    )  # fmt: skip
    parser.set_defaults(verb=run)


def run(session: Session) -> int:
    """Detach and unassign; goes on past a failure and returns the status of the first."""
    args = session.args
    named: str | None = None
    which: dict[str, str | None] = {"backend": None, "device": None}
    if args.device is None:
        vm = vm_name(args.vm)
    else:
        vm, name = target_and_pinned(args.vm, args.device)
        if name.device is None:
            raise UsageError(
                f"'{WILDCARD}' is no device that can be detached: its id is meant, as list names "
                "it",
                f"{args.command} list {vm}",
            )
        named = f"{name.backend}:{name.id}"
        which = {"backend": name.backend, "device": name.id}
        if name.known_identity is not None:  # an older service, which cannot check it, refuses it
            which["identity"] = name.known_identity
    params = {"device_class": args.device_class, "vm": vm, **which, "force": args.force}
    try:
        answer = session.operate(
            "device.detach",
            params,
            DETACH_S,
            f"the detach of {named or f'all {args.device_class} devices'} from {vm}",
            f"{args.command} list {vm}",
        )
    except CallError as error:
        return session.refused(error, _explain(args.command, vm, named))
    status = DONE
    results = take_maps(answer, "results")
    for result in results:
        failed = _tell(session, result, vm)
        status = status or failed
    gone = take_maps(answer, "unassigned") if "unassigned" in answer else []
    if gone:
        # Only here, as it imports much that most detaches do not need.
        from pedos_cli import device_unassign  # noqa: PLC0415

        for result in gone:
            failed = device_unassign.tell(session, result, vm)
            status = status or failed
    if count := left_out(answer, "unassigned"):
        session.say(f"{count} more, for which the answer has no room, no longer assigned to {vm}")
    if not results and not gone:
        session.say(f"no {args.device_class} device is attached or assigned to {vm}")
    session.tell_beside(answer)
    return status


def _tell(session: Session, result: Mapping[str, object], vm: str) -> int:
    """Print what became of one device and return the status that it alone would have."""
    device = f"{take(result, 'backend', str)}:{take(result, 'device', str)}"
    detached, unassigned = result.get("detached"), result.get("unassigned")
    status = DONE
    if (error := error_in(result)) is not None:
        status = session.fail(error, _explain(session.args.command, vm, device))
    if detached and unassigned:
        session.say(f"{device} detached from {vm}, and no longer assigned to it")
    elif detached:
        session.say(f"{device} detached from {vm}")
    elif unassigned:
        session.say(f"{device} no longer assigned to {vm}")
    return status


def _explain(command: str, vm: str, device: str | None) -> str | None:
    return f"{command} explain {vm} {device} --verb detach" if device else None
