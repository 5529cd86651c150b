"""device.detach: takes a device away from a VM, now and for its next start.

A missing device can still be detached: the lease and the assignment count, not whether the device
is reported. A detach is refused by policy, while an attach is in progress, if there is nothing to
detach, and by the VM that uses the device (see attachments/teardown.py).
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import trio
from pedos_protocol.codec import FRAME_MAX
from pedos_protocol.errors import CallError
from pedos_protocol.frozen import frozen
from pedos_protocol.messages import DetachItem, DetachResult, ErrorInfo
from pedos_protocol.names import natural_key
from pedos_protocol.schema import wire_size

from pedos_dom0 import errors
from pedos_dom0.access.authorizer import Consents, MustAsk
from pedos_dom0.access.callers import as_told
from pedos_dom0.access.recorded import recorded
from pedos_dom0.access.subjects import DeviceSubject
from pedos_dom0.attachments.ways import DETACHED, FORCED
from pedos_dom0.device_classes.registered import class_of
from pedos_dom0.requests import unassign
from pedos_dom0.requests.fitting import ENVELOPE_MAX, fitting, results_fitting
from pedos_dom0.tables.assignment import ANY_PORT
from pedos_dom0.tables.leases import broken_by
from pedos_dom0.tables.store import HeldBack, StoreError

if TYPE_CHECKING:
    from collections.abc import Collection

    from pedos_protocol.messages import UnassignItem

    from pedos_dom0.access.authorizer import Authorizer
    from pedos_dom0.access.callers import Caller
    from pedos_dom0.attachments.reconcile import Reconciler
    from pedos_dom0.attachments.teardown import Teardown
    from pedos_dom0.state import State
    from pedos_dom0.tables.leases import Lease
    from pedos_dom0.tables.registry import DeviceKey
    from pedos_dom0.tables.store import Assignment


@frozen
class Asking(unassign.Asking):
    """Who asks, and how."""

    force: bool  # also what the VM uses
    # The one that the device had when it was chosen; None if any will do.
    identity: str | None = None


class Detach:
    """Serves device.detach."""

    def __init__(
        self,
        state: State,
        authorizer: Authorizer,
        teardown: Teardown,
        reconciler: Reconciler,
        unassigns: unassign.Unassign,
    ) -> None:
        self._state = state
        self._authorizer = authorizer
        self._teardown = teardown
        self._reconciler = reconciler
        self._unassign = unassigns

    async def one(self, asking: Asking, key: DeviceKey, vm: str) -> DetachResult:
        """Detaches one device, and returns when it is done. Raises CallError."""
        caller = asking.caller
        if caller.kind.sees_all:
            self._check_vm(vm)
        # A VM must not learn from the duration of a denial.
        if (
            caller.kind.sees_all
            or self._authorizer.decide(caller.name, DeviceSubject("detach", key), vm).verdict
            != "deny"
        ):
            await self._reconciler.wait_settled(key.backend, vm)
        return DetachResult(results=(await self._detach(asking, key, vm),), request=asking.request)

    async def all(self, asking: Asking, device_class: str, vm: str) -> DetachResult:
        """Detaches everything of a class, all at once: hanging VMs delay it together. A failure
        stands in its item, and the rest continues. Assignments to what is not there end too, so
        that nothing of the class comes to the VM after that.

        A VM that asks about another one learns what it may detach there and nothing else; if that
        is nothing, it gets the answer for a VM that does not exist.
        """
        caller = asking.caller
        if caller.kind.sees_all:
            self._check_vm(vm)
        if caller.kind.sees_all or caller.name == vm:  # as above, for a VM that asks about another
            await self._reconciler.wait_settled(vm)
        keys = {lease.key for lease in self._state.leases.of_vm(vm)}
        assigned = map(self._key_of, self._assigned(caller, vm))
        keys |= {key for key in assigned if key is not None}
        done: dict[DeviceKey, DetachItem] = {}

        async def detach(key: DeviceKey) -> None:
            item = await self._item(asking, key, vm)
            if item is not None:
                done[key] = item

        async with trio.open_nursery() as nursery:
            for key in keys:
                if key.device_class == device_class:
                    nursery.start_soon(detach, key)
        items = [done[key] for key in sorted(done, key=lambda key: natural_key(str(key)))]
        gone = await self._unassign_absent(asking, device_class, vm)
        if not items and not gone and not caller.kind.sees_all and caller.name != vm:
            about = f"{device_class} devices"
            raise errors.DeniedError(f"{about} -> {vm}", "", {"device": about, "vm": vm})
        results = results_fitting(items)
        told = fitting(gone, FRAME_MAX - ENVELOPE_MAX - sum(map(wire_size, results)))
        return DetachResult(
            results=results,
            request=asking.request,
            unassigned=told,
            unassigned_left_out=len(gone) - len(told),
        )

    async def _unassign_absent(
        self, asking: Asking, device_class: str, vm: str
    ) -> list[UnassignItem]:
        """Takes the assignments away that are to an identity which no device has."""
        items = []
        for each in self._assigned(asking.caller, vm):
            if each.key.device_class == device_class and self._key_of(each) is None:
                item = await self._unassign.item(asking, each, "detach")
                if item is not None:
                    items.append(item)
        return items

    async def _item(self, asking: Asking, key: DeviceKey, vm: str) -> DetachItem | None:
        """The result for one of many; None if the caller may not learn that it exists."""
        caller = asking.caller
        try:
            return await self._detach(asking, key, vm)
        except CallError as failed:
            error = failed
        if error.code == "denied" and not caller.kind.sees_all and caller.name != vm:
            return None
        return DetachItem(
            backend=key.backend,
            device=key.device,
            detached=False,
            unassigned=False,
            error=ErrorInfo.of(as_told(caller, error, asking.request)),
        )

    def _check_vm(self, vm: str) -> None:
        """A removed VM may still have assignments, which must be possible to remove."""
        if self._state.domain(vm) is None and not self._state.store.assignments(vm):
            raise errors.no_vm(vm)

    async def _detach(self, asking: Asking, key: DeviceKey, vm: str) -> DetachItem:
        caller = asking.caller
        names = {"device_class": key.device_class, "device": str(key), "vm": vm}
        with recorded(self._state, "detach", caller, asking.request, **names) as ending:
            item = await self._detach_allowed(asking, key, vm)
            done = [("detached", item.detached), ("unassigned", item.unassigned)]
            ending.outcome = " and ".join(word for word, was in done if was)
            ending.changed = True
        return item

    async def _detach_allowed(self, asking: Asking, key: DeviceKey, vm: str) -> DetachItem:
        caller = asking.caller
        if not (caller.kind.may_unassign and self._authorizer.needs_no_rule(key, vm)):
            await self._allow(asking, key, vm)
        lease = self._lease(key, vm)
        self._check_same(asking, key, vm, lease)
        if lease is not None and self._teardown.is_in_the_making(lease):
            raise errors.taken(key, lease)
        assigned = self._assigned_to(key, lease, self._assigned(caller, vm))
        detached = lease is not None and await self._end(asking, lease)
        try:
            unassigned = False
            for each in assigned:
                if await self._state.store.unassign(vm, each.key, each.identity):
                    unassigned = True
                    self._state.touch(each)
        except StoreError as error:
            if not detached:
                raise
            raise errors.still_assigned(key, vm, str(error)) from error
        if not detached and not unassigned:
            raise self._nothing_there(caller, key, vm)
        return DetachItem(
            backend=key.backend, device=key.device, detached=detached, unassigned=unassigned
        )

    def _check_same(self, asking: Asking, key: DeviceKey, vm: str, lease: Lease | None) -> None:
        """CallError if the VM has another device under that name than the one that was chosen, or,
        where it has none, if another one is there now.

        The lease has the identity of when it was attached. The device may have another one by now,
        which a list shows: a disk that the VM has formatted. One that is not there is listed
        without any.
        """
        if asking.identity is None:
            return
        device = self._state.registry.get(key)
        now = [] if device is None else [device.identity]
        if lease is not None:
            is_it = device is not None and broken_by(lease, device) is None
            now = now if is_it else [""] if device is None else []
            now += [] if lease.identity is None else [lease.identity]
        if not now or asking.identity in now:
            return
        if asking.caller.kind.sees_all or (lease is not None and asking.caller.name == vm):
            raise errors.another_device(key, asking.identity, now[-1])
        raise self._nothing_there(asking.caller, key, vm)

    async def _end(self, asking: Asking, lease: Lease) -> bool:
        """Ends an attachment, which does not come back by itself: that is noted first. CallError if
        it stands."""
        key, let_go = lease.key, self._state.store.let_go
        held_back = await self._hold_back(lease)
        try:
            detached = await self._teardown.end(
                lease.attachment,
                f"{asking.caller.name} detached it{' by force' if asking.force else ''}",
                way=FORCED if asking.force else DETACHED,
                request=asking.request,
            )
        except CallError:
            with contextlib.suppress(StoreError):  # what stays is held back, and not taken
                for vm in held_back:
                    await let_go(key, vm)
            raise
        if (held := self._teardown.why_held(lease.attachment)) is not None:
            raise held
        return detached

    async def _hold_back(self, lease: Lease) -> Collection[str]:
        """Keeps the device, as it is plugged in now, from all running VMs that would get it by
        themselves; returns those. Other VMs' do not get it because of this end if they may have it
        anyway."""
        state, key = self._state, lease.key
        device = state.registry.get(key)
        runs = {}
        for each in state.assignments_to(key):
            domain = state.domain(each.vm)
            is_its = state.whose(key, each.vm) == state.whose(key, lease.vm)
            if is_its and domain is not None and domain.domid is not None:
                runs[each.vm] = domain.domid
        if device is not None and runs:
            await state.store.hold_back(HeldBack(key, device.instance, runs))
        return runs

    def _key_of(self, each: Assignment) -> DeviceKey | None:
        """The device whose detach takes an assignment away; None if none is there. Of several with
        one identity it is the one that the VM has, if it has one."""
        if each.key.device != ANY_PORT:
            return each.key
        matches = self._state.matches(each)
        has = (key for key in matches if self._lease(key, each.vm) is not None)
        return next(has, matches[0] if matches else None)

    def _assigned_to(
        self, key: DeviceKey, lease: Lease | None, assignments: list[Assignment]
    ) -> list[Assignment]:
        """Those to the port, and those to the identity of what is lent, or is there."""
        identity = self._state.registry.lasting_identity(key) or ""
        if lease is not None and lease.identity is not None:
            identity = class_of(key.device_class).lasting_identity(lease.identity)
        return [
            each
            for each in assignments
            if each.key == key or (each.key.device == ANY_PORT and each.fits(key, identity))
        ]

    async def _allow(self, asking: Asking, key: DeviceKey, vm: str) -> None:
        """CallError unless the policy, or dom0's user, allows it."""
        caller, request = asking.caller, asking.request
        subject = DeviceSubject("detach", key)
        try:
            self._authorizer.require(caller, subject, vm, request)
        except MustAsk as needed:
            self._check_there(caller, key, vm)
            consents = Consents()
            await self._authorizer.ask(caller, needed, request, consents, asking.gone)
            self._authorizer.require(caller, subject, vm, request, consents)

    def _check_there(self, caller: Caller, key: DeviceKey, vm: str) -> None:
        """Dom0's user must not be asked about what does not exist. Raises CallError."""
        if self._lease(key, vm) is None and not self._assigned_to(
            key, None, self._assigned(caller, vm)
        ):
            raise self._nothing_there(caller, key, vm)

    def _nothing_there(self, caller: Caller, key: DeviceKey, vm: str) -> CallError:
        if caller.kind.sees_all or caller.name == vm:
            return errors.neither(key, vm)
        return self._authorizer.hidden(DeviceSubject("detach", key), vm, errors.neither(key, vm))

    def _assigned(self, caller: Caller, vm: str) -> list[Assignment]:
        """The assignments of the VM that concern the caller."""
        state = self._state
        return state.store.assignments(vm) if caller.kind.sees_all else state.assigned_to(vm)

    def _lease(self, key: DeviceKey, vm: str) -> Lease | None:
        return next((lease for lease in self._state.leases.of_device(key) if lease.vm == vm), None)
