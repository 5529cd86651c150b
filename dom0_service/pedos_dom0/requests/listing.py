"""device.list: the devices, who uses them, and how much of that the caller may see.

Everything comes from dom0's own tables: a listing never calls a VM, so a hanging VM does not delay
it.
"""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections import defaultdict
from heapq import merge
from itertools import islice
from typing import TYPE_CHECKING

import attrs
from pedos_host.throttle import Throttle
from pedos_protocol.codec import FRAME_MAX
from pedos_protocol.fields import PAGE_DEVICES_MAX
from pedos_protocol.listing_messages import MISSING_MAX
from pedos_protocol.messages import (
    AssignedTo,
    AttachedTo,
    Device,
    DeviceListed,
    Listed,
    MissingIn,
)
from pedos_protocol.names import natural_key
from pedos_protocol.schema import Room

from pedos_dom0.access.callers import DOM0_USER
from pedos_dom0.attachments.strays import STRAY
from pedos_dom0.drivers.base import DOM0_NAME, DriverError
from pedos_dom0.requests.fitting import bounded_text, fitting
from pedos_dom0.requests.policy_status import fitting_status, policy_status, with_errors
from pedos_dom0.tables.assignment import ANY_PORT
from pedos_dom0.tables.device_set import DeviceKey, DeviceSet
from pedos_dom0.tasks.gradually import gradually

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

    from pedos_protocol.messages import PolicyStatus

    from pedos_dom0.access.authorizer import Authorizer
    from pedos_dom0.access.callers import Caller
    from pedos_dom0.attachments.muting import Muting
    from pedos_dom0.attachments.teardown import Teardown
    from pedos_dom0.state import State
    from pedos_dom0.tables.device_set import Place
    from pedos_dom0.tables.leases import Lease
    from pedos_dom0.tables.store import Assignment

    #: A device, and an assignment of it.
    Use = tuple[DeviceKey, Assignment]

logger = logging.getLogger(__name__)

# Errors of the policy in a listing. They only show that something is wrong; service.status has them
# all.
POLICY_ERRORS_MAX = 8
POLICY_BYTES_MAX = 10 * 1024
# Bytes of an answer beside the devices: its envelope, the policy's status, which VMs have more
# devices (32 lines of 250 bytes), and which are muted (256 names).
ENVELOPE_MAX = 29 * 1024
# Bytes of the assignments of one device: those to 250 VMs with the longest names, each of which is
# named twice if it was removed. So a device always fits onto a page.
ASSIGNED_MAX = 16 * 1024
# Why no device is listed of a VM that may have some.
NO_AGENT = "it runs, but its agent is not connected"
# Devices to look at in one step: some milliseconds.
STEP = 64


