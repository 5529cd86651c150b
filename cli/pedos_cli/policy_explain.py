"""`qvm-policy explain`: shows the policy's answer to one request, the deciding rule, and why."""

from __future__ import annotations

from pedos_protocol.device_classes import VERBS
from pedos_protocol.errors import CallError, ProtocolError
from pedos_protocol.kind_words import interfaces
from pedos_protocol.kinds import UNKNOWN, letter_of, open_part
from pedos_protocol.names import is_identity, is_vm_name, parse_device_class
from pedos_protocol.reasons import says_more

from pedos_cli import output, policy_engine, policy_files
from pedos_cli.answers import DONE, left_out, rule_text, take, take_maps
from pedos_cli.arguments import UsageError, device_name
from pedos_cli.device_explain import left_out_lines
from pedos_cli.devices import list_devices
from pedos_cli.output import show
from pedos_cli.place import inside_vm, vm_here

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Mapping

    from pedos_cli.arguments import Parser
    from pedos_cli.run import Session

TIMEOUT_S = 10.0
"""Seconds for an explanation: the policy is in the service's memory."""

DEFAULT_TARGET = "@default"
FIELDS = ("service", "argument", "source", "target")
SERVICE_CHARACTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")
VM_CHARACTERS = SERVICE_CHARACTERS | frozenset("@:")

DESCRIPTION = (
    "Show the policy's verdict on a request, which is written as in a rule; which rule decides, "
    "and with -v why no earlier rule matched. The command asks the running service, so the answer "
    "is that of the policy in force, and a device's IDENTITY may be left out; with --policy-dir, "
    "--with, --without or --system the files are read instead, and no service is needed. The "
    "service's answer has room for some hundred rules and counts the rest; of files all are "
    "shown. With --mine a user in a VM learns that VM's own verdict, and nothing else."
)
EXAMPLES = (
    (
        "qvm-policy explain device.attach.block +sys-usb:sda work work",
        "may work attach this disk to itself",
    ),
    (
        "qvm-policy explain -v device.attach.usb +sys-usb:1-2 dom0 vault",
        "may dom0's user give this to vault, with every rule that was tried",
    ),
    (
        "qvm-policy explain device.attach.usb +sys-usb:1-2:0781:5581:x:u080650u030101 dom0 work",
        "what if there were such a device: a stick with a keyboard in it",
    ),
    (
        "qvm-policy explain --with 30-user.policy=draft app.Open + work vault",
        "the answer with the file draft in its place",
    ),
    (
        "qvm-policy explain --mine device.attach.block +sys-usb:sda",
        "inside a VM: may this VM attach it",
    ),
)


def add_arguments(parser: Parser) -> None:
    """Add what `explain` takes."""
    parser.add_argument("service", metavar="SERVICE", help="such as device.attach.block")
    parser.add_argument(
        "argument", metavar="ARGUMENT", help="+BACKEND:PORT[:IDENTITY], +TEXT, or + for none"
    )
    parser.add_argument("source", metavar="SOURCE", nargs="?", help="the VM that asks, or dom0")
    parser.add_argument(
        "target", metavar="TARGET", nargs="?",
        help=f"the VM of the request (default: {DEFAULT_TARGET}, no particular one)",
    )  # fmt: skip
    parser.add_argument(
        "--mine", action="store_true", help="inside a VM: its own verdict on a device"
    )
    policy_engine.add_trial_options(parser)
    policy_engine.add_system_option(parser)
    parser.add_argument("--json", action="store_true", help="print JSON, with the trace")


def run(session: Session) -> int:
    """Print the verdict, the rule that gave it and, with -v, the rules that were looked at."""
    args = session.args
    if args.mine:
        return _mine(session)
    asked = _asked(args)
    if args.folders or args.with_ or args.without or args.system:
        answer, names = _from_files(session, asked)
    elif inside_vm():
        raise CallError(
            "failed",
            f"only dom0 may ask what others may do, and here is {show(vm_here())}",
            {"hint": f"qvm-policy explain --mine {asked[0]} {show(asked[1], 256)}"},
        )
    else:
        answer = session.call("policy.explain", dict(zip(FIELDS, asked, strict=True)), TIMEOUT_S)
        names = None
    if args.json:
        output.put_json(answer)
        return DONE
    shown = " ".join(
        show(part) or DEFAULT_TARGET
        for part in (args.service, answer.get("argument", asked[1]), args.source, "->", asked[3])
    )
    output.put(f"{take(answer, 'verdict', str)}: {shown}")
    for line in decision_lines(answer):
        output.put(f"  {line}")
    if session.verbosity > 0:
        for kind, meaning in _interfaces(answer.get("argument", asked[1]), asked[0]):
            output.put(f"  interface: {kind}  {meaning}")
        for step in take_maps(answer, "trace"):
            output.put(f"  looked at: {rule_text(step)}  ({show(step.get('why'))})")
        for line in left_out_lines(answer):
            output.put(f"  {line}")
    for note in _notes(session, asked, names):
        session.note(note)
    if names is None:
        session.warn_of_policy()
    return DONE


