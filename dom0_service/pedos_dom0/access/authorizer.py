"""Who may do what: the one place that asks the policy, and writes down what it said.

What the words of a rule mean for devices, where they are not about a VM being called:
- `target=` sends an attached device to another VM than the one that was named. Assigning,
  detaching and listing speak of the VM that was named and of no other, so for these a rule that
  sends them elsewhere is a no.
- `ask` is about the VM that was named, or the one that the rule sends it to; there is a choice only
  where a VM named one that there is not, which stands for @default. What is `ask` on a `list` is
  not shown: a listing does not wait for an answer.
- A device cannot be given to dom0, to the VM that has it, or to a disposable that does not exist
  yet: none of these is a candidate, and a rule that sends it there is an error to dom0's user.
- `autostart=no` denies a VM that is halted, as everywhere; without it nothing is started either.
- `notify=no` keeps a denial out of the service's log; the audit log has it all the same.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import attrs
from pedos_protocol.errors import CallError

from pedos_dom0.access.questions import Question
from pedos_dom0.drivers.base import DOM0_NAME
from pedos_dom0.errors import HiddenError
from pedos_dom0.policy.decide import Decider
from pedos_dom0.policy.evaluate import Request, evaluate
from pedos_dom0.policy.snapshot import Snapshot
from pedos_dom0.tasks import progress

if TYPE_CHECKING:
    from collections.abc import Iterable

    import trio
    from pedos_protocol.messages import Device, Verb

    from pedos_dom0.access.callers import Caller
    from pedos_dom0.access.prompters import Prompters
    from pedos_dom0.policy.evaluate import Decision
    from pedos_dom0.state import State
    from pedos_dom0.tables.registry import DeviceKey

logger = logging.getLogger(__name__)
CHANGED_POLICY = "the policy has changed since dom0's user was asked"
CHANGED_DEVICE = "it is another device now than the one that dom0's user was asked about"


@attrs.frozen
class Grant:
    """What is allowed: `vm` is the one that gets the device, which a rule or dom0's user chose."""

    vm: str
    read_only: bool


@attrs.frozen
class Consent:
    """Dom0's user said yes to `vm`, about the device that was there then."""

    vm: str
    device: Device | None
    since: int | None


@attrs.define
class Consents:
    """What dom0's user said in the course of one request, by verb; each is asked for once.

    `written` are the decisions on it that stand in the audit log: what is looked at again with the
    same result is no other decision.
    """

    of: dict[str, Consent] = attrs.field(factory=dict)
    written: set[tuple[object, ...]] = attrs.field(factory=set)


