"""The policy decision: one pure function from a request, a policy and the facts.

`evaluate` is total: it answers every request, and denies what it cannot read. It uses only its
arguments, so the same call explains, tests and decides.
"""

from __future__ import annotations

from pedos_protocol.names import is_device_id, is_identity, is_vm_name
from pedos_protocol.reasons import DEFAULT_DENY, SEES_ALL, said

from . import candidates
from .decision import Decision, Question, Request, TraceStep
from .model import Outcome, Rule
from .selectors import NO, SELECTOR_PARTS, SURE, DeviceParts, device_parts, selector
from .snapshot import Snapshot
from .system import ADMIN_VM, System
from .tokens import (
    ADMIN,
    DEFAULT,
    DISPVM,
    DISPVM_OF,
    UUID,
    device_service,
    is_service,
    service_tokens,
    target_words,
    vm_words,
)

__all__ = ["DEFAULT_DENY", "Decision", "Request", "TraceStep", "evaluate"]

# More than the longest valid BACKEND:PORT:IDENTITY needs (31 + 64 + 256 + 3); this only prevents
# splitting or searching a text of megabytes.
ARGUMENT_MAX = 384
# `@dispvm:` and a VM's name, or `uuid:` and 36 characters.
TARGET_MAX = 64


class _RefusedError(Exception):
    """The request is denied before any rule is tried; the text says why."""


def evaluate(request: Request, snapshot: Snapshot, system: System, trace: bool = False) -> Decision:
    """The first rule in file order that matches decides; if none does, see `_without_rule`.

    For a device that is not fully known, the strictest of the rules decides that may be the first
    to match. With `trace`, the decision lists the rules of this service before it, each with the
    first column that did not match.
    """
    try:
        question = _question(request, system)
    except _RefusedError as error:
        return Decision("deny", None, str(error), notify=True)
    steps: tuple[TraceStep, ...] = ()
    device = question.device
    is_open = device is not None and device.open is not None
    if trace:
        rules, steps = _scan(question, snapshot)
    elif device is not None and is_open:
        rules = snapshot.possible(question, device)
    else:
        rule = snapshot.find(question)
        rules = [] if rule is None else [rule]
    if device is not None and is_open:
        decision = _decide_open(question, device, rules, snapshot, system)
    elif rules:
        decision = _decide(question, rules[0], snapshot, system)
    else:
        decision = _without_rule(question)
    if trace:
        decision.trace = tuple(step for step in steps if step.rule is not decision.rule)
    return decision


def _decide_open(
    question: Question,
    device: DeviceParts,
    possible: list[Rule],
    snapshot: Snapshot,
    system: System,
) -> Decision:
    """What is unknown must not get a device more than it would get if it were known.

    `possible` are the rules that may be the first that matches (Snapshot.possible). If none denies
    and the last is not sure to match, possibly none matches: then none decides.
    """
    if not possible:
        return _without_rule(question)
    last = possible[-1]
    if last.action == "deny":
        decision = _decide(question, last, snapshot, system)
        if last.takes_open(device) != SURE:
            decision.reason += f", and may match: {_NOT_KNOWN}"
        return decision
    if last.takes_open(device) != SURE:
        return _without_rule(question, f"no rule is sure to match, as {_NOT_KNOWN}")
    rule = next((each for each in possible if each.action == "ask"), last)
    if (other := _incomparable(question, rule, possible, system)) is not None:
        when = "before it" if rule is last else "as well, with another outcome"
        return _denied(rule, f"{other.where} may match {when}: {_NOT_KNOWN}")
    decision = _decide(question, rule, snapshot, system)
    if rule is not last:
        decision.reason += f", and may match: {_NOT_KNOWN}"
    for each in possible:
        if each.outcome.read_only and not decision.read_only:
            decision.read_only = True
            decision.reason += f"; read-only, as {each.where} may match"
        decision.notify |= each.outcome.notify
    return decision