def _notes(
    session: Session, asked: tuple[str, str, str, str], known: frozenset[str] | None
) -> Iterator[str]:
    """Yield what the request names and does not exist: a typing error gets an answer all the same.

    `known` are the VMs; None: ask the service for them.
    """
    service, argument, source, target = asked
    backend, port, identity = [*argument[1:].split(":", 2), "", ""][:3]
    is_device = service.startswith("device.") and backend and port
    if is_device and identity:
        yield from _identity_notes(service.rpartition(".")[2], identity)
    try:
        vms = _vms_of_service(session) if known is None else known
        if is_device and known is None and backend in vms:
            device_class = service.rpartition(".")[2]
            devices, missing, _ = list_devices(
                lambda method, params: session.call(method, params, TIMEOUT_S), device_class,
                [backend],
            )  # fmt: skip
            if not any(device["device"] == port for device in devices):
                verb = "reports, of all that it has," if missing else "has"
                yield f"note: {show(backend)} {verb} no {device_class} device {show(port)} now"
    except (CallError, ProtocolError):
        return  # these are notes: the answer is valid without them
    if is_device and backend not in vms:
        yield f"note: there is no VM {show(backend)}, so it lends nothing"
    if _is_unknown(source, vms):
        yield f"note: there is no VM {show(source)} that could ask"
    if _is_unknown(target, vms):
        yield f"note: there is no VM {show(target)}: to ask for it is to ask for {DEFAULT_TARGET}"


def _interfaces(argument: object, service: str) -> list[tuple[str, str]]:
    """Return the kinds of interfaces of the device that a request is about, with their words."""
    identity = [*str(argument).split(":", 2), "", ""][2]
    if not service.startswith("device.") or not is_identity(identity) or not identity:
        return []
    return interfaces(service.rpartition(".")[2], identity)


def _identity_notes(device_class: str, identity: str) -> Iterator[str]:
    """Yield why an identity that may be meant as a whole one is none."""
    unknown = open_part(device_class, identity)
    if unknown is None or UNKNOWN in identity:
        return
    example = f"{letter_of(device_class)}080650"
    if unknown.fill is None:
        yield (
            f"note: {show(identity)} has not the four parts of an identity, so nothing of it "
            f"counts as known; of a made-up device it is 0000:0000:x:KINDS, as in "
            f"0000:0000:x:{example}"
        )
        return
    rest = identity[len(unknown.known) :]
    what = f"{show(rest)} is no kind" if rest else "it has no kind"
    yield (
        f"note: {what} of interface, so not all kinds count as known; they are written one after "
        f"the other, each as {example}"
    )


def _is_unknown(name: str, vms: frozenset[str]) -> bool:
    return is_vm_name(name) and name not in vms


def _vms_of_service(session: Session) -> frozenset[str]:
    vms = take_maps(session.call("vm.list", {}, TIMEOUT_S), "vms")
    return frozenset({"dom0", *(take(vm, "name", str) for vm in vms)})


def decision_lines(answer: Mapping[str, object]) -> Iterator[str]:
    """Yield what people want to know of a decision beside its verdict."""
    yield f"rule: {rule_text(answer)}"
    reason, verdict = answer.get("reason"), answer.get("verdict")
    # A rule that allows may still end in a deny, such as for a target that does not run.
    if says_more(reason, answer.get("rule"), verdict):
        yield f"why:  {show(reason)}"
    if verdict == "deny":
        return
    if answer.get("target"):
        yield f"target: {show(answer['target'])}"
    candidates = answer.get("candidates")
    if answer.get("verdict") == "ask" and isinstance(candidates, list | tuple):
        default = answer.get("default_target")
        names = (
            f"{show(name)} (the default)" if name == default else show(name) for name in candidates
        )
        more = left_out(answer, "candidates")
        yield "to choose from: " + ", ".join([*names, *([f"{more} more"] if more else ())])
    given = [f"user={show(answer['user'])}"] if answer.get("user") else []
    given += [
        f"{name}={value}"
        for name, key, value, shown_if in (
            ("autostart", "autostart", "no", False),
            ("notify", "notify", "yes", True),
            ("read-only", "read_only", "yes", True),
        )
        if answer.get(key) is shown_if
    ]
    if given:
        yield "with: " + " ".join(given)


