"""How the devices of one class get from domain to domain under one driver.

A driver has a carrier for each class that it knows (`Driver.carriers`). Either the hypervisor
carries the devices itself, or the agents do (`CarriedByAgents`), or it says what is lacking.

`export.start` and `import.start` are asked of the agents in any case. Where the hypervisor carries
the device, they only make an agent hold it ready, or wait for it, and `attach` between the two is
what attaches it; `detach` between `import.stop` and `export.stop` takes it away.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import trio

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from pedos_dom0.tables.leases import Lease


class Carrier(Protocol):
    """The carrier of a class under a driver."""

    @property
    def lack(self) -> str | None:
        """Why devices of this class cannot be attached, in a sentence; None if they can."""
        ...

    @property
    def by_hypervisor(self) -> bool:
        """Whether the hypervisor carries them: an attachment then works on without agents, so that
        one that does not answer, or is not there, has not let go (ways.py)."""
        ...

    @property
    def before_boot(self) -> bool:
        """Whether `attach` works before a VM that is made has begun to run."""
        ...

    def adopt(self, leases: Iterable[Lease]) -> None:
        """These attachments of the class stand in the journal, and there are no others: what else
        of ours a domain has is taken away from now on. Called once, before anything is attached."""
        ...

    def name_in_target(self, domid: int, asked: str | None, taken: Collection[str]) -> str | None:
        """A name for a device in that domain: the one that is asked for, or the first that is
        free; None if the target's agent chooses one, or it has none. `taken` are those that have
        been promised. DriverError(busy)."""
        ...

    async def own_names(self, vm: str) -> Collection[str]:
        """The names of the VM's own devices, as far as its configuration tells; DriverError if that
        cannot be looked at."""
        ...

    async def attach(self, lease: Lease) -> None:
        """Attaches `lease.key` to the domain as `lease.frontend`; DriverError. Returns when the
        source serves it; the target need not run yet. What is left of one that failed, or was
        broken off, `detach` takes away."""
        ...

    async def detach(self, lease: Lease, *, force: bool) -> None:
        """Takes it away; fine if it is gone. DriverError(busy) if the target does not let go,
        which only happens without `force`. Nothing else than this lease's device is touched."""
        ...

    def is_attached(self, lease: Lease) -> bool:
        """Whether the hypervisor has this very attachment. Never blocks; DriverError."""
        ...

    def number(self, lease: Lease) -> str | None:
        """Which block device the source has opened for it: MAJOR:MINOR in hexadecimal digits, as
        the source says; None if it says nothing. Never blocks; DriverError."""
        ...


class CarriedByAgents:
    """The hypervisor has no part in it: the agents carry the data between them."""

    by_hypervisor = False
    before_boot = False

    def __init__(self, *, lack: str | None = None) -> None:
        self.lack = lack

    def adopt(self, leases: Iterable[Lease]) -> None:
        """The agents end what dom0 does not know of."""

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
