"""`qvm-device CLASS info`: everything that is known of a device, and what the rules say of it."""

from __future__ import annotations

from pedos_protocol.errors import CallError
from pedos_protocol.kind_words import interfaces
from pedos_protocol.kinds import letter_of
from pedos_protocol.reasons import says_more

from pedos_cli import output
from pedos_cli.answers import DONE, left_out, older_service, rule_text, take, take_maps
from pedos_cli.arguments import device_name
from pedos_cli.device_list import missing_lines, row, size_text, used_by
from pedos_cli.devices import TIMEOUT_S, list_devices
from pedos_cli.output import show

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from pedos_protocol.device_classes import DeviceClass, Option

    from pedos_cli.arguments import Parser
    from pedos_cli.run import Session

    Answer = Mapping[str, object]

PARTS = {
    "block": ("serial number", "partition", "file system"),
    "usb": ("vendor", "product", "serial number"),
    "pci": ("vendor", "device", ""),
}
"""What the parts of an identity are, by class, before its interfaces."""

VALUES_MAX = 4
"""Values of an option that are shown; of more the lowest and the highest."""

LABEL_WIDTH = 18
"""Columns before a value: two blanks, the longest label, and a blank."""


def add_arguments(parser: Parser) -> None:
    """Add what `info` takes."""
    parser.add_argument(
        "device", metavar="SOURCE:ID", nargs="?", help="the device (default: each of the class)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(verb=run)


def run(session: Session) -> int:
    """Show one device of a class, or all of them."""
    args = session.args
    try:
        if args.device is not None:
            name = device_name(args.device)
            answers = [_ask(session, name.backend, name.id)]
        else:
            answers = _ask_for_all(session)
    except CallError as error:
        what = "tells of a device only in the list"
        raise older_service(error, what, f"{args.command} list -v") from error
    if args.json:
        output.put_json({"devices": [_in_full(answer) for answer in answers]})
    for number, answer in enumerate(() if args.json else answers):
        if number:
            output.put("")
        for line in _lines(answer, args.described):
            output.put(line)
    session.warn_of_policy()
    return DONE


def _ask(session: Session, backend: str, device: str) -> dict[str, object]:
    params: dict[str, object] = {
        "device_class": session.args.device_class,
        "backend": backend,
        "device": device,
    }
    return session.call("device.info", params, TIMEOUT_S)


def _ask_for_all(session: Session) -> list[dict[str, object]]:
    args = session.args
    devices, missing, answer = list_devices(
        lambda method, params: session.call(method, params, TIMEOUT_S), args.device_class
    )
    found = []
    for device in devices:
        try:
            found.append(_ask(session, take(device, "backend", str), take(device, "device", str)))
        except CallError as error:
            if error.code != "not_found":
                raise
            # It was unplugged since.
    if not found and not missing:
        session.note(f"there are no {args.device_class} devices here")
    for line in missing_lines(missing, answer.get("missing_vms")):
        session.note(line)
    return found


def _in_full(answer: Answer) -> dict[str, object]:
    """Return the answer with what is shown beside it: the identity in parts, kinds in words."""
    device = take(answer, "device", dict)
    kinds = [{"kind": kind, "words": words} for kind, words in _interfaces(device)]
    return {**answer, "identity_parts": dict(_parts(device)), "interfaces": kinds}


def _lines(answer: Answer, described: DeviceClass) -> Iterator[str]:
    """Yield what people are shown of one device: a line for each thing, with its label."""
    device = take(answer, "device", dict)
    name, description, _ = row(device)
    yield f"{show(name)}  {show(description)}"
    for label, texts in _fields(answer, device, described):
        for at, text in enumerate(texts):
            yield f"{'' if at else f'  {label}:':{LABEL_WIDTH}} {text}"
    decided = take_maps(answer, "decided")
    if decided:
        yield "  if dom0's user attaches it:"
    for each in decided:
        yield from _decided_lines(each)
    if more := left_out(answer, "vms"):
        yield f"    {more} VMs more, for which the answer has no room"


def _fields(
    answer: Answer, device: Answer, described: DeviceClass
) -> Iterator[tuple[str, Iterable[str]]]:
    """Yield labels, each with the lines that it stands before; none: it is left out."""
    lasting, size = take(answer, "lasting", str), device.get("size")
    yield "class", [described.one]
    yield "also called", [show(device["alias"])] if device.get("alias") else []
    yield "identity", [show(device.get("identity") or "(none)")]
    for part, text in _parts(device):
        yield f"  {part}", [show(text) or output.NOTHING]
    yield "interfaces", [f"{kind}  {words}" for kind, words in _interfaces(device)]
    yield "in rules", [show(take(answer, "argument", str))]
    yield "recognised by", [show(lasting) or "its place alone"]
    yield "size", [size_text(size)] if isinstance(size, int) else []
    yield "access", ["read-only"] if device.get("read_only") else []
    yield "used by", map(show, used_by(device))
    yield "cannot be lent", map(show, take(answer, "unfit", list))
    yield "not beside", _relatives(answer, device)
    yield "options", [", ".join(map(_option_text, described.options)) or "none"]


def _parts(device: Answer) -> list[tuple[str, str]]:
    """Return the parts of the identity before its interfaces, and what they are."""
    device_class = take(device, "device_class", str)
    identity = take(device, "identity", str)
    names = PARTS.get(device_class, ())
    texts = identity.split(":", len(names))
    if not names or len(texts) < len(names) + bool(letter_of(device_class)):
        return []
    return [each for each in zip(names, texts, strict=False) if each[0]]


def _interfaces(device: Answer) -> list[tuple[str, str]]:
    identity = take(device, "identity", str)
    # Nothing is known of a device that is only assigned: that is no property of it.
    if not device.get("present", True):
        return []
    return interfaces(take(device, "device_class", str), identity)


def _relatives(answer: Answer, device: Answer) -> Iterator[str]:
    for each in take_maps(answer, "relatives"):
        name = f"{take(each, 'device_class', str)} {device.get('backend')}:{each.get('device')}"
        vms = ", ".join(map(show, take(each, "vms", list)))
        yield show(name) + (f" (attached to {vms})" if vms else "")
    if more := left_out(answer, "relatives"):
        yield f"{more} more"


def _option_text(option: Option) -> str:
    values = option.values
    if len(values) > VALUES_MAX:
        return f"{option.name}={min(values)}..{max(values)}"
    return f"{option.name}={'|'.join(values)}"


def _decided_lines(decided: Answer) -> Iterator[str]:
    verdict = take(decided, "verdict", str)
    vms = ", ".join(map(show, take(decided, "vms", list)))
    extra = ", read-only" if decided.get("read_only") and verdict != "deny" else ""
    if target := decided.get("target"):
        extra += f", which sends it to {show(target)}"
    yield f"    {show(verdict):5}  {vms}{extra}"
    yield f"           {rule_text(decided)}"
    if says_more(decided.get("reason"), decided.get("rule"), verdict):
        yield f"           {show(decided.get('reason'))}"
