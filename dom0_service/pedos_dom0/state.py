"""What the parts of the service share: the stores, the tables and the way to the hypervisor."""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING

import attrs
from pedos_host import faultpoints
from pedos_host.boot import boot_id
from pedos_vchan.event_loop import event_loop

from pedos_dom0.audit.call_throttle import CallThrottle
from pedos_dom0.audit.throttle import AuditThrottle
from pedos_dom0.device_classes.registered import class_of
from pedos_dom0.drivers.base import DOM0_DOMID, DOM0_NAME, DomainInfo
from pedos_dom0.drivers.carrier import CarriedByAgents, lacking
from pedos_dom0.drivers.out_of_reach import OutOfReach
from pedos_dom0.errors import no_vm
from pedos_dom0.tables.agents import AgentTable
from pedos_dom0.tables.assignment import ANY_PORT, Claim, claim
from pedos_dom0.vms.facts import Facts

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from typing import Protocol

    from pedos_protocol.messages import PolicyStatus

    from pedos_dom0.audit.queue import AuditQueue
    from pedos_dom0.drivers.base import Driver
    from pedos_dom0.drivers.carrier import Carrier
    from pedos_dom0.policy.snapshot import Snapshot
    from pedos_dom0.tables.leases import Lease, LeaseTable
    from pedos_dom0.tables.registry import DeviceKey, Registry
    from pedos_dom0.tables.store import Assignment, Store

    class PolicySource(Protocol):
        """The part of the policy loader that the service uses."""

        def follow(self, follower: Callable[[], None]) -> None: ...

        @property
        def snapshot(self) -> Snapshot: ...

        def status(self) -> PolicyStatus: ...


