"""`qvm-device CLASS list`: what devices there are and who uses them."""

from __future__ import annotations

from pedos_protocol.names import natural_key

from pedos_cli import output
from pedos_cli.arguments import UsageError, vm_names
from pedos_cli.devices import device_name, list_devices
from pedos_cli.run import DONE, take, take_maps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from pedos_cli.arguments import Parser
    from pedos_cli.run import Session

TIMEOUT_S = 10.0
"""Seconds for a list: the service answers from memory and never asks a VM."""

HEADER = ("BACKEND:DEVID", "DESCRIPTION", "USED BY")
SIZE_STEP = 1024


def add_arguments(parser: Parser) -> None:
    """Add what `list` takes."""
    parser.add_argument(
        "vms", metavar="VM", nargs="*", help="list what is in or attached to these VMs only"
    )
    parser.add_argument(
        "--all", action="store_true", help="every VM, as when no VM is named (the default)"
    )
    parser.add_argument(
        "--exclude", metavar="VM", nargs="+", action="extend", default=[],
        help="with --all: leave out these VMs",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON, with every detail")
    parser.set_defaults(verb=run)


def run(session: Session) -> int:
    """List the devices of one class."""
    args = session.args
    if args.exclude and not args.all:
        raise UsageError("--exclude requires --all")
    if args.vms and args.all:
        raise UsageError("--all already means every VM: give either --all or VM names")
    devices, policy = list_devices(
        lambda method, params: session.call(method, params, TIMEOUT_S),
        args.device_class,
        vm_names(args.vms) or None,
        vm_names(args.exclude),
    )
    if args.json:
        output.put_json({"devices": devices, "policy": policy})
    elif devices:
        output.table((_row(each, session.verbosity > 0) for each in devices), HEADER)
    else:
        session.note(f"there are no {args.device_class} devices here")
    if policy is not None:
        session.warn_of_policy(policy)
    return DONE


def _row(device: Mapping[str, object], details: bool) -> tuple[str, str, str]:
    description = str(device.get("description") or "")
    if not device.get("present", True):
        description = "(not present)"
    elif details and (more := _details(device)):
        description = f"{description} [{more}]".lstrip()
    return device_name(device), description, ", ".join(used_by(device))


def used_by(device: Mapping[str, object]) -> list[str]:
    """Return who has the device, one text each: attached first, `*` marking who is assigned it."""
    attached = {take(each, "vm", str): each for each in take_maps(device, "attachments")}
    assigned = {take(each, "vm", str): each for each in take_maps(device, "assignments")}
    users = [
        _user(f"*{vm}" if vm in assigned else vm, "attached", attached[vm])
        for vm in sorted(attached, key=natural_key)
    ]
    users += [
        _user(f"*{vm}", "assigned", assigned[vm])
        for vm in sorted(assigned.keys() - attached.keys(), key=natural_key)
    ]
    if not attached and device.get("busy"):
        users.append(f"{device.get('backend')} (in use: {device['busy']})")
    return users


def _user(name: str, how: str, use: Mapping[str, object]) -> str:
    options = options_text(take(use, "options", dict))
    return f"{name} ({how}: {options})" if options else f"{name} ({how})"


def options_text(options: Mapping[str, object]) -> str:
    """Return options as they are shown everywhere: `frontend-dev=xvdi, read-only=no`."""
    return ", ".join(f"{name}={options[name]}" for name in sorted(options))


def _details(device: Mapping[str, object]) -> str:
    words = []
    size = device.get("size")
    if isinstance(size, int):
        words.append(size_text(size))
    if device.get("read_only"):
        words.append("read-only")
    if device.get("parent"):
        words.append(f"part of {device['parent']}")
    if device.get("identity"):
        words.append(f"identity {device['identity']}")
    return ", ".join(words)


def size_text(size: int) -> str:
    """Return `size` bytes for people: `64.0 MiB`."""
    value, unit = float(size), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB", "PiB"):
        if value < SIZE_STEP:
            break
        value, unit = value / SIZE_STEP, larger
    return f"{size} B" if unit == "B" else f"{value:.1f} {unit}"
