"""What policy would say, and which VMs it knows: answers that change nothing.

dom0's user is told everything. A VM learns its own verdicts, and nothing that it could not find out
by asking for the device itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import attrs
from pedos_protocol.codec import FRAME_MAX
from pedos_protocol.messages import (
    ExplainResult,
    PolicyExplained,
    PolicyVerdict,
    SystemVm,
    SystemVms,
    TraceStep,
)
from pedos_protocol.names import is_device_id, is_vm_name, natural_key

from pedos_dom0.access.authorizer import refusal
from pedos_dom0.access.subjects import DeviceSubject, ServiceSubject, device_argument
from pedos_dom0.device_classes.registered import class_of
from pedos_dom0.drivers.base import DOM0_NAME
from pedos_dom0.errors import unsupported
from pedos_dom0.policy.evaluate import Request
from pedos_dom0.policy.tokens import device_service
from pedos_dom0.requests.fitting import ENVELOPE_MAX, LIST_MAX, bounded_text, fitting, fitting_texts
from pedos_dom0.tables.registry import DeviceKey

if TYPE_CHECKING:
    from pedos_protocol.messages import Verb, Verdict

    from pedos_dom0.access.authorizer import Authorizer
    from pedos_dom0.access.subjects import Subject
    from pedos_dom0.policy.evaluate import Decision
    from pedos_dom0.policy.system import VmFacts
    from pedos_dom0.state import State

_WITHOUT_RULE = ExplainResult(
    verdict="allow",
    rule=None,
    text=None,
    default=False,
    parameters={},
    trace=(),
    reason="it is only assigned, and dom0's user may remove an assignment without a rule",
)
_NOT_KNOWN = attrs.evolve(
    _WITHOUT_RULE,
    reason="this dom0 does not know its class, which no rule can name to allow it, and dom0's user "
    "may take away what a newer dom0 has left",
)


class Explaining:
    """Serves device.explain and policy.*."""

    def __init__(self, state: State, authorizer: Authorizer) -> None:
        self._state = state
        self._authorizer = authorizer

    def device(self, source: str, verb: Verb, key: DeviceKey, vm: str) -> ExplainResult:
        """The verdict on an attach or the like. Raises CallError(not_found) for an unknown VM, and
        CallError(failed) for an attach of a class that this dom0 does not know."""
        state, is_known = self._state, class_of(key.device_class).is_known
        lack = state.carrier(key.device_class).lack
        if not is_known and lack is not None and verb in ("attach", "assign"):
            raise unsupported(lack)
        state.known_domain(source)
        theirs = [each for each in state.assignments_to(key) if each.vm == vm]
        identity = state.registry.lasting_identity(key)
        # Of a device that is not there, only what is assigned at its port is known.
        fitting = [each for each in theirs if identity is None or each.fits(key, identity)]
        most = max(fitting, key=lambda each: each.weight, default=None)
        mode, is_assigned = None if most is None else most.mode, bool(theirs)
        is_attached = any(lease.vm == vm for lease in state.leases.of_device(key))
        # An assignment is perhaps to or from a VM that was removed since.
        if verb == "detach" and (is_assigned or (is_attached and not is_known)):
            if source == DOM0_NAME and self._authorizer.needs_no_rule(key, vm):
                return attrs.evolve(_WITHOUT_RULE if is_known else _NOT_KNOWN, assigned=mode)
        else:
            for name in (vm, key.backend):
                state.known_domain(name)
        explained = self.subject(source, DeviceSubject(verb, key), vm)
        return attrs.evolve(explained, assigned=mode)

    def subject(self, source: str, subject: Subject, vm: str) -> ExplainResult:
        """The verdict, whether what the request names exists or not."""
        decision = self._authorizer.decide(source, subject, vm, trace=True)
        refused = refusal(subject, vm, decision, source)
        rule, trace = decision.rule, _trace(decision)
        return ExplainResult(
            verdict=cast("Verdict", decision.verdict if refused is None else "deny"),
            rule=None if rule is None else bounded_text(rule.where),
            text=None if rule is None else bounded_text(rule.text),
            default=decision.default,
            parameters=dict(decision.parameters),
            trace=trace,
            reason=bounded_text(refused or decision.reason),
            trace_left_out=len(decision.trace) - len(trace),
        )

    def request(self, service: str, argument: str, source: str, target: str) -> PolicyExplained:
        """The policy's verdict on any request, whether what it names exists or not."""
        argument = self._completed(service, argument)
        decision = self._authorizer.judge(Request(service, argument, source, target), trace=True)
        refused = None
        if device_service(service) is None:
            refused = refusal(ServiceSubject(service, argument), target, decision, source)
        rule = decision.rule
        candidates, trace = fitting_texts(decision.candidates, LIST_MAX), _trace(decision)
        return PolicyExplained(
            argument=bounded_text(argument),
            verdict=cast("Verdict", decision.verdict if refused is None else "deny"),
            rule=None if rule is None else bounded_text(rule.where),
            text=None if rule is None else bounded_text(rule.text),
            default=decision.default,
            target=_optional(decision.target),
            user=_optional(decision.user),
            autostart=decision.autostart,
            notify=decision.notify,
            read_only=decision.read_only,
            candidates=candidates,
            default_target=_optional(decision.default_target),
            reason=bounded_text(refused or decision.reason),
            trace=trace,
            candidates_left_out=len(decision.candidates) - len(candidates),
            trace_left_out=len(decision.trace) - len(trace),
        )

    def _completed(self, service: str, argument: str) -> str:
        """`argument` with the IDENTITY that dom0 knows, if it has none of its own."""
        kind = device_service(service)
        parts = argument.removeprefix("+").split(":")
        if kind is None or not argument.startswith("+") or len(parts) != 2:
            return argument
        backend, port = parts
        if not is_vm_name(backend) or not is_device_id(port):
            return argument
        return device_argument(DeviceKey(kind[1], backend, port), self._state.registry)

    def mine(self, vm: str, verb: Verb, key: DeviceKey) -> PolicyVerdict:
        """What a VM may do for itself. A device that it may not see is denied like one that does
        not exist."""
        verdict, subject = "deny", DeviceSubject(verb, key)
        if self._may_know(vm, verb, key):
            decision = self._authorizer.decide(vm, subject, vm)
            if refusal(subject, vm, decision) is None:
                verdict = decision.verdict
        return PolicyVerdict(verdict=cast("Verdict", verdict))

    def _may_know(self, vm: str, verb: Verb, key: DeviceKey) -> bool:
        """Could the VM find out by asking for it that the device exists?"""
        state = self._state
        if verb in ("attach", "assign"):
            # It could: a missing device is denied, and so is what policy denies.
            return key.backend != vm and state.registry.get(key) is not None
        if any(lease.vm == vm for lease in state.leases.of_device(key)):
            return True
        assigned = (each for each in state.assignments_to(key) if each.vm == vm)
        if any(not state.is_orphan(each) for each in assigned):
            return True
        return verb == "list" and key.backend == vm and state.registry.get(key) is not None

    def system(self, after: str | None) -> SystemVms:
        """The facts about the VMs after `after`, as many as one frame holds."""
        passed = None if after is None else natural_key(after)
        domains = self._state.facts.system.domains
        names = sorted((name for name in domains if is_vm_name(name)), key=natural_key)
        vms = [
            _described(domains[name])
            for name in names
            if passed is None or natural_key(name) > passed
        ]
        fit = fitting(vms, FRAME_MAX - ENVELOPE_MAX)
        return SystemVms(vms=fit, more=len(fit) < len(vms))


def _described(vm: VmFacts) -> SystemVm:
    return SystemVm(
        name=vm.name,
        type=vm.type,
        tags=tuple(sorted(vm.tags)),
        uuid=vm.uuid,
        default_dispvm=vm.default_dispvm,
        template_for_dispvms=vm.template_for_dispvms,
        power_state=vm.power_state,
        internal=vm.internal,
    )


def _trace(decision: Decision) -> tuple[TraceStep, ...]:
    steps = (
        TraceStep(
            rule=bounded_text(step.rule.where),
            text=bounded_text(step.rule.text),
            why=bounded_text(step.why),
        )
        for step in decision.trace
    )
    return fitting(steps, LIST_MAX)


def _optional(text: str | None) -> str | None:
    return None if text is None else bounded_text(text)
