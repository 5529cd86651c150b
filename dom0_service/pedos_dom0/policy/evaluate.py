"""May this be done? One pure function from a request and a snapshot to a decision.

`evaluate` is total: whatever stands in a request, it answers, and what it cannot read is denied.
It looks at nothing but its two arguments, so the same call explains, tests and decides.
"""

from __future__ import annotations

from collections.abc import Mapping

from attrs import frozen
from pedos_protocol.names import is_device_id, is_identity, is_vm_name

from .model import NO_PARAMETERS, SELECTOR_PARTS, DeviceParts, Rule, Snapshot
from .tokens import SERVICE_MAX, device_service, service_tokens, vm_tokens

DEFAULT_DENY = "no rule matched (default deny)"

# Above what the longest valid BACKEND:PORT:IDENTITY needs (31 + 64 + 128 + 3); only there so that
# nothing is split or searched in a text of megabytes.
ARGUMENT_MAX = 256


@frozen
class Request:
    """What is asked. `argument` is `+BACKEND:PORT:IDENTITY` with values from dom0's registry.

    The fields are whatever the caller has: `evaluate` checks them.
    """

    service: str
    argument: str
    source: str
    target: str


@frozen
class TraceStep:
    """A rule that was looked at, and why it did not match."""

    rule: Rule
    why: str


@frozen
class Decision:
    """The answer. `verdict` is allow, ask or deny; `rule` None means that none matched.

    `reason` is one sentence for people; `parameters` are those that the rule carries.
    """

    verdict: str
    rule: Rule | None
    parameters: Mapping[str, str] = NO_PARAMETERS
    trace: tuple[TraceStep, ...] = ()
    reason: str = DEFAULT_DENY

    @property
    def default(self) -> bool:
        return self.rule is None


class _MalformedError(Exception):
    """The request is not one; the text says what is wrong."""


@frozen
class _Question:
    """A request that passed every check."""

    service: str
    device: DeviceParts
    source: str
    target: str


def evaluate(request: Request, snapshot: Snapshot, trace: bool = False) -> Decision:
    """The first rule in file order that matches decides; no such rule is a deny.

    With `trace`, the rules of this service that stand before it are listed, each with the first
    column that did not match.
    """
    try:
        question = _question(request)
    except _MalformedError as error:
        return Decision("deny", None, reason=f"malformed request: {error}")
    steps: tuple[TraceStep, ...] = ()
    if trace:
        rule, steps = _scan(question, snapshot)
    else:
        rule = _look_up(question, snapshot)
    if rule is None:
        return Decision("deny", None, trace=steps)
    reason = f"{rule.where} says {rule.action}"
    return Decision(rule.action, rule, rule.parameters, steps, reason)


def _look_up(question: _Question, snapshot: Snapshot) -> Rule | None:
    """The first match, through the index: in each bucket no further than the best so far."""
    best, best_position = None, len(snapshot.rules)
    sources, targets = vm_tokens(question.source), vm_tokens(question.target)
    for bucket in snapshot.buckets(question.service, sources, targets):
        for position, rule in bucket:
            if position >= best_position:
                break
            if rule.selector is None or rule.selector.matches(question.device):
                best, best_position = rule, position
                break
    return best


def _scan(question: _Question, snapshot: Snapshot) -> tuple[Rule | None, tuple[TraceStep, ...]]:
    """The first match, by reading the rules in file order as an administrator would."""
    steps: list[TraceStep] = []
    services = service_tokens(question.service)
    for rule in snapshot.rules:
        if rule.service not in services:
            continue
        why = _why_not(rule, question)
        if not why:
            return rule, tuple(steps)
        steps.append(TraceStep(rule, why))
    return None, tuple(steps)


def _why_not(rule: Rule, question: _Question) -> str:
    """The first column of `rule` that does not match, as a sentence; "" when all do."""
    if rule.source not in vm_tokens(question.source):
        return f"source {question.source!r} is not {rule.source!r}"
    if rule.target not in vm_tokens(question.target):
        return f"target {question.target!r} is not {rule.target!r}"
    return rule.selector.why_not(question.device) if rule.selector is not None else ""


def _question(untrusted: object) -> _Question:
    """The request with every field checked; _MalformedError says what is wrong with it.

    `type() is str`, not isinstance: a subclass could bring its own comparison or hash.
    """
    if type(untrusted) is not Request:
        raise _MalformedError("not a request")
    service, argument = untrusted.service, untrusted.argument
    if type(service) is not str or len(service) > SERVICE_MAX or device_service(service) is None:
        raise _MalformedError("service is not device.VERB.CLASS")
    for what, vm in (("source", untrusted.source), ("target", untrusted.target)):
        if type(vm) is not str or not is_vm_name(vm):
            raise _MalformedError(f"{what} is not a VM name")
    if type(argument) is not str or len(argument) > ARGUMENT_MAX or not argument.startswith("+"):
        raise _MalformedError("argument is not +BACKEND:PORT:IDENTITY")
    parts = argument[1:].split(":", 2)
    if len(parts) != len(SELECTOR_PARTS):
        raise _MalformedError("argument is not +BACKEND:PORT:IDENTITY")
    backend, port, identity = parts
    if not is_vm_name(backend):
        raise _MalformedError("BACKEND is not a VM name")
    if not is_device_id(port):
        raise _MalformedError("PORT is not a device id")
    if not is_identity(identity):
        raise _MalformedError("IDENTITY has characters that no identity has, or too many")
    return _Question(service, (backend, port, identity), untrusted.source, untrusted.target)