def _incomparable(
    question: Question, rule: Rule, possible: list[Rule], system: System
) -> Rule | None:
    """The strictest of `possible` by its action, if `rule` is stricter than it."""
    for each in possible:
        if each.outcome.gives != rule.outcome.gives:
            return each
    allow = next((each for each in possible if each.action == "allow"), rule)
    if allow is not rule and _allow(question, allow, allow.outcome, system).verdict == "deny":
        return allow  # a question has targets to choose from, where an allow has none
    return None


_NOT_KNOWN = "not all kinds of interfaces of the device are known"


def _decide(question: Question, rule: Rule, snapshot: Snapshot, system: System) -> Decision:
    outcome = rule.outcome
    if outcome.action == "allow":
        return _allow(question, rule, outcome, system)
    if outcome.action == "ask":
        return _ask(question, rule, outcome, snapshot, system)
    return Decision(
        "deny",
        rule,
        said(rule.where, "deny"),
        notify=outcome.notify,
        parameters=outcome.parameters,
    )


def _without_rule(question: Question, reason: str = DEFAULT_DENY) -> Decision:
    """What no rule decides is denied, but for one thing: an administrator has to see which devices
    exist, also without rules or while none can be read."""
    verb, _ = device_service(question.service) or ("", "")
    if verb == "list" and question.source == ADMIN_VM and question.target in (ADMIN, ADMIN_VM):
        return Decision("allow", None, SEES_ALL, ADMIN_VM)
    return Decision("deny", None, reason, notify=True)


def _denied(rule: Rule, reason: str, notify: bool = True) -> Decision:
    """The result of an allow or an ask that cannot be carried out."""
    return Decision("deny", rule, f"{rule.where} says {rule.action}, but {reason}", notify=notify)


def _allow(question: Question, rule: Rule, outcome: Outcome, system: System) -> Decision:
    wanted = outcome.target or question.target
    target = resolved(wanted, question.default_dispvm, system)
    if target is None:
        if wanted == DISPVM:
            return _denied(rule, f"{question.source!r} has no default template for disposables")
        if wanted.startswith(DISPVM_OF):
            return _denied(rule, f"{wanted!r} is of no template for disposables")
        if outcome.target is not None:
            return _denied(rule, f"there is no VM {wanted!r}")
        return _denied(rule, "neither the caller nor the rule names a target")
    if not outcome.autostart and not system.runs(target):
        return _denied(rule, f"{target!r} would have to be started", outcome.notify)
    return Decision(
        "allow",
        rule,
        said(rule.where, "allow"),
        target,
        outcome.user,
        outcome.autostart,
        outcome.notify,
        outcome.read_only,
        outcome.parameters,
    )


def _ask(
    question: Question, rule: Rule, outcome: Outcome, snapshot: Snapshot, system: System
) -> Decision:
    offered = candidates.of(question, rule, snapshot, system)
    if not offered:
        return _denied(rule, "there is no target to choose from")
    default = outcome.default_target
    if default is not None:
        default = resolved(default, question.default_dispvm, system)
        if default not in offered:
            default = None
    return Decision(
        "ask",
        rule,
        said(rule.where, "ask"),
        None,
        outcome.user,
        outcome.autostart,
        outcome.notify,
        outcome.read_only,
        outcome.parameters,
        offered,
        default,
    )


def resolved(word: str, default_dispvm: str | None, system: System) -> str | None:
    """The VM's name, or @dispvm:TEMPLATE, that a target or a redirect means; None if there is
    none."""
    if word == DISPVM:
        if default_dispvm is None:
            return None
        word = DISPVM_OF + default_dispvm
    if word.startswith(DISPVM_OF):
        facts = system.get(word[len(DISPVM_OF) :])
        return word if facts is not None and facts.template_for_dispvms else None
    if word == ADMIN:
        return ADMIN_VM
    facts = system.by_uuid.get(word[len(UUID) :]) if word.startswith(UUID) else system.get(word)
    return None if facts is None else facts.name


