"""What policy would say, and of which VMs it knows: answers that change nothing.

dom0's user is told everything. A VM learns of its own verdicts, and of nothing that it could not
find out by asking for the device itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar, cast

import attrs
from pedos_protocol.codec import FRAME_MAX, ITEMS_MAX, encode
from pedos_protocol.fields import TEXT_MAX
from pedos_protocol.messages import (
    ExplainResult,
    PolicyErrorInfo,
    PolicyExplained,
    PolicyVerdict,
    SystemVm,
    SystemVms,
    TraceStep,
    to_wire,
)
from pedos_protocol.names import is_device_id, is_vm_name, natural_key, printable_text

from pedos_dom0.policy.evaluate import Request
from pedos_dom0.policy.tokens import device_service
from pedos_dom0.registry import DeviceKey

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pedos_protocol.messages import PolicyStatus, Verdict

    from pedos_dom0.access import Access, Verb
    from pedos_dom0.policy.evaluate import Decision
    from pedos_dom0.policy.system import VmFacts
    from pedos_dom0.state import State

T = TypeVar("T", bound=attrs.AttrsInstance)

# Bytes of an answer that are not what is counted: its envelope.
ENVELOPE_MAX = 1024
# Bytes of one list in an answer with other parts beside it. An answer is one frame, and who has
# more rules than that before the one that matched is better served by reading the files.
LIST_MAX = 24 * 1024


class Explaining:
    """Serves device.explain and policy.*."""

    def __init__(self, state: State, access: Access) -> None:
        self._state = state
        self._access = access

    def device(self, source: str, verb: Verb, key: DeviceKey, vm: str) -> ExplainResult:
        """What policy says of one device. Raises CallError(not_found) for an unknown VM."""
        for name in (vm, key.backend, source):
            self._state.known_domain(name)
        decision = self._access.decide(source, verb, key, vm, trace=True)
        rule = decision.rule
        return ExplainResult(
            verdict=cast("Verdict", decision.verdict),
            rule=None if rule is None else _text(rule.where),
            text=None if rule is None else _text(rule.text),
            default=rule is None,
            parameters=dict(decision.parameters),
            trace=_trace(decision),
            reason=_text(decision.reason),
        )

    def request(self, service: str, argument: str, source: str, target: str) -> PolicyExplained:
        """What policy says of any request, whether what it names is there or not."""
        argument = self._completed(service, argument)
        decision = self._access.judge(Request(service, argument, source, target), trace=True)
        rule = decision.rule
        return PolicyExplained(
            argument=_text(argument),
            verdict=cast("Verdict", decision.verdict),
            rule=None if rule is None else _text(rule.where),
            text=None if rule is None else _text(rule.text),
            default=rule is None,
            target=_optional(decision.target),
            user=_optional(decision.user),
            autostart=decision.autostart,
            notify=decision.notify,
            read_only=decision.read_only,
            candidates=tuple(map(_text, decision.candidates[: ITEMS_MAX // 2])),
            default_target=_optional(decision.default_target),
            reason=_text(decision.reason),
            trace=_trace(decision),
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
        device = self._state.registry.get(DeviceKey(kind[1], backend, port))
        return f"+{backend}:{port}:{'' if device is None else device.identity}"

    def mine(self, vm: str, verb: Verb, key: DeviceKey) -> PolicyVerdict:
        """What a VM may do for itself. What it may not see is to it what does not exist: a no."""
        verdict = "deny"
        if self._may_know(vm, verb, key):
            decision = self._access.decide(vm, verb, key, vm)
            elsewhere = verb != "attach" and decision.target != vm
            if decision.verdict == "ask" or (decision.verdict == "allow" and not elsewhere):
                verdict = decision.verdict
        return PolicyVerdict(verdict=cast("Verdict", verdict))

    def _may_know(self, vm: str, verb: Verb, key: DeviceKey) -> bool:
        """Could the VM find out by asking for it that the device is there?"""
        state = self._state
        if verb in ("attach", "assign"):
            # It could: what is not there is denied, and so is what policy denies.
            return key.backend != vm and state.registry.get(key) is not None
        if any(lease.vm == vm for lease in state.leases.of_device(key)):
            return True
        if any(assignment.key == key for assignment in state.store.assignments(vm)):
            return True
        return verb == "list" and key.backend == vm and state.registry.get(key) is not None

    def system(self, after: str | None) -> SystemVms:
        """The facts of the VMs behind `after`, as many as one frame holds."""
        passed = None if after is None else natural_key(after)
        domains = self._state.facts.system.domains
        names = sorted((name for name in domains if is_vm_name(name)), key=natural_key)
        vms = [
            _described(domains[name])
            for name in names
            if passed is None or natural_key(name) > passed
        ]
        fit = _fitting(vms, FRAME_MAX - ENVELOPE_MAX)
        return SystemVms(vms=fit, more=len(fit) < len(vms))


def fitting(status: PolicyStatus, limit: int = FRAME_MAX - ENVELOPE_MAX) -> PolicyStatus:
    """The status with as many of its folders and errors as fit into so many bytes."""
    folders: list[str] = []
    size = 0
    for folder in map(_text, status.folders):
        size += len(folder.encode())
        if size > limit // 4:
            break
        folders.append(folder)
    errors = (
        PolicyErrorInfo(
            file=_text(error.file),
            line=error.line,
            column=error.column,
            message=_text(error.message),
            help=_text(error.help),
            text=_text(error.text),
        )
        for error in status.errors
    )
    return attrs.evolve(status, errors=_fitting(errors, limit // 2), folders=tuple(folders))


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
        TraceStep(rule=_text(step.rule.where), text=_text(step.rule.text), why=_text(step.why))
        for step in decision.trace[:ITEMS_MAX]
    )
    return _fitting(steps, LIST_MAX)


def _fitting(items: Iterable[T], limit: int) -> tuple[T, ...]:
    """The first of the items that fit into so many bytes; at least one."""
    kept: list[T] = []
    size = 0
    for item in items:
        size += len(encode([to_wire(item)]))
        if (size > limit and kept) or len(kept) >= ITEMS_MAX:
            break
        kept.append(item)
    return tuple(kept)


def _text(text: str) -> str:
    return printable_text(text, TEXT_MAX)


def _optional(text: str | None) -> str | None:
    return None if text is None else _text(text)
