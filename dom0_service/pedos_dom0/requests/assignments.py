"""device.assignments: the assignments, what they are to now, and why one comes to nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pedos_protocol.assignment_messages import MATCHES_MAX, Assigned, AssignmentsListed, Holder
from pedos_protocol.codec import FRAME_MAX
from pedos_protocol.names import natural_key
from pedos_protocol.schema import Room

from pedos_dom0.access.subjects import AssignmentSubject
from pedos_dom0.requests.assigned_now import why_unmatched
from pedos_dom0.requests.fitting import bounded_text
from pedos_dom0.requests.policy_status import fitting_status, policy_status
from pedos_dom0.tables.assignment import ANY_PORT
from pedos_dom0.tables.registry import DeviceKey
from pedos_dom0.tasks.gradually import in_order

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from pedos_protocol.messages import AssignmentName, DeviceAssignments

    from pedos_dom0.access.authorizer import Authorizer
    from pedos_dom0.access.callers import Caller
    from pedos_dom0.state import State
    from pedos_dom0.tables.store import Assignment

    #: The place of an assignment in the list.
    Place = tuple[tuple[str, str], tuple[str, str], tuple[str, str], str]

# Bytes of an answer beside the assignments, the state of the policy among them.
ENVELOPE_MAX = 12 * 1024
POLICY_BYTES_MAX = 10 * 1024
# Assignments of one answer: a tenth of a second's work.
PAGE_MAX = 128
# Assignments to look at in one step: what they are to, and what else is to that.
STEP = 16


class Assignments:
    """Lists assignments. `why_not` tells why a device was not attached by itself, if it was not."""

    def __init__(
        self,
        state: State,
        authorizer: Authorizer,
        why_not: Callable[[DeviceKey, Assignment], str | None],
    ) -> None:
        self._state = state
        self._authorizer = authorizer
        self._why_not = why_not

    async def __call__(self, caller: Caller, params: DeviceAssignments) -> AssignmentsListed:
        """Those that the caller may know. A VM knows its own; another VM's name selects nothing,
        whether there is such a VM or not."""
        state, sees_all = self._state, caller.kind.sees_all
        await caller.turn()
        if sees_all:
            self._check_names(params)
            found = state.store.all_assignments()
        else:
            found = state.assigned_to(caller.name)
        after = None if params.after is None else _place_of(params.after)
        of_class = [each for each in found if each.key.device_class == params.device_class]
        listed: list[Assigned] = []
        room = Room(FRAME_MAX - ENVELOPE_MAX, PAGE_MAX)
        more = False
        for place, each in await in_order(of_class, _place, caller.turn):
            if after is not None and place <= after:
                continue
            if not _is_named(each, params.vms, params.exclude):
                continue
            if listed and len(listed) % STEP == 0:
                await caller.turn()
            item = self._listed(caller, each)
            if item is None:
                continue
            if not room.takes(item) and listed:
                more = True
                break
            listed.append(item)
        status = policy_status(state) if sees_all else None
        return AssignmentsListed(
            assignments=tuple(listed),
            more=more,
            policy=None if status is None else fitting_status(status, POLICY_BYTES_MAX),
        )

    def _check_names(self, params: DeviceAssignments) -> None:
        """CallError(not_found) for a name that no VM has, nor a removed one had."""
        for name in (*(params.vms or ()), *params.exclude):
            if not self._state.store.assignments(name):
                self._state.known_domain(name)

    def _listed(self, caller: Caller, each: Assignment) -> Assigned | None:
        """One as the caller may see it; None if a rule hides its device."""
        state, sees_all = self._state, caller.kind.sees_all
        found = state.matches(each)
        seen = self._authorizer.may_see(caller.name, found)
        matches = [key for key, is_seen in zip(found, seen, strict=True) if is_seen]
        if not matches and (found or not self._may_see_absent(caller, each)):
            return None
        holders = [
            Holder(key.device, lease.vm)
            for key in matches
            for lease in state.leases.of_device(key)
            if lease.is_made and (sees_all or lease.vm == caller.name)
        ]
        conflict = self._conflict(each, matches) if sees_all else None
        return Assigned(
            vm=each.vm,
            backend=each.key.backend,
            device=each.key.device or None,
            identity=each.identity,
            mode=each.mode,
            options=dict(each.options),
            orphaned=state.is_orphan(each),
            matches=tuple(key.device for key in matches[:MATCHES_MAX]),
            matches_left_out=max(0, len(matches) - MATCHES_MAX),
            holders=tuple(holders[:MATCHES_MAX]),
            conflict=None if conflict is None else bounded_text(conflict),
        )

    def _may_see_absent(self, caller: Caller, each: Assignment) -> bool:
        """Whether no rule hides what is assigned and not there."""
        subject = AssignmentSubject("list", each.key, each.identity)
        decision = self._authorizer.decide(caller.name, subject, caller.name)
        return decision.verdict == "allow" and decision.target == caller.name

    def _conflict(self, each: Assignment, matches: list[DeviceKey]) -> str | None:
        """Why the VM does not get a device that is there, or why none is there though its port is
        taken; None if nothing stands against it."""
        state = self._state
        if not matches:
            is_another = state.registry.get(each.key) is not None
            return why_unmatched(state, each) if is_another else None
        for key in matches:
            if any(lease.vm == each.vm for lease in state.leases.of_device(key)):
                return None
        for key in matches:
            claimed = state.claim(key, each.vm)
            domain = state.domain(each.vm)
            may_start = domain is not None and domain.domid is None and claimed.is_left_to_starts
            if (conflict := claimed.conflict) is not None:
                return None if may_start else conflict
            winner = claimed.winner
            if winner is not None and winner.vm != each.vm and not state.is_orphan(each):
                return f"the assignment to {winner.vm} is more specific, so {key} is for that VM"
            if (why := self._why_not(key, each)) is not None:
                return why
        return None


def _is_named(each: Assignment, vms: Collection[str] | None, exclude: Collection[str]) -> bool:
    users = {each.vm, each.key.backend}
    return (vms is None or not users.isdisjoint(vms)) and not users <= set(exclude)


def _place(each: Assignment) -> Place:
    key = each.key
    identity = each.identity if key.device == ANY_PORT else ""
    return natural_key(each.vm), natural_key(key.backend), natural_key(key.device), identity


def _place_of(name: AssignmentName) -> Place:
    identity = "" if name.device else name.identity
    return (
        natural_key(name.vm),
        natural_key(name.backend),
        natural_key(name.device or ANY_PORT),
        identity,
    )
