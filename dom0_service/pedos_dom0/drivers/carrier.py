"""How the devices of one class get from domain to domain under one driver.

A driver has a carrier for each class that it knows (`Driver.carriers`). Either the hypervisor
carries the devices itself, or the agents do (`CarriedByAgents`), or it reports what is lacking.

The agents get `export.start` and `import.start` in any case. Where the hypervisor carries the
device, these only make an agent hold it ready, or wait for it; the carrier's `attach` between the
two attaches it, and `detach` between `import.stop` and `export.stop` detaches it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import trio

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from pedos_dom0.tables.leases import Lease
    from pedos_dom0.tables.registry import DeviceKey


class Carrier(Protocol):
    """The carrier of a class under a driver."""

    @property
    def lack(self) -> str | None:
        """Why devices of this class cannot be attached, in a sentence; None if they can."""
        ...

    @property
    def by_hypervisor(self) -> bool:
        """Whether the hypervisor carries them: an attachment then works without agents, so that an
        agent which does not answer, or is absent, has not released it (ways.py)."""
        ...

    @property
    def before_boot(self) -> bool:
        """Whether `attach` works before a VM that is made has begun to run."""
        ...

    @property
    def at_creation(self) -> bool:
        """Whether a VM gets its devices when it is made: `prepare` comes before that, `attach`
        after."""
        ...

    @property
    def outlives_agents(self) -> bool:
        """Whether an attachment stays as it is when the agents have ended: when they are back, they
        are told of it again, and nothing is taken away. For what a VM needs to work at all."""
        ...

    def adopt(self, leases: Iterable[Lease]) -> None:
        """These attachments of the class are in the journal, and there are no others: from now on,
        every other device of ours in a domain is taken away. Called once, before any attach."""
        ...

    def name_in_target(self, domid: int, asked: str | None, taken: Collection[str]) -> str | None:
        """A name for a device in that domain: the requested one, or the first free one; None if the
        target's agent chooses one, or it has none. `taken` are names that are promised already.
        DriverError(busy)."""
        ...

    async def own_names(self, vm: str) -> Collection[str]:
        """The names of the VM's own devices, as far as its configuration tells; DriverError if it
        cannot be read."""
        ...

    async def prepare(self, lease: Lease) -> None:
        """Makes a device ready to be given to a VM that is about to be made; DriverError. Only
        where that is how a VM gets it (`at_creation`). `detach` undoes it."""
        ...

    async def why_unfit(self, key: DeviceKey, vm: str, options: Mapping[str, str]) -> str | None:
        """Why the hypervisor could not give a free device to the VM now, as far as that can be told
        and nothing changed; None if it could."""
        ...

    def can_give_live(self, domid: int) -> bool:
        """Whether `attach` works for this domain, which runs. Never blocks; DriverError."""
        ...

    def given_name(self, lease: Lease) -> str | None:
        """What an attached device is called in its target, as far as the hypervisor knows. Never
        blocks; DriverError."""
        ...

    def strays(self) -> Mapping[str, str]:
        """The devices of dom0 that VMs have without an attachment of ours, with these VMs. Never
        blocks; DriverError."""
        ...

    async def attach(self, lease: Lease) -> None:
        """Attaches `lease.key` to the domain as `lease.frontend`; DriverError. Returns when the
        source serves it; the target need not run yet. `detach` removes what a failed or cancelled
        attach leaves."""
        ...

    async def detach(self, lease: Lease, *, force: bool) -> None:
        """Detaches it; fine if it is gone. DriverError(busy) if the target does not release it,
        which only happens without `force`. Touches only this lease's device."""
        ...

    def is_attached(self, lease: Lease) -> bool:
        """Whether the hypervisor has this very attachment. Never blocks; DriverError."""
        ...

    def number(self, lease: Lease) -> str | None:
        """The block device that the source has opened for it: MAJOR:MINOR in hexadecimal digits, as
        the source reports; None if it reports none. Never blocks; DriverError."""
        ...


class GivenLive:
    """What carriers have in common whose devices any VM that runs can be given, by the name that
    was chosen for it."""

    at_creation = False
    outlives_agents = False

    async def prepare(self, lease: Lease) -> None:
        """See Carrier. Nothing needs it."""
        await trio.lowlevel.checkpoint()

    async def why_unfit(self, key: DeviceKey, vm: str, options: Mapping[str, str]) -> str | None:
        """See Carrier. The source's agent reports what keeps a device."""
        await trio.lowlevel.checkpoint()
        return None

    def can_give_live(self, domid: int) -> bool:
        """See Carrier."""
        return True

    def given_name(self, lease: Lease) -> str | None:
        """See Carrier."""
        return lease.frontend

    def strays(self) -> Mapping[str, str]:
        """See Carrier. There are none, or they are taken away."""
        return {}


class CarriedByAgents(GivenLive):
    """The hypervisor has no part: the agents carry the data between them."""

    by_hypervisor = False
    before_boot = False

    def __init__(self, *, lack: str | None = None) -> None:
        self.lack = lack

    def adopt(self, leases: Iterable[Lease]) -> None:
        """The agents end attachments that dom0 does not know."""

    def name_in_target(self, domid: int, asked: str | None, taken: Collection[str]) -> str | None:
        return asked

    async def own_names(self, vm: str) -> Collection[str]:
        await trio.lowlevel.checkpoint()
        return ()

    async def attach(self, lease: Lease) -> None:
        await trio.lowlevel.checkpoint()

    async def detach(self, lease: Lease, *, force: bool) -> None:
        await trio.lowlevel.checkpoint()

    def is_attached(self, lease: Lease) -> bool:
        return False

    def number(self, lease: Lease) -> str | None:
        return None


def lacking(device_class: str, why: str) -> CarriedByAgents:
    """The carrier of a class whose devices can only be listed."""
    return CarriedByAgents(lack=f"{device_class}: {why}")
