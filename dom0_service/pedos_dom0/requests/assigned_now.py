"""What an assignment would come to now: a dry run, which changes and records nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, cast

import attrs
from pedos_protocol.assignment_messages import CONFLICTS_MAX, MATCHES_MAX, AssignedNow, Conflict

from pedos_dom0.access.authorizer import refusal
from pedos_dom0.access.subjects import DeviceSubject
from pedos_dom0.device_classes.registered import class_of
from pedos_dom0.drivers.base import DOM0_NAME
from pedos_dom0.errors import identified, not_to_be_had
from pedos_dom0.requests.absent import why_absent
from pedos_dom0.requests.fitting import bounded_text
from pedos_dom0.tables.assignment import ANY_PORT, claim

if TYPE_CHECKING:
    from pedos_protocol.messages import Verdict

    from pedos_dom0.access.authorizer import Authorizer
    from pedos_dom0.state import State
    from pedos_dom0.tables.assignment import Assignment, Claim
    from pedos_dom0.tables.registry import DeviceKey

Specific = Literal["more", "equal", "less"]


def assigned_now(state: State, authorizer: Authorizer, assignment: Assignment) -> AssignedNow:
    """What would happen if the VM were to get the device now, as if the assignment existed."""
    matches = state.matches(assignment)
    conflicts = _conflicts(state, assignment, matches)
    domain = state.domain(assignment.vm)
    now = AssignedNow(
        matches=tuple(key.device for key in matches[:MATCHES_MAX]),
        matches_left_out=max(0, len(matches) - MATCHES_MAX),
        absent=None if matches else bounded_text(why_unmatched(state, assignment)),
        name_taken=_name_taken(state, assignment),
        conflicts=conflicts[:CONFLICTS_MAX],
        conflicts_left_out=max(0, len(conflicts) - CONFLICTS_MAX),
        runs=domain is not None and domain.domid is not None,
    )
    return _with_device(state, authorizer, assignment, matches[0], now) if matches else now


def _with_device(
    state: State, authorizer: Authorizer, assignment: Assignment, key: DeviceKey, now: AssignedNow
) -> AssignedNow:
    subject = DeviceSubject("attach", key)
    decision = authorizer.decide(DOM0_NAME, subject, assignment.vm)
    is_sent_on = decision.verdict == "allow" and decision.target != assignment.vm
    is_denied = is_sent_on or refusal(subject, assignment.vm, decision) is not None
    verdict = cast("Verdict", "deny" if is_denied else decision.verdict)
    holder = state.holder(key, assignment.vm)
    twins = would_claim(state, assignment, key).twins
    return attrs.evolve(
        now,
        ambiguous=None if not twins else bounded_text(_ambiguous(assignment)),
        verdict=verdict,
        rule=None if decision.rule is None else bounded_text(decision.rule.where),
        held_by=None if holder is None else holder.vm,
        held=None if holder is None else holder.key.device,
        unfit=_unfit(state, key) if holder is None else None,
    )


def would_claim(state: State, assignment: Assignment, key: DeviceKey) -> Claim:
    """What the assignments come to for the device, with this one among them."""
    identity = state.registry.lasting_identity(key) or ""
    others = [
        each
        for each in state.store.assignments_of(key, identity)
        if (each.vm, each.slot) != (assignment.vm, assignment.slot)
        and state.whose(key, each.vm) == state.whose(key, assignment.vm)
        and not state.is_orphan(each)
    ]
    same = state.registry.devices_of(key.backend).identified(key.device_class, identity)
    return claim(key, identity, [*others, assignment], same)


def _conflicts(
    state: State, assignment: Assignment, matches: list[DeviceKey]
) -> tuple[Conflict, ...]:
    """The assignments of other VMs to one of the same devices, the most specific first."""
    found = {}
    for key in matches:
        claimed = would_claim(state, assignment, key)
        for each in (*claimed.first, *claimed.others):
            found[each.vm, each.slot] = each
    if not matches:
        same = state.store.assignments_of(assignment.key, assignment.identity)
        if class_of(assignment.key.device_class).shared:
            same = []
        elif assignment.key.device == ANY_PORT:
            same = [each for each in same if each.slot == assignment.slot]
        found = {(each.vm, each.slot): each for each in same if not state.is_orphan(each)}
    others = [each for each in found.values() if each.vm != assignment.vm]
    others.sort(key=lambda each: (-each.weight, each.vm, each.slot))
    return tuple(
        Conflict(
            vm=each.vm,
            device=each.key.device or None,
            identity=each.identity,
            mode=each.mode,
            specific=_specific(each, assignment),
        )
        for each in others
    )


def _specific(one: Assignment, other: Assignment) -> Specific:
    if one.weight == other.weight:
        return "equal"
    return "more" if one.weight > other.weight else "less"


def why_unmatched(state: State, assignment: Assignment) -> str:
    """Why no device is there that the assignment is to."""
    key = assignment.key
    device = state.registry.get(key)
    if device is not None:
        return f"{key} is {identified(device.identity)}, and not '{assignment.identity}'"
    is_silent = state.agents.get(key.backend) is None
    missing = state.registry.missing(key.backend, key.device_class)
    if key.device != ANY_PORT or is_silent:
        return why_absent(state, key).message
    if missing is not None:
        return f"{key.backend} does not report all devices that it has ({missing.reason})"
    return f"{key.backend} has no '{assignment.identity}' now"


def _ambiguous(assignment: Assignment) -> str:
    return f"several devices of {assignment.key.backend} have the identity {assignment.identity}"


def _unfit(state: State, key: DeviceKey) -> str | None:
    """What else keeps a device that is free from being attached."""
    if (lack := state.carrier(key.device_class).lack) is not None:
        return bounded_text(lack)
    device = state.registry.get(key)
    if device is None:
        return None
    error = not_to_be_had(key, device)
    return None if error is None else bounded_text(error.message)


def _name_taken(state: State, assignment: Assignment) -> str | None:
    """Which device of the VM has the name that the assignment asks for; None if none has."""
    device_class = class_of(assignment.key.device_class)
    name = device_class.asked_name(assignment.options)
    if name is None:
        return None
    keys = {*state.matches(assignment), assignment.key}
    for lease in state.leases.of_vm(assignment.vm):
        if lease.frontend == name and lease.key not in keys:
            return bounded_text(f"{name} in {assignment.vm} is taken by {lease.key}")
    for other in state.store.assignments(assignment.vm):
        asked = class_of(other.key.device_class).asked_name(other.options)
        if asked == name and other.slot != assignment.slot:
            return bounded_text(f"{name} is the name with which {other} is assigned")
    return None
