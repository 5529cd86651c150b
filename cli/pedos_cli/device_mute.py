"""`qvm-device CLASS mute` and `unmute`: whether a VM hears anything of what it has."""

from __future__ import annotations

from pedos_protocol.errors import CallError

from pedos_cli.answers import DONE, error_in, older_service, take, take_maps
from pedos_cli.arguments import vm_name
from pedos_cli.place import inside_vm, vm_here
from pedos_cli.timeouts import MUTE_S

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pedos_cli.arguments import Parser
    from pedos_cli.run import Session


def add_arguments(parser: Parser) -> None:
    """Add what `mute` and `unmute` take."""
    parser.add_argument("vm", metavar="VM", help="the VM that listens (only in dom0)")
    parser.set_defaults(verb=run)


def run(session: Session) -> int:
    """Mute or unmute; returns the status of the first device whose source does not confirm it."""
    args = session.args
    vm, muted = vm_name(args.vm), args.action == "mute"
    params: dict[str, object] = {"device_class": args.device_class, "vm": vm, "muted": muted}
    try:
        answer = session.operate(
            "device.mute", params, MUTE_S, f"the {args.action} of {vm}", f"{args.command} list {vm}"
        )
    except CallError as error:
        if error.code == "unknown_method" and inside_vm():
            message = f"only dom0's user may {args.action} a VM, and here is {vm_here()}"
            raise CallError("denied", message, {}) from error
        raise older_service(error, "cannot mute a VM", f"{args.command} detach {vm}") from error
    status, confirmed = DONE, []
    for each in take_maps(answer, "results"):
        if (unconfirmed := error_in(each)) is not None:
            status = session.fail(unconfirmed) or status
        else:
            confirmed.append(f"{take(each, 'backend', str)}:{take(each, 'device', str)}")
    is_new = take(answer, "outcome", str) != "already"
    session.say((_muted if muted else _unmuted)(vm, confirmed, is_new=is_new))
    session.tell_beside(answer)
    return status


def _muted(vm: str, devices: list[str], *, is_new: bool) -> str:
    said = f"{vm} is muted" if is_new else f"{vm} is muted already"
    if not devices:
        return f"{said}: it will hear nothing of what it gets"
    return f"{said}: it hears nothing of {', '.join(devices)}, nor of what it gets"


def _unmuted(vm: str, devices: list[str], *, is_new: bool) -> str:
    said = f"{vm} is unmuted" if is_new else f"{vm} is not muted"
    return f"{said}: it may hear {', '.join(devices)}" if devices else said