class Listing:
    """Makes listings of the present state."""

    def __init__(
        self, state: State, authorizer: Authorizer, teardown: Teardown, muting: Muting
    ) -> None:
        self._state = state
        self._authorizer = authorizer
        self._teardown = teardown
        self._muting = muting
        self._throttle = Throttle()

    def _listed(self, key: DeviceKey, uses: Uses, *, for_dom0: bool, stray: str | None) -> Listed:
        """One device with its users; `present` is False if its source does not report it. `stray`
        says who has it without an attachment.

        A VM is not told what holds an attachment that should have ended: that is about other VMs.
        """
        device = self._state.registry.get(key)
        present = device is not None
        if device is None:
            device = Device(
                device_class=key.device_class,
                device=key.device,
                identity="",
                description="(not present)",
                size=None,
                parent=None,
                read_only=False,
                busy=None,
            )
        attached = [self._attached(each, for_dom0=for_dom0) for each in uses.lent.get(key, ())]
        assignments = _each_vms(key, uses.assigned.get(key, ()), self._state)
        told = fitting(
            (AssignedTo(each.vm, dict(each.options), mode=each.mode) for each in assignments),
            ASSIGNED_MAX,
        )
        if stray is not None and not attached:
            device = attrs.evolve(device, busy=stray)
        has = {to.vm for to in attached}
        conflict = self._conflict(key, has) if for_dom0 and assignments else None
        return Listed(
            **{field.name: getattr(device, field.name) for field in attrs.fields(Device)},
            backend=key.backend,
            # All of them: a VM lends no more than ATTACHMENTS_MAX altogether.
            attachments=tuple(sorted(attached, key=lambda to: to.vm)),
            assignments=told,
            orphans=tuple(
                each.vm for each in assignments[: len(told)] if self._state.is_orphan(each)
            ),
            assignments_left_out=len(assignments) - len(told),
            present=present,
            conflict=None if conflict is None else bounded_text(conflict),
        )

    def _attached(self, lease: Lease, *, for_dom0: bool) -> AttachedTo:
        heard = self._state.agents.heard(lease)
        return AttachedTo(
            vm=lease.vm,
            options=dict(lease.options),
            left_over=self._teardown.why_left_over(lease.attachment) if for_dom0 else None,
            listening=None if heard is None else heard.listening,
            muted=self._state.is_muted(lease),
            unconfirmed=self._muting.why_unconfirmed(lease) if for_dom0 else None,
        )

    def _conflict(self, key: DeviceKey, has: Collection[str]) -> str | None:
        """Why no VM beside those that have it gets it by itself; None if nothing stands against
        it."""
        for whose, claim in self._state.claims(key).items():
            is_had = whose in has if whose else bool(has)
            if not is_had and not claim.is_left_to_starts and claim.conflict is not None:
                return claim.conflict
        return None

    async def for_dom0(
        self,
        device_class: str,
        vms: Collection[str] | None,
        exclude: Collection[str],
        after: str | None = None,
    ) -> DeviceListed:
        """The devices of and in the named VMs. Excluding VMs means naming all the others.

        Raises CallError(not_found) for a name that no VM has.
        """
        for name in (*(vms or ()), *exclude):
            if not self._state.store.assignments(name):  # which a VM that was removed may have
                self._state.known_domain(name)
        uses = Uses(self._state.leases, (), device_class)
        await gradually(
            self._state.store.all_assignments(),
            DOM0_USER.turn,
            lambda some: uses.add(self._by_device(some)),
        )

        def is_wanted(key: DeviceKey) -> bool:
            users = uses.of(key)
            return (vms is None or not users.isdisjoint(vms)) and not users <= set(exclude)

        status = policy_status(self._state)
        # The service's status has all of them, and the lines themselves.
        status = with_errors(status, status.errors, POLICY_ERRORS_MAX)
        errors = tuple(attrs.evolve(error, text="") for error in status.errors)
        status = fitting_status(attrs.evolve(status, errors=errors), POLICY_BYTES_MAX)
        registry = self._state.registry
        page = _Page()
        for backend in sorted({*registry.backends(), *uses.backends()}, key=natural_key):
            is_whole = (vms is None or backend in vms) and backend not in exclude
            devices = registry.devices_of(backend) if is_whole else DeviceSet(backend)
            keys = uses.merged(devices, device_class, after)
            if not await self._fill(page, DOM0_USER, keys, uses, is_wanted):
                return page.listed(status)
        names = {DOM0_NAME, *self._state.driver.domains(), *registry.backends()}
        missing = [
            found
            for backend in sorted(names, key=natural_key)
            if (vms is None or backend in vms) and backend not in exclude
            if (found := self._missing(backend, device_class)) is not None
        ]
        muted = tuple(self._state.store.muted(device_class))
        return attrs.evolve(page.listed(status, missing), muted=muted)

    async def for_vm(
        self,
        caller: Caller,
        device_class: str,
        vms: Collection[str] | None,
        exclude: Collection[str],
        after: str | None = None,
    ) -> DeviceListed:
        """A VM's own devices and those it has, as far as policy lets it see them.

        The name of another VM selects nothing, whether such a VM exists or not. Nothing else is
        even looked at: a VM's request must not cost time for what all other VMs have.
        """
        me = caller.name
        if me in exclude or (vms is not None and me not in vms):
            return DeviceListed(devices=())
        state = self._state
        assigned = self._by_device(state.assigned_to(me))
        uses = Uses(state.leases.of_vm(me), assigned, device_class)
        page = _Page()
        for backend in sorted({me, *uses.backends()}, key=natural_key):
            devices = state.registry.devices_of(me) if backend == me else DeviceSet(backend)
            keys = uses.merged(devices, device_class, after)
            if not await self._fill(page, caller, keys, uses):
                return page.listed(None)
        missing = self._missing(me, device_class)
        return page.listed(None, [] if missing is None else [missing])

    def _missing(self, backend: str, device_class: str) -> MissingIn | None:
        """Why the devices of a class that a VM has may not all be listed; None if they are."""
        found = self._state.registry.missing(backend, device_class)
        if found is not None:
            return MissingIn(device_class, found.count, found.reason, backend)
        domain = self._state.domain(backend)
        if domain is None or domain.state == "Halted" or self._state.agents.get(backend):
            return None
        return MissingIn(device_class, None, NO_AGENT, backend)

    def _strays(self, classes: Collection[str]) -> dict[DeviceKey, str]:
        """The devices of dom0 that VMs have without an attachment, and that in words."""
        found = {}
        for name in classes:
            try:
                strays = self._state.carrier(name).strays()
            except DriverError as error:
                if (more := self._throttle.more(name)) is not None:
                    logger.warning(
                        "which VMs have %s devices is not known: %s%s", name, error, more
                    )
                continue
            for device, vm in strays.items():
                found[DeviceKey(name, DOM0_NAME, device)] = STRAY.format(vm=vm)
        return found

    def uses_of(self, caller: Caller, keys: Collection[DeviceKey]) -> Uses:
        """Who has some devices, and is to have them, as far as the caller may know."""
        state, me = self._state, caller.name
        leases = [lease for lease in state.leases if lease.key in keys]
        assigned = [(key, each) for key in keys for each in state.assignments_to(key)]
        if not caller.kind.sees_all:
            leases = [lease for lease in leases if lease.vm == me]
            assigned = [
                (key, each) for key, each in assigned if each.vm == me and not state.is_orphan(each)
            ]
        return Uses(leases, assigned)

    def _by_device(self, assignments: Iterable[Assignment]) -> Iterator[Use]:
        """Each with the device at its port, or with those that are there and have its identity."""
        for each in assignments:
            if each.key.device == ANY_PORT:
                yield from ((key, each) for key in self._state.matches(each))
            else:
                yield each.key, each

    def by_vm(self, keys: Sequence[DeviceKey]) -> Mapping[str, Sequence[DeviceKey]]:
        """By VM, those of these devices that are its own, that it has, or that it is to have."""
        state, found = self._state, defaultdict[str, list[DeviceKey]](list)
        changed = set(keys)
        for lease in state.leases:
            if lease.key in changed:
                found[lease.vm].append(lease.key)
        for key in keys:
            found[key.backend].append(key)
            for assignment in state.assignments_to(key):
                found[assignment.vm].append(key)
        return found

    def keys_for(self, caller: Caller) -> Iterator[DeviceKey]:
        """All devices that the caller might see, of every class, present or not; some twice. What
        changes while they are taken may be missing."""
        state, me = self._state, caller.name
        if caller.kind.sees_all:
            leases, assigned = list(state.leases), state.store.all_assignments()
            backends = state.registry.backends()
        else:
            leases, assigned = state.leases.of_vm(me), state.assigned_to(me)
            backends = [me]
        yield from (lease.key for lease in leases if lease.is_made)
        yield from (key for key, _ in self._by_device(assigned))
        for backend in backends:
            for key, _ in state.registry.devices_of(backend).by_name.values():
                yield key

    def shown_to(
        self, caller: Caller, keys: Sequence[DeviceKey], uses: Uses
    ) -> list[Listed | None]:
        """Each device as the caller may see it, or None: the one place that decides this, for lists
        and for watches. `uses` has what the caller may know of their users.

        A VM sees none but its own devices and those that it has or is to have; other users of them
        are left out, so that VMs do not learn of each other.
        """
        sees_all = caller.kind.sees_all
        strays = self._strays({key.device_class for key in keys}) if sees_all else {}
        shown: list[Listed | None] = []
        allowed = self._authorizer.may_see(caller.name, keys)
        for key, is_allowed in zip(keys, allowed, strict=True):
            users = uses.of(key)
            device = None
            if is_allowed and (sees_all or caller.name in users):
                device = self._listed(key, uses, for_dom0=sees_all, stray=strays.get(key))
                # A device that has disappeared, and is not used, is left out.
                if not device.present and len(users) == 1:
                    device = None
            shown.append(device)
        return shown

    async def _fill(
        self,
        page: _Page,
        caller: Caller,
        keys: Iterable[DeviceKey],
        uses: Uses,
        is_wanted: Callable[[DeviceKey], bool] = lambda _key: True,
    ) -> bool:
        """Puts those that the caller sees, and that are wanted, onto the page; False when it is
        full. It yields to others, and awaits the caller's turn before each step but the first: a VM
        may have thousands of devices."""
        left = iter(keys)
        while some := uses.portion(left):
            if page.is_begun:
                await caller.turn()
            page.is_begun = True
            for device in self.shown_to(caller, list(filter(is_wanted, some)), uses):
                if device is not None and not page.take(device):
                    return False
        return True


