"""Who holds which device. `grant` alone gives a lease, `free` alone ends one.

A device is leased to at most one VM (a microphone excepted), and so is everything that holds the
same data: while a partition is leased, its disk cannot be, and vice versa.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import attrs
from attrs import field
from pedos_protocol.frozen import frozen
from pedos_protocol.messages import Device
from pedos_protocol.reasons import UNPLUGGED, why_replaced

from pedos_dom0.device_classes.registered import class_of
from pedos_dom0.tables.ports import Channel, Ports
from pedos_dom0.tables.registry import DeviceKey

# The journal's states of an attachment: being made, made, being undone.
PENDING, ATTACHED, DETACHING = STATES = ("pending", "attached", "detaching")


@attrs.frozen  # it checks a value
class Lease:
    """One attachment, complete or in progress: `key` is lent to the VM `vm`.

    `port` is the data channel's; the domids are those that were running at the grant, so that a
    restarted VM is not taken for the one that held the lease. `identity` and `instance` are those
    of the device of the decision; the grant is for that device only (see `broken_by`).
    `by_hypervisor`: whether the hypervisor carried it when it was made (Carrier). None: a version
    of the service that did not store them made it.
    """

    attachment: str
    key: DeviceKey
    vm: str
    options: Mapping[str, str]
    frontend: str | None
    port: int
    backend_domid: int
    vm_domid: int
    state: str = field(validator=attrs.validators.in_(STATES))
    identity: str | None = None
    instance: str | None = None
    by_hypervisor: bool | None = None

    @property
    def is_made(self) -> bool:
        """Whether the target has, or had, the device."""
        return self.state != PENDING

    @property
    def channel(self) -> Channel:
        """The source listens for the target."""
        return Channel(port=self.port, listener=self.backend_domid, peer=self.vm_domid)

    def in_audit(self) -> dict[str, str]:
        """The fields with which every line of the audit log names an attachment."""
        return {
            "attachment": self.attachment,
            "device_class": self.key.device_class,
            "device": str(self.key),
            "vm": self.vm,
        }


def broken_by(lease: Lease, device: Device | None) -> str | None:
    """Why the grant does not hold for the device that the source reports under that id; None if it
    does.

    A report has no devices of a class that this dom0 does not know, and so says nothing of them.
    The VM that has the disk may format it: then the disk has another file system's UUID and is the
    same.
    """
    if device is None:
        is_known = class_of(lease.key.device_class).is_known
        return UNPLUGGED if is_known else None
    # What a source cannot tell now, it tells later; also which device it is, if it does not say.
    is_unclear = device.stale is not None
    if lease.instance not in (None, device.instance) and (device.instance or not is_unclear):
        return why_replaced(lease.key.device_class, lease.identity, device.identity)
    if is_unclear:
        return None
    if lease.identity is None or lease.identity == device.identity:
        return None
    is_known_to_be_it = bool(device.instance) and lease.is_made
    lasting = class_of(lease.key.device_class).lasting_identity
    if is_known_to_be_it and lasting(device.identity) == lasting(lease.identity):
        return None
    return "the device is another one than was allowed: its identity has changed"


class Taken(Exception):  # noqa: N818 - says what happened
    """The device, or one that shares its data, is leased already: to `holder.vm`."""

    def __init__(self, holder: Lease) -> None:
        super().__init__(f"{holder.key} is attached to {holder.vm}")
        self.holder = holder


@frozen
class _Held:
    lease: Lease
    family: frozenset[DeviceKey]
    shared: bool


class LeaseTable:
    """All leases of the running system: some dozens, so that every question is one pass. Each has
    its channel open in `ports` for as long as it lasts."""

    def __init__(self) -> None:
        self.ports = Ports()
        self._held: dict[str, _Held] = {}

    def grant(self, lease: Lease, family: Iterable[DeviceKey], shared: bool) -> None:
        """Gives `lease`, or raises Taken and changes nothing.

        `family` is Registry.family(lease.key) at this moment. It is stored: if an agent later
        reports other relations between disks and partitions, leased devices stay protected as they
        were. `shared` (mic) lets other VMs hold the same device if they share it too. ValueError:
        the attachment's id is in use.
        """
        if lease.attachment in self._held:
            raise ValueError(f"attachment {lease.attachment} exists already")
        whole = frozenset((lease.key, *family))
        if (holder := self.holder(lease.key, whole, lease.vm, shared)) is not None:
            raise Taken(holder)
        self._held[lease.attachment] = _Held(lease, whole, shared)
        self.ports.open(lease.attachment, lease.channel)

    def free(self, attachment: str) -> Lease | None:
        """Ends a lease and returns it; None if none has that id (any more)."""
        held = self._held.pop(attachment, None)
        self.ports.close(attachment)
        return held.lease if held is not None else None

    def update(
        self,
        attachment: str,
        *,
        state: str | None = None,
        frontend: str | None = None,
        options: Mapping[str, str] | None = None,
        vm_domid: int | None = None,
    ) -> Lease:
        """Notes the state of an attachment; who holds what does not change. KeyError: no such."""
        held = self._held[attachment]
        lease = held.lease
        lease = attrs.evolve(
            lease,
            state=lease.state if state is None else state,
            frontend=lease.frontend if frontend is None else frontend,
            options=lease.options if options is None else options,
            vm_domid=lease.vm_domid if vm_domid is None else vm_domid,
        )
        self._held[attachment] = attrs.evolve(held, lease=lease)
        self.ports.open(attachment, lease.channel)
        return lease

    def get(self, attachment: str) -> Lease | None:
        held = self._held.get(attachment)
        return held.lease if held is not None else None

    def of_device(self, key: DeviceKey) -> list[Lease]:
        """The leases of this very device, not of its disk or partitions."""
        return [lease for lease in self if lease.key == key]

    def holder(
        self, key: DeviceKey, family: Iterable[DeviceKey], vm: str, shared: bool
    ) -> Lease | None:
        """The lease that keeps the device from a VM: that of the device, or of one that shares data
        with it; None if the VM could have it. `family` and `shared` are as in `grant`."""
        for held in self._conflicts(key, frozenset((key, *family))):
            if not (shared and held.shared and held.lease.vm != vm):
                return held.lease
        return None

    def of_vm(self, vm: str) -> list[Lease]:
        """The leases that `vm` holds, as the target."""
        return [lease for lease in self if lease.vm == vm]

    def from_backend(self, vm: str) -> list[Lease]:
        """The leases of devices of `vm`, as the source."""
        return [lease for lease in self if lease.key.backend == vm]

    def __iter__(self) -> Iterator[Lease]:
        return iter([held.lease for held in self._held.values()])

    def __len__(self) -> int:
        return len(self._held)

    def _conflicts(self, key: DeviceKey, family: frozenset[DeviceKey]) -> Iterator[_Held]:
        """Leases of something in `family`, and leases whose own family has `key`."""
        for held in self._held.values():
            if held.lease.key in family or key in held.family:
                yield held