@attrs.define(eq=False)
class State:
    """One service's state. Only Transaction makes a lease in `leases` and its row in `store`, and
    only Teardown ends them."""

    driver: Driver
    registry: Registry
    leases: LeaseTable
    store: Store
    audit: AuditQueue
    policy: PolicySource
    # The facts about VMs for rules; by default the driver's.
    facts: Facts = attrs.field()
    agents: AgentTable = attrs.field(factory=AgentTable)
    # The way to `audit` for lines that VMs can cause at will.
    audit_throttle: AuditThrottle = attrs.field(init=False)
    # The same for who listens: what VMs do there never has a refusal summed up.
    listening_throttle: AuditThrottle = attrs.field(init=False)
    # The same for calls that VMs may make.
    call_throttle: CallThrottle = attrs.field(init=False)
    # VMs that are shutting down: they get no device any more.
    closing: Counter[str] = attrs.field(factory=Counter)
    _followers: list[Callable[[], None]] = attrs.field(factory=list, init=False)
    # Which boot of this machine this is: after another one, its domains are others.
    boot: str = attrs.field(factory=boot_id)
    # Test-only stops in attach and detach; tests put their own here.
    reach: Callable[[str], Awaitable[None]] = faultpoints.reach
    # trio.current_time(), at a quarter of its price: a call of a service looks at it often.
    time: Callable[[], float] = attrs.field(factory=lambda: event_loop().time, init=False)

    def __attrs_post_init__(self) -> None:
        self.audit_throttle = AuditThrottle(self.audit, self.time)
        self.listening_throttle = AuditThrottle(self.audit, self.time)
        self.call_throttle = CallThrottle(self.audit, self.time)

    @facts.default
    def _facts_of_the_driver(self) -> Facts:
        return Facts(self.driver)

    def carrier(self, device_class: str) -> Carrier:
        """The carrier of the devices of a class; one that reports its lack if there is none."""
        if (known := self.driver.carriers.get(device_class)) is not None:
            return known
        if not class_of(device_class).is_known:
            return lacking(device_class, "this dom0 does not know the class")
        return lacking(device_class, "this version knows no way to carry them")

    def unknown_classes(self) -> dict[str, DeviceKey]:
        """The classes that this dom0 does not know of which something is attached or assigned, as a
        newer one was here before; with one such device of each."""
        keys = [lease.key for lease in self.leases]
        keys += [assignment.key for assignment in self.store.assignments()]
        return {key.device_class: key for key in keys if not class_of(key.device_class).is_known}

    def carrier_of(self, lease: Lease) -> Carrier:
        """The carrier of an attachment: that of its class, unless another dom0 had it carried in
        another way."""
        carrier = self.carrier(lease.key.device_class)
        if lease.by_hypervisor in (None, carrier.by_hypervisor):
            return carrier
        if not lease.by_hypervisor:
            return CarriedByAgents()
        lack = carrier.lack or f"{lease.key.device_class}: here the agents carry them"
        return OutOfReach(lack, self._has_domain)

    def _has_domain(self, domid: int) -> bool:
        """Whether a domain of this number has not ended, under whatever name: unlike `runs`, this
        is never to say no too early."""
        domains = self.driver.domains().values()
        return any(each.domid == domid and each.state != "Halted" for each in domains)

    def is_by_hypervisor(self, lease: Lease) -> bool:
        """Whether the hypervisor carries it (see Carrier)."""
        return self.carrier_of(lease).by_hypervisor

    def troubles(self) -> tuple[str, ...]:
        """Why the service cannot write its records, if it cannot."""
        return tuple(filter(None, (self.store.trouble, self.audit.trouble)))

    @contextmanager
    def going_down(self, vm: str) -> Iterator[None]:
        """While a VM is ended. There may be several reasons for that at a time."""
        self.closing[vm] += 1
        try:
            yield
        finally:
            self.closing[vm] -= 1
            if not self.closing[vm]:
                del self.closing[vm]
            self.announce()

    @contextmanager
    def starting(self, vm: str) -> Iterator[None]:
        """While a VM is started: it gets its other devices once it runs."""
        self.facts.starting.add(vm)
        try:
            yield
        finally:
            self.facts.starting.discard(vm)
            self.announce()

    def follow(self, follower: Callable[[], None]) -> None:
        """Calls `follower` when the start or the end of a VM is over, however that went: it, or
        another VM, may be given devices again."""
        self._followers.append(follower)

    def announce(self) -> None:
        """The start or the end of a VM is over."""
        for follower in self._followers:
            follower()

    def domain(self, name: str) -> DomainInfo | None:
        """The VM of this name, dom0 included, or None if there is none."""
        if name == DOM0_NAME:
            return DomainInfo(name=DOM0_NAME, domid=DOM0_DOMID, state="Running")
        return self.driver.domains().get(name)

    def known_domain(self, name: str) -> DomainInfo:
        """As `domain`, but raises CallError(not_found)."""
        domain = self.domain(name)
        if domain is None:
            raise no_vm(name)
        return domain

    def is_gone(self, name: str) -> bool:
        """Whether a VM is known not to exist."""
        return self.domain(name) is None and self.driver.knows_all()

    def is_known_absent(self, key: DeviceKey) -> bool:
        """Whether its source says that the device is not there, or is known not to exist."""
        if self.agents.get(key.backend) is None:
            return self.is_gone(key.backend)
        is_whole = self.registry.missing(key.backend, key.device_class) is None
        return is_whole and self.registry.get(key) is None

    def is_orphan(self, assignment: Assignment) -> bool:
        """Whether it was made for a VM that does not exist, or not for the one that has the
        name."""
        domain = self.domain(assignment.vm)
        uuids = {assignment.uuid, domain and domain.uuid} - {None}
        # If it has another UUID, it is another VM's, even if that could not be marked, or is about
        # to be.
        return assignment.orphaned or self.is_gone(assignment.vm) or len(uuids) == 2

    def assigned_to(self, vm: str) -> list[Assignment]:
        """What is assigned to the VM that has the name now: all that a VM may see and undo."""
        return [each for each in self.store.assignments(vm) if not self.is_orphan(each)]

    def assignments_to(self, key: DeviceKey) -> list[Assignment]:
        """The assignments to the port, and to the identity of the device that is there now."""
        return self.store.assignments_of(key, self.registry.lasting_identity(key) or "")

    def matches(self, assignment: Assignment) -> list[DeviceKey]:
        """The devices that are there and that it is to: those at any port with its identity, or
        the one at its port, unless that has another."""
        key, registry = assignment.key, self.registry
        if key.device == ANY_PORT:
            found = registry.devices_of(key.backend)
            return sorted(found.identified(key.device_class, assignment.identity))
        identity = registry.lasting_identity(key)
        return [key] if identity is not None and assignment.fits(key, identity) else []

    def claims(self, key: DeviceKey) -> dict[str, Claim]:
        """What the assignments come to for the device at this port, without those to removed VMs:
        all together, under the name "", or for each VM by itself where several may have it."""
        identity = self.registry.lasting_identity(key)
        assignments = [] if identity is None else self.store.assignments_of(key, identity)
        by_whose: dict[str, list[Assignment]] = {}
        for each in assignments:
            if not self.is_orphan(each):
                by_whose.setdefault(self.whose(key, each.vm), []).append(each)
        if identity is None or not by_whose:
            return {}
        same = self.registry.devices_of(key.backend).identified(key.device_class, identity)
        return {whose: claim(key, identity, its, same) for whose, its in by_whose.items()}

    def claim(self, key: DeviceKey, vm: str) -> Claim:
        """That of `claims` in which the assignments to this VM are."""
        return self.claims(key).get(self.whose(key, vm)) or Claim(key)

    def whose(self, key: DeviceKey, vm: str) -> str:
        """What distinguishes this VM's wish for a device from those of others: "" if it is for one
        VM alone, so that they exclude each other."""
        return vm if class_of(key.device_class).shared else ""

    def holder(self, key: DeviceKey, vm: str) -> Lease | None:
        """The lease that keeps a device from a VM; None if nothing does. The VM does not matter
        where only one may have it."""
        shared = class_of(key.device_class).shared
        return self.leases.holder(key, self.registry.family(key), vm, shared)

    def is_muted(self, lease: Lease) -> bool:
        """Whether the VM that has the device is to hear nothing of it."""
        return self.store.is_muted(lease.key.device_class, lease.vm)

    def touch(self, assignment: Assignment) -> None:
        """Announces that an assignment has changed, at the devices that it is to."""
        keys = self.matches(assignment)
        if assignment.key.device != ANY_PORT and not keys:
            keys = [assignment.key]
        for key in keys:
            self.registry.touch(key)

    def runs(self, name: str, domid: int) -> bool:
        """Whether this very domain still runs, as opposed to a later run of the VM."""
        domain = self.domain(name)
        return domain is not None and domain.domid == domid and domain.state != "Halted"

    def may_run(self, name: str, domid: int) -> bool:
        """As `runs`, but not while it is only made, and waits for the unpause (Driver.resume)."""
        if not self.runs(name, domid):
            return False
        if not self.driver.starts_paused or self.agents.at(name, domid) is not None:
            return True
        starts = self.store.starts()
        return all(row.may_run or (row.vm, row.domid) != (name, domid) for row in starts)
