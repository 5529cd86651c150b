"""device.list: what there is, who uses it, and what of that the caller may see.

Everything comes from dom0's own tables: a listing never calls out to a VM, so a VM that hangs does
not hold it up.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import attrs
from pedos_protocol.codec import FRAME_MAX, ITEMS_MAX, encode
from pedos_protocol.fields import ATTACHMENTS_MAX
from pedos_protocol.messages import (
    AssignedTo,
    AttachedTo,
    Device,
    DeviceListed,
    Listed,
    to_wire,
)
from pedos_protocol.names import natural_key

from pedos_dom0.drivers.base import DOM0_NAME
from pedos_dom0.explaining import fitting
from pedos_dom0.leases import PENDING
from pedos_dom0.registry import DeviceKey

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from pedos_protocol.messages import PolicyStatus

    from pedos_dom0.access import Access, Caller
    from pedos_dom0.leases import Lease
    from pedos_dom0.state import State
    from pedos_dom0.store import Assignment

# Errors of the policy that a listing carries along. It is there to say that something is wrong;
# service.status has them all.
POLICY_ERRORS_MAX = 8
POLICY_BYTES_MAX = 10 * 1024
# Bytes of an answer that are not devices: its envelope, and the policy's status.
ENVELOPE_MAX = 12 * 1024


class Listing:
    """Makes listings of the present state."""

    def __init__(self, state: State, access: Access) -> None:
        self._state = state
        self._access = access

    def listed(
        self,
        key: DeviceKey,
        assignments: Iterable[Assignment] | None = None,
        leases: Iterable[Lease] | None = None,
    ) -> Listed:
        """One device with its users; `present` is False if its source does not report it.

        Who lists many devices has looked up who uses them, and names it for each.
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
        if assignments is None:
            assignments = self._state.store.assignments_of(key)
        if leases is None:
            leases = self._state.leases.of_device(key)
        attached = [
            AttachedTo(vm=lease.vm, options=dict(lease.options))
            for lease in leases
            if lease.state != PENDING
        ]
        assigned = [AssignedTo(vm=a.vm, options=dict(a.options)) for a in assignments]
        return Listed(
            **{field.name: getattr(device, field.name) for field in attrs.fields(Device)},
            backend=key.backend,
            attachments=tuple(sorted(attached, key=lambda to: to.vm)[:ATTACHMENTS_MAX]),
            assignments=tuple(sorted(assigned, key=lambda to: to.vm)[:ATTACHMENTS_MAX]),
            present=present,
        )

    def everything(self, device_class: str) -> list[Listed]:
        """All devices of a class, and gone ones that are still attached or assigned, in order."""
        state = self._state
        keys = [key for key, _ in state.registry.items(device_class)]
        return self._of_class(device_class, keys, state.leases, state.store.assignments())

    def _of_class(
        self,
        device_class: str,
        keys: Iterable[DeviceKey],
        leases: Iterable[Lease],
        assignments: Iterable[Assignment],
    ) -> list[Listed]:
        """These devices and those that the leases and assignments are of, in order, with these
        users and no others."""
        lent, assigned = defaultdict(list), defaultdict(list)
        for lease in leases:
            if lease.state != PENDING:
                lent[lease.key].append(lease)
        for assignment in assignments:
            assigned[assignment.key].append(assignment)
        return [
            self.listed(key, assigned.get(key, ()), lent.get(key, ()))
            for key in sorted({*keys, *lent, *assigned}, key=lambda key: natural_key(str(key)))
            if key.device_class == device_class
        ]

    def for_dom0(
        self,
        device_class: str,
        vms: Collection[str] | None,
        exclude: Collection[str],
        after: str | None = None,
    ) -> DeviceListed:
        """The devices of and in the named VMs. Excluding VMs is naming all the others.

        dom0's user sees everything but what a rule denies by name: with no rule at all, or a policy
        that cannot be read, an administrator still has to see what there is. Raises
        CallError(not_found) for a name that no VM has.
        """
        for name in (*(vms or ()), *exclude):
            self._state.known_domain(name)
        devices = self._not_hidden(self.everything(device_class))
        if vms is not None:
            devices = [device for device in devices if _users(device) & set(vms)]
        if exclude:
            devices = [device for device in devices if _users(device) - set(exclude)]
        status = self._state.policy_status()
        # What the lines say is for who looks at the status itself.
        errors = [attrs.evolve(error, text="") for error in status.errors[:POLICY_ERRORS_MAX]]
        status = fitting(attrs.evolve(status, errors=tuple(errors)), POLICY_BYTES_MAX)
        return _page(devices, after, status)

    def _not_hidden(self, devices: list[Listed]) -> list[Listed]:
        """Those of which no rule, as opposed to the lack of one, denies dom0's user the sight."""
        decisions = self._access.decide_all(DOM0_NAME, "list", map(_key, devices), DOM0_NAME)
        return [
            device
            for device, decision in zip(devices, decisions, strict=True)
            if decision.verdict == "allow" or decision.rule is None
        ]

    def for_vm(
        self,
        caller: Caller,
        device_class: str,
        vms: Collection[str] | None,
        exclude: Collection[str],
        after: str | None = None,
    ) -> DeviceListed:
        """What a VM may see: its own devices and those it has, as far as policy lets it.

        Other users of them are left out, so that VMs do not learn of each other; a name of another
        VM selects nothing, whether there is such a VM or not. Nothing else is even looked at: what
        a VM asks for must not cost what all other VMs have.
        """
        me = caller.name
        if me in exclude or (vms is not None and me not in vms):
            return DeviceListed(devices=())
        state = self._state
        devices = self._of_class(
            device_class,
            state.registry.of_backend(me, device_class),
            state.leases.of_vm(me),
            state.store.assignments(me),
        )
        decisions = self._access.decide_all(me, "list", map(_key, devices), me)
        allowed = [
            device
            for device, decision in zip(devices, decisions, strict=True)
            if decision.verdict == "allow" and decision.target == me
        ]
        return _page(allowed, after, None)


def _key(device: Listed) -> DeviceKey:
    return DeviceKey(device.device_class, device.backend, device.device)


def _users(device: Listed) -> set[str]:
    """The VM that has the device and those that it is lent to."""
    return {
        device.backend,
        *(to.vm for to in device.attachments),
        *(to.vm for to in device.assignments),
    }


def _page(devices: list[Listed], after: str | None, status: PolicyStatus | None) -> DeviceListed:
    """As many of the devices behind `after` as one frame holds; they come in natural order.

    The order is by name and not by place, so devices that come and go between two pages make none
    of the others be missed or listed twice.
    """
    if after is not None:
        passed = natural_key(after)
        devices = [device for device in devices if natural_key(str(_key(device))) > passed]
    size, count = 0, 0
    for device in devices[:ITEMS_MAX]:
        size += len(encode([to_wire(device)]))
        if size > FRAME_MAX - ENVELOPE_MAX and count:
            break
        count += 1
    return DeviceListed(devices=tuple(devices[:count]), more=count < len(devices), policy=status)
