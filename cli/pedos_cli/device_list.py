"""`qvm-device CLASS list`: what devices there are and who uses them."""

from __future__ import annotations

from pedos_protocol.device_classes import class_named
from pedos_protocol.names import natural_key

from pedos_cli import output
from pedos_cli.answers import DONE, left_out, options_text, take, take_maps
from pedos_cli.arguments import UsageError, vm_names
from pedos_cli.devices import TIMEOUT_S, device_name, list_devices
from pedos_cli.output import NOTHING

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pedos_cli.arguments import Parser
    from pedos_cli.run import Session

HEADER = ("BACKEND:DEVID", "DESCRIPTION", "USED BY")
DETAILED_HEADER = ("BACKEND:DEVID", "DESCRIPTION", "DETAILS", "USED BY")
SIZE_STEP = 1024

REQUIRED = "required"
"""The mode of an assignment that needs no word: a service that names none knows no other."""


def add_arguments(parser: Parser) -> None:
    """Add what `list` takes."""
    parser.add_argument(
        "vms", metavar="VM", nargs="*", help="list what is in or attached to these VMs only"
    )
    parser.add_argument(
        "--all", action="store_true", help="every VM; this is the default if no VM is named"
    )
    parser.add_argument(
        "--exclude", metavar="VM", nargs="+", action="extend", default=[],
        help="with --all: leave out these VMs",
    )  # fmt: skip
    parser.add_argument(
        "-s", "--assignments", action="store_true",
        help="list what is assigned, in which mode, and whether it is there, in place of devices",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON, with every detail")
    parser.set_defaults(verb=run)


def run(session: Session) -> int:
    """List the devices of one class, or the assignments."""
    args = session.args
    if args.exclude and not args.all:
        raise UsageError("--exclude requires --all")
    if args.vms and args.all:
        raise UsageError("--all already means every VM: give either --all or VM names")
    vms, exclude = vm_names(args.vms) or None, vm_names(args.exclude)
    if args.assignments:
        from pedos_cli import device_assignments  # noqa: PLC0415  (most lists are of devices)

        return device_assignments.run(session, vms, exclude)
    devices, missing, answer = list_devices(
        lambda method, params: session.call(method, params, TIMEOUT_S),
        args.device_class,
        vms,
        exclude,
    )
    if args.json:
        listed = {"devices": devices, "policy": answer.get("policy")}
        if missing:
            listed |= {"missing": missing, "missing_vms": answer.get("missing_vms")}
        listed |= {key: answer[key] for key in ("muted",) if answer.get(key)}
        output.put_json(listed)
    elif devices:
        if session.verbosity > 0:
            output.table(map(detailed_row, devices), DETAILED_HEADER)
        else:
            output.table(map(row, devices), HEADER)
    elif not missing:
        session.note(f"there are no {args.device_class} devices here")
    for line in (*missing_lines(missing, answer.get("missing_vms")), *muted_lines(answer)):
        session.note(line)
    if (policy := answer.get("policy")) is not None:
        session.warn_of_policy(policy)
    return DONE


def missing_lines(missing: list[dict[str, object]], vms: object) -> Iterator[str]:
    """Return what the list leaves out, and why: one line for each VM that it says so of."""
    for each in missing:
        backend, count = output.show(take(each, "backend", str)), each.get("count")
        device_class = output.show(take(each, "device_class", str))
        reason = output.show(take(each, "reason", str))
        if count is None:
            yield f"{backend} may have {device_class} devices that are not listed: {reason}"
        else:
            yield f"{backend} has {count} {device_class} devices that are not listed: {reason}"
    if isinstance(vms, int) and vms > len(missing):
        yield f"{vms - len(missing)} more VMs have devices that are not listed"


def row(device: Mapping[str, object]) -> tuple[str, str, str]:
    """Return the cells of a device under HEADER."""
    return device_name(device), _description(device), ", ".join(used_by(device))


def detailed_row(device: Mapping[str, object]) -> tuple[str, str, str, str]:
    """Return the cells of a device under DETAILED_HEADER."""
    # In a column of their own: within the description a device could tell others of itself.
    name, description, users = row(device)
    return name, description, _details(device) or NOTHING, users


def _description(device: Mapping[str, object]) -> str:
    """What the device says of itself; a word of ours in its place stands in parentheses."""
    if not device.get("present", True):
        return "(not present)"
    text = str(device.get("description") or "")
    return f"\\x28{text[1:]}" if text.startswith("(") else text or NOTHING


def used_by(device: Mapping[str, object]) -> list[str]:
    """Return who has the device, one text each: attached first, `*` marking who is assigned it."""
    attached = {take(each, "vm", str): each for each in take_maps(device, "attachments")}
    assigned = {take(each, "vm", str): each for each in take_maps(device, "assignments")}
    use = None if attached else device.get("busy")
    users = [
        _user(f"*{vm}" if vm in assigned else vm, _attached(attached[vm]), attached[vm])
        for vm in sorted(attached, key=natural_key)
    ]
    users += [
        _user(f"*{vm}", _assigned(device, assigned[vm]), assigned[vm])
        for vm in sorted(assigned.keys() - attached.keys(), key=natural_key)
    ]
    if more := left_out(device, "assignments"):
        users.append(f"{more} more (assigned, not listed)")
    if (conflict := device.get("conflict")) is not None:
        users.append(f"attached to none by itself ({_enclosed(str(conflict))})")
    described = class_named(str(device.get("device_class")))
    is_heard = described is not None and described.heard  # what is lacking is no use of it
    unfit = "cannot record it" if is_heard else "in use"
    for mark, text in (("cannot look at it now", device.get("stale")), (unfit, use)):
        if text:
            users.append(f"{device.get('backend')} ({mark}: {_enclosed(str(text))})")
            break
    return users


def _attached(use: Mapping[str, object]) -> str:
    # The service's own words, which name at most a VM.
    why, unconfirmed = use.get("left_over"), use.get("unconfirmed")
    words = [f"left over, as {output.show(why)}" if why else "attached"]
    if use.get("listening"):
        words.append("listening")
    if use.get("muted"):
        may_hear = f"to be muted, and MAY STILL HEAR, as {output.show(unconfirmed)}"
        words.append(may_hear if unconfirmed else "muted")
    elif unconfirmed:
        words.append(f"may still be muted, as {output.show(unconfirmed)}")
    return ", ".join(words)


def muted_lines(answer: Mapping[str, object]) -> Iterator[str]:
    """Return which VMs are muted, whatever they have; an older service knows none."""
    muted = answer.get("muted")
    if isinstance(muted, list) and muted:
        yield f"muted, whatever they get: {', '.join(map(output.show, muted))}"


def _assigned(device: Mapping[str, object], use: Mapping[str, object]) -> str:
    orphans, mode = device.get("orphans"), use.get("mode", REQUIRED)
    if isinstance(orphans, list) and use["vm"] in orphans:
        return "assigned to a VM that was removed"
    return "assigned" if mode == REQUIRED else f"assigned, {output.show(mode)}"


def _user(name: str, how: str, use: Mapping[str, object]) -> str:
    options = options_text(take(use, "options", dict))
    return f"{name} ({how}: {options})" if options else f"{name} ({how})"


def _enclosed(text: str) -> str:
    """A VM's text as it stands in parentheses of ours, which it cannot leave."""
    return text.replace("(", "\\x28").replace(")", "\\x29")


def _details(device: Mapping[str, object]) -> str:
    words = []
    size = device.get("size")
    if isinstance(size, int):
        words.append(size_text(size))
    if device.get("read_only"):
        words.append("read-only")
    if parent := device.get("parent"):
        its_class = device.get("parent_class")
        is_same = its_class in (None, device.get("device_class"))
        words.append(f"part of {parent}" if is_same else f"part of {its_class} {parent}")
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