def _asked(args: argparse.Namespace) -> tuple[str, str, str, str]:
    """Return the request of the command line, or raise UsageError."""
    if not args.service or not set(args.service) <= SERVICE_CHARACTERS:
        service, plus, rest = args.service.partition("+")
        raise UsageError(
            f"'{show(args.service, 64)}' is not a service's name: A-Z a-z 0-9 . _ -",
            f"qvm-policy explain {show(service, 64)} +{show(rest, 64)} SOURCE TARGET"
            if plus
            else None,
        )
    if args.source is None:
        raise UsageError("who asks is not said: SERVICE ARGUMENT SOURCE [TARGET]")
    target = args.target or DEFAULT_TARGET
    for word in (args.source, target):
        if not word or not set(word) <= VM_CHARACTERS:
            raise UsageError(f"'{show(word, 64)}' is neither a VM's name nor a word as @default")
    return args.service, _argument(args.argument), args.source, target


def _argument(text: str) -> str:
    if text.startswith("+"):
        return text
    if text in ("", "*"):
        raise UsageError("one request has one argument: write + for none, or +BACKEND:PORT")
    raise UsageError(
        f"the argument '{show(text, 64)}' does not begin with +, as in a rule",
        f"+{show(text, 64)}",
    )


def _from_files(
    session: Session, asked: tuple[str, str, str, str]
) -> tuple[dict[str, object], frozenset[str]]:
    args = session.args
    service, argument, _source, _target = asked
    if service.startswith("device.") and argument.count(":") < 2:
        raise UsageError(
            "IDENTITY is left out, which only the running service can fill in",
            f"+BACKEND:PORT:IDENTITY, or for a device without one {show(argument, 128)}:",
        )
    loaded = policy_engine.read_good(args, policy_files.folders(args), policy_engine.replaced(args))
    facts = policy_engine.system(session)
    decision = policy_engine.decide(loaded, facts, asked, trace=True)
    answer: dict[str, object] = dict(decision.to_json(True))
    answer["argument"] = argument
    return answer, frozenset(facts.domains)


def _mine(session: Session) -> int:
    args = session.args
    if args.source is not None:
        raise UsageError(
            "--mine asks for this VM alone: SERVICE and ARGUMENT are all that it takes",
            "qvm-policy explain --mine device.attach.block +sys-usb:sda",
        )
    verb, device_class = _device_service(args.service)
    # dom0 knows the device's identity and ignores an IDENTITY in the request.
    name = device_name(":".join(args.argument.removeprefix("+").split(":")[:2]))
    params: dict[str, object] = {
        "verb": verb,
        "device_class": device_class,
        "backend": name.backend,
        "device": name.id,
    }
    try:
        answer = session.call("policy.mine", params, TIMEOUT_S)
    except CallError as error:
        if error.code != "unknown_method":
            raise
        message = "--mine is for use inside a VM, and this is dom0"
        hint = "qvm-policy explain SERVICE ARGUMENT SOURCE TARGET"
        raise CallError("failed", message, {"hint": hint}) from error
    verdict = take(answer, "verdict", str)
    if args.json:
        output.put_json({"verdict": verdict})
    else:
        output.put(f"{verdict}: {verb} {name.backend}:{name.id}")
    return DONE


def _device_service(text: str) -> tuple[str, str]:
    parts = text.split(".")
    if len(parts) != 3 or parts[0] != "device" or parts[1] not in VERBS:
        raise UsageError(
            f"'{show(text, 64)}' is not device.VERB.CLASS, of which alone a VM is told: VERB is "
            f"one of {', '.join(VERBS)}",
        )
    try:
        return parts[1], parse_device_class(parts[2])
    except ValueError as error:
        raise UsageError(str(error)) from None