class Uses:
    """Who has devices, and is to have them: those of a class, or of all classes."""

    def __init__(
        self,
        leases: Iterable[Lease],
        assigned: Iterable[Use],
        device_class: str | None = None,
    ) -> None:
        self.lent: defaultdict[DeviceKey, list[Lease]] = defaultdict(list)
        self.assigned: defaultdict[DeviceKey, list[Assignment]] = defaultdict(list)
        self._device_class = device_class
        # By VM, the places of those in the order in which they were added.
        self._places: defaultdict[str, list[list[Place]]] = defaultdict(list)
        for lease in leases:
            if lease.is_made and device_class in (None, lease.key.device_class):
                self.lent[lease.key].append(lease)
        self._place(self.lent)
        self.add(assigned)

    def add(self, assigned: Iterable[Use]) -> None:
        """Adds some assignments: of thousands, only a portion at a time."""
        new = []
        for key, assignment in assigned:
            if self._device_class in (None, key.device_class):
                if key not in self.assigned and key not in self.lent:
                    new.append(key)
                self.assigned[key].append(assignment)
        self._place(new)

    def _place(self, keys: Iterable[DeviceKey]) -> None:
        places: defaultdict[str, list[Place]] = defaultdict(list)
        for key in keys:
            places[key.backend].append((natural_key(key.device), key))
        for backend, its in places.items():
            self._places[backend].append(sorted(its))

    def backends(self) -> list[str]:
        """The VMs that own the devices."""
        return [*self._places]

    def portion(self, keys: Iterator[DeviceKey]) -> list[DeviceKey]:
        """The next of some keys, as many as can be looked at in one step: each assignment of a
        device takes its time."""
        some, left = [], STEP
        for key in keys:
            some.append(key)
            left -= 1 + len(self.assigned.get(key, ()))
            if left <= 0:
                break
        return some

    def of(self, key: DeviceKey) -> set[str]:
        """The VM that has the device and those that it is lent to, or is to be."""
        return {
            key.backend,
            *(lease.vm for lease in self.lent.get(key, ())),
            *(assignment.vm for assignment in self.assigned.get(key, ())),
        }

    def merged(
        self, devices: DeviceSet, device_class: str, after: str | None
    ) -> Iterator[DeviceKey]:
        """The devices of a class that a VM has and those of it that are used, present or not, in
        natural order: those after `after`. The uses are those of this class alone."""
        backend = devices.backend
        of_class = devices.in_order(device_class)
        used = self._places.get(backend, [])
        start = 0
        if after is not None:
            last_backend, _, last = after.partition(":")
            if natural_key(backend) < natural_key(last_backend):
                return
            if backend == last_backend:
                place = (natural_key(last), DeviceKey(device_class, backend, last))
                start = bisect_right(of_class, place)
                used = [places[bisect_right(places, place) :] for places in used]
        before = None
        for _, key in merge(islice(of_class, start, None), *used):
            if key != before:  # one that is used is in both
                yield key
            before = key


