"""device.detach: takes a device away from a VM, now and for its next start.

A device that is gone can still be detached: what counts is the lease and the assignment, not
whether the device is reported. The take-down itself cannot fail (see takedown.py), so what a detach
can be refused for is policy, an attach that is still in progress, and nothing to detach.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio
from pedos_protocol.errors import CallError
from pedos_protocol.messages import DetachItem, DetachResult, ErrorInfo
from pedos_protocol.names import natural_key

from pedos_dom0 import errors
from pedos_dom0.access import as_told
from pedos_dom0.leases import PENDING

if TYPE_CHECKING:
    from pedos_dom0.access import Access, Caller
    from pedos_dom0.leases import Lease
    from pedos_dom0.reconcile import Reconciler
    from pedos_dom0.registry import DeviceKey
    from pedos_dom0.state import State
    from pedos_dom0.takedown import TakeDown


class Detach:
    """Serves device.detach."""

    def __init__(
        self, state: State, access: Access, takedown: TakeDown, reconciler: Reconciler
    ) -> None:
        self._state = state
        self._access = access
        self._takedown = takedown
        self._reconciler = reconciler

    async def one(self, caller: Caller, request: str, key: DeviceKey, vm: str) -> DetachResult:
        """Detaches one device, and returns when it is done. Raises CallError."""
        if caller.is_dom0:
            self._check_vm(vm)
        await self._reconciler.wait_settled(key.backend, vm)
        return DetachResult(
            results=(await self._detach(caller, request, key, vm),), request=request
        )

    async def all(self, caller: Caller, request: str, device_class: str, vm: str) -> DetachResult:
        """Detaches everything of a class. A failure stands in its item, and the rest goes on.

        A VM that asks about another one learns of what it may detach there and of nothing else; if
        that is nothing, it gets what it would get for a VM that does not exist.
        """
        if caller.is_dom0:
            self._check_vm(vm)
        await self._reconciler.wait_settled(vm)
        keys = {lease.key for lease in self._state.leases.of_vm(vm)}
        keys |= {assignment.key for assignment in self._state.store.assignments(vm)}
        items: list[DetachItem] = []
        for key in sorted(keys, key=lambda key: natural_key(str(key))):
            if key.device_class != device_class:
                continue
            try:
                items.append(await self._detach(caller, request, key, vm))
            except CallError as error:
                if error.code == "denied" and not caller.is_dom0 and caller.name != vm:
                    continue
                items.append(
                    DetachItem(
                        backend=key.backend,
                        device=key.device,
                        detached=False,
                        unassigned=False,
                        error=ErrorInfo.of(as_told(caller, error, request)),
                    )
                )
        if not items and not caller.is_dom0 and caller.name != vm:
            raise CallError("denied", "", {"device": f"{device_class} devices", "vm": vm})
        return DetachResult(results=tuple(items), request=request)

    def _check_vm(self, vm: str) -> None:
        """A VM that was removed may still have assignments, which must be possible to remove."""
        if self._state.domain(vm) is None and not self._state.store.assignments(vm):
            raise errors.no_vm(vm)

    async def _detach(self, caller: Caller, request: str, key: DeviceKey, vm: str) -> DetachItem:
        began = trio.current_time()
        outcome = "failed"
        try:
            item = await self._detach_allowed(caller, request, key, vm)
            done = [("detached", item.detached), ("unassigned", item.unassigned)]
            outcome = " and ".join(word for word, was in done if was)
            return item
        except CallError as error:
            outcome = f"{error.code}: {error.message}"
            raise
        finally:
            self._state.audit.write(
                "detach",
                request=request,
                caller=caller.name,
                device_class=key.device_class,
                device=str(key),
                vm=vm,
                outcome=outcome,
                seconds=round(trio.current_time() - began, 3),
            )

    async def _detach_allowed(
        self, caller: Caller, request: str, key: DeviceKey, vm: str
    ) -> DetachItem:
        self._access.require(caller, "detach", key, vm, request)
        lease = self._lease(key, vm)
        if lease is not None and lease.state == PENDING:
            raise errors.taken(key, lease)
        detached = lease is not None and await self._takedown.end(
            lease.attachment, f"{caller.name} detached it", request=request
        )
        unassigned = self._state.store.unassign(vm, key)
        if unassigned:
            self._state.registry.touch(key)
        if not detached and not unassigned:
            if caller.is_dom0 or caller.name == vm:
                raise errors.neither(key, vm)
            raise self._access.hidden(key, vm)
        return DetachItem(
            backend=key.backend, device=key.device, detached=detached, unassigned=unassigned
        )

    def _lease(self, key: DeviceKey, vm: str) -> Lease | None:
        return next((lease for lease in self._state.leases.of_device(key) if lease.vm == vm), None)