class MustAsk(Exception):  # noqa: N818 - what has to be done next
    """The policy leaves it to dom0's user; `Authorizer.ask` does that."""

    def __init__(self, verb: Verb, key: DeviceKey, vm: str, decision: Decision) -> None:
        super().__init__(f"{verb} of {key} must be asked about")
        self.verb: Verb = verb
        self.key = key
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
        """The rules in force. Those that speak of tags must not be used without the tags."""
        return self._state.policy.snapshot if self._state.facts.known else Snapshot.DENY_ALL

    def _decider_of_now(self) -> Decider:
        snapshot, system = self.snapshot, self._state.facts.system
        if self._made_of[0] is not snapshot or self._made_of[1] is not system:
            self._made_of = (snapshot, system)
            self._decider = Decider(snapshot, system)
        return self._decider

    def request(self, source: str, verb: str, key: DeviceKey, vm: str) -> Request:
        """The request that policy judges.

        The device's identity is what its source VM reported, never what the request says; it is
        empty for a device that is gone, which can still be detached.
        """
        return Request(*self._asked_for(verb, key), source=source, target=vm)

    def _asked_for(self, verb: str, key: DeviceKey) -> tuple[str, str]:
        """Service and argument."""
        device = self._state.registry.get(key)
        identity = "" if device is None else device.identity
        return f"device.{verb}.{key.device_class}", f"+{key.backend}:{key.device}:{identity}"

    def decide(
        self, source: str, verb: str, key: DeviceKey, vm: str, *, trace: bool = False
    ) -> Decision:
        """The decision alone: nothing is raised and nothing is written down."""
        return self.judge(self.request(source, verb, key, vm), trace=trace)

    def judge(self, request: Request, *, trace: bool = False) -> Decision:
        """What policy and facts as of now say of any request."""
        if trace:
            return evaluate(request, self.snapshot, self._state.facts.system, trace=True)
        decider = self._decider_of_now()
        return decider.decide(request.service, request.argument, request.source, request.target)

    def decide_all(
        self, source: str, verb: Verb, keys: Iterable[DeviceKey], vm: str
    ) -> list[Decision]:
        """The decisions about many devices; what they have in common is looked up once."""
        decider = self._decider_of_now()
        return [decider.decide(*self._asked_for(verb, key), source, vm) for key in keys]

    def require(
        self,
        caller: Caller,
        verb: Verb,
        key: DeviceKey,
        vm: str,
        request: str,
        consents: Consents | None = None,
    ) -> Grant:
        """What is allowed; audited either way. Raises CallError(denied), or MustAsk.

        With `consents`, what dom0's user said before counts, if policy and device are as they were
        then.
        """
        consents = Consents() if consents is None else consents
        decision = self.decide(caller.name, verb, key, vm)
        consent = consents.of.get(verb)
        if consent is not None:
            grant, why = self._after_consent(verb, key, vm, decision, consent)
            if grant is None:
                self._write(caller, verb, key, vm, request, decision, consents, refused=why)
                raise self.denied(key, vm, decision, why)
            return grant
        if decision.verdict == "ask":
            self._write(caller, verb, key, vm, request, decision, consents)
            raise MustAsk(verb, key, vm, decision)
        why = refusal(verb, vm, decision)
        self._write(caller, verb, key, vm, request, decision, consents, refused=why)
        if decision.verdict != "allow" or why is not None or decision.target is None:
            raise self.denied(key, vm, decision, why)
        return Grant(vm=_named(decision.target), read_only=decision.read_only)

    def needs_no_rule(self, key: DeviceKey, vm: str) -> bool:
        """What is only assigned dom0's user may remove without a rule: it takes nothing from any
        VM. A rule can forbid it, but not of a VM that was removed: of that one no rule speaks."""
        state = self._state
        if any(lease.vm == vm for lease in state.leases.of_device(key)):
            return False
        assigned = (each for each in state.store.assignments(vm) if each.key == key)
        if any(state.is_orphan(each) for each in assigned):
            return True
        return self.decide(DOM0_NAME, "detach", key, vm).rule is None

    def _after_consent(
        self, verb: Verb, key: DeviceKey, vm: str, decision: Decision, consent: Consent
    ) -> tuple[Grant | None, str | None]:
        """The grant, or None and why not: the policy and the device are looked at again."""
        registry = self._state.registry
        device = registry.get(key)
        if registry.since(key) != consent.since or not _is_same(device, consent.device):
            return None, CHANGED_DEVICE
        if decision.verdict == "ask":
            good = consent.vm in self._candidates(verb, key, vm, decision)
        else:
            good = decision.verdict == "allow" and decision.target == consent.vm
        if not good:
            return None, CHANGED_POLICY
        return Grant(vm=consent.vm, read_only=decision.read_only), None

    async def allow(
        self,
        caller: Caller,
        verb: Verb,
        key: DeviceKey,
        vm: str,
        request: str,
        asker_gone: trio.Event,
        consents: Consents | None = None,
    ) -> Grant:
        """As `require`, but dom0's user is asked where the policy says so."""
        consents = Consents() if consents is None else consents
        while True:
            try:
                return self.require(caller, verb, key, vm, request, consents)
            except MustAsk as needed:
                await self.ask(caller, needed, request, consents, asker_gone)

    async def ask(
        self,
        caller: Caller,
        needed: MustAsk,
        request: str,
        consents: Consents,
        asker_gone: trio.Event,
    ) -> None:
        """Asks dom0's user and notes a yes in `consents`; CallError(denied) if there is none.

        What was looked up before it has to be looked up again: it may take a minute.
        """
        state, verb, key, decision = self._state, needed.verb, needed.key, needed.decision
        device = state.registry.get(key)
        candidates = self._candidates(verb, key, needed.vm, decision)
        if not candidates:
            why = "no VM that it could be given to is left to choose from"
            self._write(caller, verb, key, needed.vm, request, decision, consents, refused=why)
            raise self.denied(key, needed.vm, decision, why)
        consent = Consent(vm="", device=device, since=state.registry.since(key))
        default = decision.default_target
        question = Question(
            request=request,
            source=caller.name,
            service=f"device.{verb}.{key.device_class}",
            key=key,
            identity="" if device is None else device.identity,
            description="" if device is None else device.description,
            size=None if device is None else device.size,
            read_only=decision.read_only,
            candidates=candidates,
            default=default if default in candidates else None,
        )
        progress.at("answer", needed.vm, key)
        outcome = await self._prompters.ask(question, asker_gone, caller.kind)
        if outcome.target is None:
            raise self.denied(key, needed.vm, decision, outcome.reason)
        consents.of[verb] = attrs.evolve(consent, vm=outcome.target)

    def _candidates(
        self, verb: Verb, key: DeviceKey, vm: str, decision: Decision
    ) -> tuple[str, ...]:
        """Which VMs dom0's user may choose: those of the decision that can have the device."""
        if verb != "attach":
            return (vm,) if vm in map(_named, decision.candidates) else ()
        domains = self._state.driver.domains()
        return tuple(
            name for name in decision.candidates if name in domains and name != key.backend
        )

    def _write(
        self,
        caller: Caller,
        verb: Verb,
        key: DeviceKey,
        vm: str,
        request: str,
        decision: Decision,
        consents: Consents,
        *,
        refused: str | None = None,
    ) -> None:
        """The decision in the audit log. `refused`: why it is a no in spite of the rule."""
        verdict = "deny" if refused is not None else decision.verdict
        asked = self.request(caller.name, verb, key, vm)
        rule = None if decision.rule is None else decision.rule.where
        reason = refused or decision.reason
        written = (asked, verdict, rule, reason)
        if written in consents.written:
            return
        consents.written.add(written)
        say = None
        notify = decision.notify or refused is not None
        if verdict == "deny" and notify and not caller.kind.sees_rules:
            say = f"denied: {caller.name} may not {verb} {key} for {vm}: {reason} ({request})"
        self._state.audit_throttle.write(
            "decision",
            of=caller.name,
            throttled=caller.kind.throttled,
            say=say,
            request=request,
            caller=caller.name,
            service=asked.service,
            argument=asked.argument,
            source=asked.source,
            # To which VM it goes by a rule's redirect; otherwise the one that was named.
            target=decision.target or vm,
            device_class=key.device_class,
            verb=verb,
            device=str(key),
            vm=vm,
            verdict=verdict,
            rule=rule,
            reason=reason,
        )

    def denied(
        self, key: DeviceKey, vm: str, decision: Decision | None = None, why: str | None = None
    ) -> CallError:
        """The refusal as dom0's user sees it; the dispatcher takes everything out for a VM."""
        device = self._state.registry.get(key)
        named = str(key)
        if device is not None and (device.identity or device.description):
            quoted = f'"{device.description}"' if device.description else None
            named += f" ({' '.join(filter(None, (device.identity, quoted)))})"
        data: dict[str, object] = {"device": str(key), "vm": vm, "rule": None, "text": None}
        if decision is not None and decision.rule is not None:
            data["rule"] = decision.rule.where
            data["text"] = decision.rule.text
            if why is None and decision.verdict == "deny" and decision.rule.action != "deny":
                why = decision.reason  # the rule alone does not say no
        message = f"{named} -> {vm}"
        if why is not None:
            data["reason"] = why
            message += f": {why}"
        elif not self._state.facts.known:
            message += ": the VMs' facts could not be read yet (qvm-policy status)"
        return CallError("denied", message, data)

    def hidden(self, key: DeviceKey, vm: str, truth: CallError) -> HiddenError:
        """What a VM gets instead of the truth about what it may not see: the same as a denial."""
        return HiddenError(f"{key} -> {vm}", {"device": str(key), "vm": vm}, truth)


def refusal(verb: Verb, vm: str, decision: Decision) -> str | None:
    """Why it is a no although the rule allows it; None if it is not."""
    if decision.verdict != "allow":
        return None
    if decision.target is None:
        return "the rule sends it nowhere"
    if verb != "attach" and decision.target != vm:
        return f"the rule sends it to {decision.target}, but {verb} is about {vm}"
    return None


def _named(target: str) -> str:
    """A resolved target as VMs are named here."""
    return DOM0_NAME if target == "@adminvm" else target


def _is_same(now: Device | None, then: Device | None) -> bool:
    """Whether it is the device that was there then, as far as its source tells it."""
    if now is None or then is None:
        return now is then
    return (now.instance, now.identity, now.description, now.size, now.parent) == (
        then.instance,
        then.identity,
        then.description,
        then.size,
        then.parent,
    )
