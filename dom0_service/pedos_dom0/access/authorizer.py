"""Who may do what: the one place that asks the policy, and records its answers.

A request is about a subject (subjects.py), a device or a service. For devices, which no VM calls,
the words of a rule mean:
- `target=` gives an attached device to another VM than the named one. Requests to assign, detach
  or list concern the named VM alone, so a rule that redirects one denies it.
- `ask` is about the named VM, or the one that the rule redirects to; dom0's user has a choice only
  where a VM named one that does not exist, which stands for @default. A listing leaves out what is
  `ask` for `list`: it does not wait for an answer.
- A device cannot be given to dom0, to the VM that has it, or to a disposable that does not exist
  yet: none of these is a candidate, and a rule that redirects there is an error to dom0's user.
- `autostart=no` denies a VM that is halted, as everywhere; without it nothing is started either.
- `notify=no` keeps a denial out of the service's log, but not out of the audit log.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import attrs
from pedos_protocol.frozen import frozen

from pedos_dom0.access.questions import Question
from pedos_dom0.access.subjects import DeviceSubject, as_named
from pedos_dom0.audit.call_sum import Called
from pedos_dom0.device_classes.registered import class_of
from pedos_dom0.drivers.base import DOM0_NAME
from pedos_dom0.errors import DeniedError, HiddenError
from pedos_dom0.policy.decide import Decider
from pedos_dom0.policy.evaluate import Request, evaluate
from pedos_dom0.policy.snapshot import Snapshot
from pedos_dom0.tasks import progress

if TYPE_CHECKING:
    from collections.abc import Iterable

    import trio
    from pedos_protocol.errors import CallError
    from pedos_protocol.messages import Mode

    from pedos_dom0.access.callers import Caller
    from pedos_dom0.access.prompters import Prompters
    from pedos_dom0.access.subjects import Subject
    from pedos_dom0.policy.evaluate import Decision
    from pedos_dom0.state import State
    from pedos_dom0.tables.registry import DeviceKey

logger = logging.getLogger(__name__)

CHANGED_POLICY = "the policy has changed since dom0's user was asked"
CHANGED_DEVICE = "it is another device now than the one that dom0's user was asked about"
NO_CHOICE = "no VM that it could be given to is left to choose from"


@frozen
class Grant:
    """The permission: `vm` is the one that gets the device or serves the call, which a rule or
    dom0's user chose; `user` the one that a rule has the service run as."""

    vm: str
    read_only: bool
    user: str | None = None


@frozen
class Foreseen:
    """The decision on a request that was not made. `refused`: why it is denied although the rule
    does not deny it. `vms` would get the device: the one that it is allowed to, or those that
    dom0's user could choose."""

    decision: Decision
    refused: str | None
    vms: tuple[str, ...]


@frozen
class Consent:
    """dom0's user said yes to `vm`, about the subject as it was `seen` then."""

    vm: str
    seen: object


@attrs.define
class Consents:
    """What dom0's user said in the course of one request; each subject is asked about once.

    `written` are the decisions on it that the audit log has: repeating one with the same result is
    no new decision.
    """

    of: dict[Subject, Consent] = attrs.field(factory=dict)
    written: set[tuple[object, ...]] = attrs.field(factory=set)


class MustAsk(Exception):  # noqa: N818 - what has to be done next
    """The policy leaves it to dom0's user; `Authorizer.ask` does that."""

    def __init__(self, subject: Subject, vm: str, decision: Decision) -> None:
        super().__init__(f"{subject.wish} must be asked about")
        self.subject = subject
        self.vm = vm
        self.decision = decision