def _each_vms(key: DeviceKey, assignments: Iterable[Assignment], state: State) -> list[Assignment]:
    """The one of each VM that applies to the device, in the order of VMs: the most specific that is
    to it."""
    identity = state.registry.lasting_identity(key) or ""
    found: dict[str, Assignment] = {}
    for each in sorted(assignments, key=lambda each: (each.fits(key, identity), each.weight)):
        found[each.vm] = each
    return [found[vm] for vm in sorted(found)]


class _Page:
    """As many devices as one frame holds. The order is by name and not by position, so devices that
    appear or disappear between two pages make no other device be missed or listed twice."""

    def __init__(self) -> None:
        self.is_begun = False
        self._devices: list[Listed] = []
        self._room = Room(FRAME_MAX - ENVELOPE_MAX, PAGE_DEVICES_MAX)

    def take(self, device: Listed) -> bool:
        """Adds one; False when there is no room."""
        if not self._room.takes(device) and self._devices:
            return False
        self._devices.append(device)
        return True

    def listed(
        self, status: PolicyStatus | None, missing: Sequence[MissingIn] | None = None
    ) -> DeviceListed:
        """The answer; `missing` is None on all but the last one."""
        return DeviceListed(
            devices=tuple(self._devices),
            more=missing is None,
            policy=status,
            missing=tuple(missing or ())[:MISSING_MAX],
            missing_vms=len(missing or ()),
        )
