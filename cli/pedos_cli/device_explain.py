"""`qvm-device CLASS explain`: what the policy says to a request, and which rule says it."""

from __future__ import annotations

from pedos_protocol.device_classes import VERBS

from pedos_cli import output
from pedos_cli.answers import DONE, left_out, rule_text, take, take_maps
from pedos_cli.arguments import target_and_device, vm_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pedos_cli.arguments import Parser
    from pedos_cli.run import Session

TIMEOUT_S = 10.0
"""Seconds for an explanation: the policy is in the service's memory."""


def add_arguments(parser: Parser) -> None:
    """Add what `explain` takes."""
    parser.add_argument("vm", metavar="VM", help="the VM that would get the device")
    parser.add_argument("device", metavar="SOURCE:ID", help="the device")
    parser.add_argument(
        "--verb", dest="asked", choices=VERBS, default="attach",
        help="the operation (default: attach)",
    )  # fmt: skip
    parser.add_argument(
        "--as", dest="source", metavar="VM", default="dom0",
        help="explain a request of VM's users instead of dom0's (default: dom0)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON, with the trace")
    parser.set_defaults(verb=run)


def run(session: Session) -> int:
    """Print the verdict, the rule that gave it and, with -v, the rules that were looked at."""
    args = session.args
    vm, name = target_and_device(args.vm, args.device)
    source = vm_name(args.source)
    answer = session.call(
        "device.explain",
        {
            "verb": args.asked,
            "device_class": args.device_class,
            "vm": vm,
            "backend": name.backend,
            "device": name.id,
            "source": source,
        },
        TIMEOUT_S,
    )
    if args.json:
        output.put_json(answer)
    else:
        who = "" if source == "dom0" else f" (asked by {source})"
        output.put(f"{take(answer, 'verdict', str)}: {args.asked} {args.device} -> {vm}{who}")
        for line in explained(answer, vm, trace=session.verbosity > 0):
            output.put(f"  {line}")
    session.warn_of_policy()
    return DONE


def explained(answer: Mapping[str, object], vm: str, *, trace: bool) -> Iterator[str]:
    """Yield what an answer to `device.explain` says beside its verdict: the rule and why, and, with
    `trace`, the rules that were looked at before."""
    is_default = take(answer, "default", bool)  # that no rule matched says it all
    yield f"rule: {rule_text(answer)}"
    reason = str(answer.get("reason") or "")
    if reason and not is_default and not reason.endswith(f"says {answer['verdict']}"):
        yield f"why:  {output.show(reason)}"  # more than what the rule says itself
    if (mode := answer.get("assigned")) is not None:
        yield f"assigned: to {vm} ({output.show(str(mode))})"
    parameters = take(answer, "parameters", dict)
    if parameters:
        yield "with: " + " ".join(f"{key}={parameters[key]}" for key in parameters)
    if trace:
        for step in take_maps(answer, "trace"):
            yield f"looked at: {_step(step)}"
        yield from left_out_lines(answer)


def left_out_lines(answer: Mapping[str, object]) -> Iterator[str]:
    """Yield that rules were looked at which the answer could not hold, if there are such."""
    if count := left_out(answer, "trace"):
        yield f"looked at: {count} more, for which the answer has no room"


def _step(step: Mapping[str, object]) -> str:
    return f"{rule_text(step)}  ({step.get('why')})"
