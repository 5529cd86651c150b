"""What dom0's service needs of a hypervisor.

A driver knows the domains and their events, starts and shuts them down, and opens the control
stream to a domain's agent. It decides nothing: policy, leases and assignments are dom0's.
The identity of a VM is the domain that the driver connected to, never what the VM says.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol

import attrs
import trio

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from pedos_dom0.tables.leases import Lease

DomainState = Literal["Running", "Halted", "Transient"]

# dom0 is not in a driver's list of domains; its number is the same under every hypervisor.
DOM0_NAME = "dom0"
DOM0_DOMID = 0

# Until the hypervisor is asked again for what it could not do: it hangs, or dom0 is so busy that it
# ran out of time.
AGAIN_SECONDS = 60.0


class DriverError(Exception):
    """The hypervisor refused or could not do it; `str()` is one sentence for the user."""

    def __init__(self, message: str, *, code: str = "failed", hint: str | None = None) -> None:
        super().__init__(message)
        self.code = code  # one of pedos_protocol.errors.CODES
        self.hint = hint  # the next command to try


class HypervisorLost(Exception):  # noqa: N818 - a state of the world, not a mistake of a caller
    """The connection to the hypervisor ended: without it the service cannot go on."""


@attrs.frozen
class DomainInfo:
    """One VM as the hypervisor sees it. `domid` is None while it is halted.

    `uuid` tells it from one that has its name later; None where that is not known.
    """

    name: str
    domid: int | None
    state: DomainState
    uuid: str | None = None


class Driver(Protocol):
    """The methods of every driver. All names are names of VMs that `domains()` has."""

    def domains(self) -> Mapping[str, DomainInfo]:
        """The VMs as last heard, in the hypervisor's order. Kept live by `run`; never blocks."""
        ...

    def knows_all(self) -> bool:
        """Whether a VM that is not among `domains()` is not there: False while some place in which
        VMs are configured cannot be read."""
        ...

    def events(self) -> trio.MemoryReceiveChannel[DomainInfo]:
        """A new subscription: every change of a domain from now on, in order.

        `domains()` already shows a change when its event arrives. The channel ends with `run`.
        """
        ...

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serves the driver. Started when `domains()` is complete; raises HypervisorLost."""
        ...

    async def start(self, name: str) -> int:
        """Starts a VM and returns its domain number; DriverError. A running VM keeps its own.

        With a data plane the VM is made and waits for `DataPlane.resume`.
        """
        ...

    async def shutdown(self, name: str, force: bool) -> None:
        """Returns when the VM is down; DriverError. `force` does not wait for it to agree."""
        ...

    async def connect_control(self, name: str, domid: int) -> trio.abc.Stream:
        """A new control stream to the agent of this domain; OSError while it does not listen."""
        ...


class DataPlane(Protocol):
    """How block devices get from domain to domain where the hypervisor carries them itself.

    Without one (local mode) the agents carry the data between them. With one, `export.start` and
    `import.start` only make an agent hold the device ready, or wait for it, and `plug` between the
    two is what attaches it; `unplug` between `import.stop` and `export.stop` takes it away.
    """

    # Seconds from the start of a VM to its agent's first report.
    boot_timeout: float

    def adopt(self, leases: Iterable[Lease]) -> None:
        """These attachments stand in the journal, and there are no others: what else of ours a
        domain has is taken away from now on. Called once, before anything is plugged."""
        ...

    def free_frontend(self, domid: int, asked: str | None, taken: Collection[str]) -> str:
        """A name for a device in that domain: the one that is asked for, or the first that is
        free. `taken` are those that have been promised. DriverError(busy)."""
        ...

    async def plug(self, lease: Lease) -> None:
        """Attaches `lease.key` to the domain as `lease.frontend`; DriverError. Returns when the
        source serves it; the target need not run yet. What is left of one that failed, or was
        broken off, `unplug` takes away."""
        ...

    async def unplug(self, lease: Lease, *, force: bool) -> None:
        """Takes it away; fine if it is gone. DriverError(busy) if the target does not let go,
        which only happens without `force`. Nothing else than this lease's device is touched."""
        ...

    async def own_frontends(self, name: str) -> Collection[str]:
        """The names of the VM's own disks, as far as its configuration tells; DriverError if that
        cannot be looked at."""
        ...

    def number(self, lease: Lease) -> str | None:
        """Which block device the source has opened for it: MAJOR:MINOR in hexadecimal digits, as
        the source says; None if it says nothing. Never blocks; DriverError."""
        ...

    def is_plugged(self, lease: Lease) -> bool:
        """Whether the hypervisor has this very attachment. Never blocks."""
        ...

    async def resume(self, name: str, domid: int) -> None:
        """Lets a VM go that `Driver.start` has made; DriverError."""
        ...