class Authorizer:
    """Asks the policy that is in force at this moment."""

    def __init__(self, state: State, prompters: Prompters) -> None:
        self._state = state
        self._prompters = prompters
        self._decider = Decider(Snapshot.DENY_ALL, state.facts.system)
        self._made_of: tuple[object, object] = (None, None)

    @property
    def snapshot(self) -> Snapshot:
        """The rules in force. Rules about tags must not be used without the tags."""
        return self._state.policy.snapshot if self._state.facts.known else Snapshot.DENY_ALL

    def rules(self) -> object:
        """The same object for as long as neither policy nor facts change."""
        return self._decider_of_now()

    def _decider_of_now(self) -> Decider:
        snapshot, system = self.snapshot, self._state.facts.system
        if self._made_of[0] is not snapshot or self._made_of[1] is not system:
            self._made_of = (snapshot, system)
            self._decider = Decider(snapshot, system)
        return self._decider

    def request(self, source: str, subject: Subject, vm: str) -> Request:
        """The request that the policy decides."""
        return Request(*subject.asked(self._state.registry), source=source, target=vm)

    def decide(self, source: str, subject: Subject, vm: str, *, trace: bool = False) -> Decision:
        """The decision alone: raises and records nothing."""
        if trace:
            return self.judge(self.request(source, subject, vm), trace=True)
        service, argument = subject.asked(self._state.registry)
        return self._decider_of_now().decide(service, argument, source, vm)

    def judge(self, request: Request, *, trace: bool = False) -> Decision:
        """The policy's decision on any request, with the present policy and facts."""
        if trace:
            return evaluate(request, self.snapshot, self._state.facts.system, trace=True)
        decider = self._decider_of_now()
        return decider.decide(request.service, request.argument, request.source, request.target)

    def foresee(self, source: str, subject: Subject, vm: str) -> Foreseen:
        """What `allow` would come to before it asks anybody: raises and records nothing."""
        decision = self.decide(source, subject, vm)
        refused = refusal(subject, vm, decision, source)
        vms: tuple[str, ...] = ()
        if decision.verdict == "ask":
            vms = self._choices(subject, vm, decision)
            refused = refused or (None if vms else NO_CHOICE)
        elif decision.verdict == "allow" and decision.target is not None and refused is None:
            vms = (as_named(decision.target),)
        return Foreseen(decision, refused, vms)

    def may_see(self, name: str, keys: Iterable[DeviceKey]) -> list[bool]:
        """Which of these devices a list shows to a VM, or to dom0's user: those that `refusal`
        refuses nothing of. Their common part is looked up once."""
        decider, registry = self._decider_of_now(), self._state.registry
        decisions = (
            decider.decide(*DeviceSubject("list", key).asked(registry), name, name) for key in keys
        )
        return [each.verdict == "allow" and each.target == name for each in decisions]

    def require(
        self,
        caller: Caller,
        subject: Subject,
        vm: str,
        request: str,
        consents: Consents | None = None,
    ) -> Grant:
        """The permission; audited either way. Raises CallError(denied), or MustAsk.

        With `consents`, an earlier answer of dom0's user counts, if policy and subject are still as
        they were then.
        """
        answer = self.answer(
            caller, subject, vm, request, Consents() if consents is None else consents
        )
        if isinstance(answer, Grant):
            return answer
        try:
            raise answer
        finally:
            del answer  # which holds this frame, by its traceback

    def answer(
        self, caller: Caller, subject: Subject, vm: str, request: str, consents: Consents
    ) -> Grant | CallError | MustAsk:
        """As `require`, which raises what is no permission."""
        decision = self.decide(caller.name, subject, vm)
        if consents.of and (consent := consents.of.get(subject)) is not None:
            grant, why = self._after_consent(subject, vm, decision, consent)
            if grant is None:
                self._write(caller, subject, vm, request, decision, consents, refused=why)
                return self.denied(subject, vm, decision, why)
            return grant
        if decision.verdict == "ask":
            self._write(caller, subject, vm, request, decision, consents)
            return MustAsk(subject, vm, decision)
        why = refusal(subject, vm, decision, caller.name)
        self._write(caller, subject, vm, request, decision, consents, refused=why)
        if decision.verdict != "allow" or why is not None or decision.target is None:
            return self.denied(subject, vm, decision, why)
        return _granted(as_named(decision.target), decision)

    def needs_no_rule(self, key: DeviceKey, vm: str) -> bool:
        """dom0's user may remove a device that is only assigned without a rule, because that takes
        nothing from any VM; and one that is attached if this dom0 does not know its class, because
        no rule can name the class to allow it. A rule can forbid it, but not for a removed VM: no
        rule is about that."""
        state = self._state
        if class_of(key.device_class).is_known and any(
            lease.vm == vm for lease in state.leases.of_device(key)
        ):
            return False
        assigned = (each for each in state.store.assignments(vm) if each.key == key)
        if any(state.is_orphan(each) for each in assigned):
            return True
        return self.decide(DOM0_NAME, DeviceSubject("detach", key), vm).rule is None

    def _after_consent(
        self, subject: Subject, vm: str, decision: Decision, consent: Consent
    ) -> tuple[Grant | None, str | None]:
        """The permission, or None and the reason: policy and subject are checked again."""
        if subject.seen(self._state.registry) != consent.seen:
            return None, CHANGED_DEVICE
        if decision.verdict == "ask":
            good = consent.vm in self._choices(subject, vm, decision)
        else:
            target = None if decision.target is None else as_named(decision.target)
            good = decision.verdict == "allow" and target == consent.vm
        if not good:
            return None, CHANGED_POLICY
        return _granted(consent.vm, decision), None

    async def allow(
        self,
        caller: Caller,
        subject: Subject,
        vm: str,
        request: str,
        asker_gone: trio.Event,
        consents: Consents | None = None,
    ) -> Grant:
        """As `require`, but asks dom0's user if the policy says so."""
        consents = Consents() if consents is None else consents
        while True:
            try:
                return self.require(caller, subject, vm, request, consents)
            except MustAsk as needed:
                await self.ask(caller, needed, request, consents, asker_gone)

    async def ask(
        self,
        caller: Caller,
        needed: MustAsk,
        request: str,
        consents: Consents,
        asker_gone: trio.Event,
        *,
        only_present: bool = False,
        assigned: Mode | None = None,
    ) -> None:
        """Asks dom0's user and notes a yes in `consents`; CallError(denied) if there is none, and
        with `only_present` about a device that is not there, which nobody can judge.

        Everything that was looked up before has to be looked up again: this may take a minute.
        """
        registry, subject, decision = self._state.registry, needed.subject, needed.decision
        device = subject.key if isinstance(subject, DeviceSubject) else None
        if only_present and device is not None and registry.get(device) is None:
            why = "dom0's user can be asked about a device only while it is there"
            raise self.denied(subject, needed.vm, decision, why)
        candidates = self._choices(subject, needed.vm, decision)
        if not candidates:
            why = NO_CHOICE
            self._write(caller, subject, needed.vm, request, decision, consents, refused=why)
            raise self.denied(subject, needed.vm, decision, why)
        seen = subject.seen(registry)
        default = decision.default_target and as_named(decision.default_target)
        question = Question(
            request=request,
            source=caller.name,
            asker=caller.audited,
            subject=subject,
            shown=subject.shown(registry),
            read_only=decision.read_only,
            candidates=candidates,
            default=default if default in candidates else None,
            assigned=assigned,
        )
        progress.at("answer", needed.vm, subject)
        outcome = await self._prompters.ask(question, asker_gone, caller.kind)
        if outcome.target is None:
            raise self.denied(subject, needed.vm, decision, outcome.reason)
        consents.of[subject] = Consent(outcome.target, seen)

    def _choices(self, subject: Subject, vm: str, decision: Decision) -> tuple[str, ...]:
        """The VMs that dom0's user may choose."""
        return subject.choices(vm, decision.candidates, self._state.driver.domains())

    def _write(
        self,
        caller: Caller,
        subject: Subject,
        vm: str,
        request: str,
        decision: Decision,
        consents: Consents,
        *,
        refused: str | None = None,
    ) -> None:
        """Records the decision in the audit log. `refused`: why it is denied although the rule
        allows it."""
        verdict = "deny" if refused is not None else decision.verdict
        service, argument = subject.asked(self._state.registry)
        rule = None if decision.rule is None else decision.rule.where
        reason = refused or decision.reason
        written = (service, argument, caller.name, vm, verdict, rule, reason)
        if written in consents.written:
            return
        consents.written.add(written)
        notify = decision.notify or refused is not None
        is_said = verdict == "deny" and notify and not caller.kind.sees_rules
        # What a VM is allowed to call does not use up the lines for what it is denied.
        is_granted = subject.verb == "call" and verdict == "allow"
        calls, others = self._state.call_throttle, self._state.audit_throttle
        of, throttled = caller.audited, caller.kind.throttled
        # The VM that a rule redirects to; otherwise the named one.
        target = decision.target or vm
        if is_granted:
            called = Called(service, argument, as_named(target))
            if calls.counts("decision", called, of=of, throttled=throttled, request=request):
                return
        elif others.counts(
            "decision", of=of, throttled=throttled, request=request, is_said=is_said
        ):
            return
        fields = {
            "request": request,
            "caller": caller.audited,
            "service": service,
            "argument": argument,
            "source": caller.name,
            "target": target,
            **subject.decided,
            "vm": vm,
            "verdict": verdict,
            "rule": rule,
            "reason": reason,
        }
        if is_granted:
            calls.write("decision", **fields)
            return
        say = f"denied: {caller.name} may not {subject.act(vm)}: {reason} ({request})"
        others.write_uncounted(
            "decision", of=of, throttled=throttled, say=say if is_said else None, **fields
        )

    def denied(
        self, subject: Subject, vm: str, decision: Decision | None = None, why: str | None = None
    ) -> CallError:
        """The refusal as dom0's user sees it; the dispatcher removes everything from it for a
        VM."""
        data: dict[str, object] = {**subject.names, "vm": vm, "rule": None, "text": None}
        if decision is not None and decision.rule is not None:
            data["rule"] = decision.rule.where
            data["text"] = decision.rule.text
            if why is None and decision.verdict == "deny" and decision.rule.action != "deny":
                why = decision.reason  # the rule alone does not deny it
        message = f"{subject.described(self._state.registry)} -> {vm}"
        if why is not None:
            data["reason"] = why
            message += f": {why}"
        elif not self._state.facts.known:
            message += ": the VMs' facts could not be read yet (qvm-policy status)"
        return DeniedError(_about(subject, vm), message, data)

    def hidden(self, subject: Subject, vm: str, truth: CallError) -> HiddenError:
        """A VM's answer about a device that it may not see: the same as a denial."""
        return HiddenError(_about(subject, vm), {**subject.names, "vm": vm}, truth)


def _about(subject: Subject, vm: str) -> str:
    return f"{subject} -> {vm}"


def _granted(vm: str, decision: Decision) -> Grant:
    return Grant(vm=vm, read_only=decision.read_only, user=decision.user)


def refusal(subject: Subject, vm: str, decision: Decision, source: str | None = None) -> str | None:
    """Why it is denied although the rule does not deny it; None if it is not. `source` asks, which
    matters for a call."""
    if decision.verdict == "ask" and subject.verb == "list":
        return "the rule asks, and a list asks about nothing"
    if decision.verdict != "allow":
        return None
    if decision.target is None:
        return "the rule sends it nowhere"
    if subject.verb == "call" and as_named(decision.target) == source:
        return "no VM calls itself"
    if not subject.may_be_sent_on and decision.target != vm:
        return f"the rule sends it to {decision.target}, but {subject.verb} is about {vm}"
    return None