def _scan(question: Question, snapshot: Snapshot) -> tuple[list[Rule], tuple[TraceStep, ...]]:
    """The first match, found by reading the rules in file order as an administrator would; and the
    rules before it that may match what is not fully known."""
    steps: list[TraceStep] = []
    possible: list[Rule] = []
    services = service_tokens(question.service)
    for rule in snapshot.rules:
        if rule.service not in services:
            continue
        why = why_not(rule, question)
        if not why:
            return [*possible, rule], tuple(steps)
        steps.append(TraceStep(rule, why))
        if _may_match(rule, question):
            possible.append(rule)
            if rule.action == "deny":
                break
    return possible, tuple(steps)


def _may_match(rule: Rule, question: Question) -> bool:
    device = question.device
    return (
        device is not None
        and device.open is not None
        and rule.source in question.source_words
        and rule.target in question.target_words
        and rule.takes_open(device) != NO
    )


def why_not(rule: Rule, question: Question) -> str:
    """The first column of `rule` that does not match, as a sentence; "" if all match."""
    if not rule.selects and rule.argument not in ("*", question.argument):
        return f"argument {question.argument!r} is not {rule.argument!r}"
    if rule.source not in question.source_words:
        return f"source {question.source!r} is not {rule.source!r}"
    if rule.target not in question.target_words:
        return f"target {question.target!r} is not {rule.target!r}"
    if not rule.selects or question.device is None:
        return ""
    return selector(rule.argument).why_not(question.device)


def _question(untrusted: object, system: System) -> Question:
    """The request with every field checked; _RefusedError says which is malformed.

    `type() is str`, not isinstance: a subclass could bring its own comparison or hash.
    """
    if type(untrusted) is not Request:
        raise _malformed("not a request")
    service, argument, source = untrusted.service, untrusted.argument, untrusted.source
    if type(service) is not str or not is_service(service):
        raise _malformed("service is not the name of a service, or not device.VERB.CLASS")
    if type(source) is not str or not is_vm_name(source):
        raise _malformed("source is not a VM name")
    if type(argument) is not str or len(argument) > ARGUMENT_MAX or argument[:1] != "+":
        raise _malformed("argument does not begin with '+', or is too long")
    parts = device_service(service)
    device = None if parts is None else _device(parts[1], argument)
    target = _target(untrusted.target, system)
    facts = system.get(source)
    default_dispvm = None if facts is None else facts.default_dispvm
    return Question(
        service,
        argument,
        device,
        source,
        target,
        default_dispvm,
        vm_words(source, system),
        target_words(target, default_dispvm, system),
    )


def _malformed(what: str) -> _RefusedError:
    return _RefusedError(f"malformed request: {what}")


def _target(untrusted: object, system: System) -> str:
    """An existing VM, by its name, or one of @default, @adminvm, @dispvm, @dispvm:TEMPLATE."""
    if type(untrusted) is not str or len(untrusted) > TARGET_MAX:
        raise _malformed("target is not a VM name")
    if untrusted in system.domains or untrusted in _AS_IT_IS:
        return untrusted
    if untrusted.startswith(DISPVM_OF):
        template = untrusted[len(DISPVM_OF) :]
        if not is_vm_name(template):
            raise _malformed("target is not a template of disposables")
        if resolved(untrusted, None, system) is None:
            raise _RefusedError(f"{template!r} is not a template of disposables")
        return untrusted
    if untrusted.startswith(UUID):
        facts = system.by_uuid.get(untrusted[len(UUID) :])
        return DEFAULT if facts is None else facts.name
    if untrusted and not is_vm_name(untrusted):
        raise _malformed("target is not a VM name")
    return DEFAULT  # the request names none, or none that exists


_AS_IT_IS = (DEFAULT, ADMIN, DISPVM)


def _device(device_class: str, argument: str) -> DeviceParts:
    parts = argument[1:].split(":", 2)
    if len(parts) != len(SELECTOR_PARTS):
        raise _malformed("argument is not +BACKEND:PORT:IDENTITY")
    backend, port, identity = parts
    if not is_vm_name(backend):
        raise _malformed("BACKEND is not a VM name")
    if not is_device_id(port):
        raise _malformed("PORT is not a device id")
    if not is_identity(identity):
        raise _malformed("IDENTITY has characters that no identity has, or too many")
    return device_parts(device_class, backend, port, identity)
