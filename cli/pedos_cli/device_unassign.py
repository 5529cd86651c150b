"""`qvm-device CLASS unassign`: take an assignment of a VM away, or all of the class."""

from __future__ import annotations

from pedos_protocol.errors import CallError, ProtocolError

from pedos_cli import client
from pedos_cli.answers import DONE, error_in, older_service, take, take_maps
from pedos_cli.arguments import target_and_pinned, vm_name
from pedos_cli.assign_words import is_to, stays
from pedos_cli.device_assign import add_pinned, matched
from pedos_cli.devices import TIMEOUT_S, assignment_name, device_name, list_devices
from pedos_cli.output import show
from pedos_cli.timeouts import UNASSIGN_S

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pedos_cli.arguments import Parser, Pinned
    from pedos_cli.run import Session


def add_arguments(parser: Parser) -> None:
    """Add what `unassign` takes."""
    parser.add_argument("vm", metavar="VM", help="the VM that the device is assigned to")
    add_pinned(parser, "?")
    parser.set_defaults(verb=run)


def run(session: Session) -> int:
    """Unassign; goes on past a failure and returns the status of the first."""
    args = session.args
    which: dict[str, str | None] = {"backend": None, "device": None, "identity": None}
    if args.device is None:
        vm = vm_name(args.vm)
    else:
        vm, name = target_and_pinned(args.vm, args.device)
        which = {"backend": name.backend, **_which(session, name)}
    params: dict[str, object] = {"device_class": args.device_class, "vm": vm, **which}
    try:
        answer = session.operate(
            "device.unassign",
            params,
            UNASSIGN_S,
            f"the unassignment of {args.device or f'all {args.device_class} devices'} from {vm}",
            f"{args.command} list --assignments {vm}",
        )
    except CallError as error:
        what = "knows only assignments by port, which detach takes away"
        hint = f"{args.command} detach {vm} {args.device or ''}".rstrip()
        return session.refused(older_service(error, what, hint), _explain(args.command, vm, params))
    status = DONE
    results = take_maps(answer, "results")
    for result in results:
        failed = tell(session, result, vm)
        status = status or failed
    gone = [each for each in results if each.get("unassigned")]
    if gone and session.verbosity >= 0:
        _tell_what_stays(session, gone, vm)
    if not results:
        session.say(f"no {args.device_class} device is assigned to {vm}")
    session.tell_beside(answer)
    return status


def _which(session: Session, name: Pinned) -> dict[str, str | None]:
    """Return the port or the identity of the assignment."""
    if matched(name, session.args.match) != "device":
        return {"device": name.device, "identity": name.known_identity}
    if name.device is None or name.known_identity is not None:
        return {"device": None, "identity": name.known_identity}
    return {"device": None, "identity": _identity_now(session, name)}


def _identity_now(session: Session, name: Pinned) -> str:
    """Return the identity of the device that is there now, which the service tells."""
    args = session.args
    at = f"{name.backend}:{name.device}"
    devices = _devices_of(session, name.backend)
    here = next((each for each in devices if device_name(each) == at), None)
    if here is not None and take(here, "identity", str):
        return take(here, "identity", str)
    if here is None:
        why = f"{at} is not there, so its identity is not known"
    else:
        why = f"{at} has no identity now"
    hint = f"{args.command} list --assignments {args.vm}"
    raise CallError("not_found", why, {"hint": hint})


def tell(session: Session, result: Mapping[str, object], vm: str) -> int:
    """Print what became of one assignment and return the status that it alone would have."""
    backend = take(result, "backend", str)
    what = show(assignment_name(result, backend))
    status = DONE
    if (error := error_in(result)) is not None:
        status = session.fail(error, _explain(session.args.command, vm, result))
    if result.get("unassigned"):
        session.say(f"{what} no longer assigned to {vm}")
    return status


def _tell_what_stays(session: Session, gone: Sequence[Mapping[str, object]], vm: str) -> None:
    """Name the devices that the VM still has, and had by one of these assignments."""
    try:
        devices = _devices_of(session, vm)
    except (CallError, ProtocolError, client.Unreachable):  # it is only said beside the result
        return
    for device in devices:
        users = [take(each, "vm", str) for each in take_maps(device, "attachments")]
        if vm in users and any(is_to(each, device) for each in gone):
            session.say(f"  {stays(device_name(device), vm)}")


def _devices_of(session: Session, vm: str) -> list[dict[str, object]]:
    devices, _missing, _answer = list_devices(
        lambda method, params: session.call(method, params, TIMEOUT_S),
        session.args.device_class,
        [vm],
    )
    return devices


def _explain(command: str, vm: str, result: Mapping[str, object]) -> str | None:
    if result.get("device") is None:
        return None
    return f"{command} explain {vm} {result.get('backend')}:{result['device']} --verb assign"
