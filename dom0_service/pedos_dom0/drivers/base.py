"""What dom0's service needs of a hypervisor.

A driver knows the domains and their events, starts and shuts them down, and opens the control
stream to a domain's agent. It decides nothing: policy, leases and assignments are dom0's. The
identity of a VM is the domain that the driver connected to, never what the VM says.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol

import trio
from pedos_protocol.frozen import frozen

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pedos_dom0.drivers.carrier import Carrier
    from pedos_dom0.tables.leases import Lease

DomainState = Literal["Running", "Halted", "Transient"]

# dom0 is not in a driver's list of domains; its number is the same under every hypervisor.
DOM0_NAME = "dom0"
DOM0_DOMID = 0
# The number of a VM that is starting and has no domain yet: what is leased to it is reserved.
NO_DOMAIN = -1

# Seconds until a failed request to the hypervisor is repeated: it hangs, or dom0 is too busy.
RETRY_SECONDS = 60.0


class DriverError(Exception):
    """The hypervisor refused or failed; `str()` is one sentence for the user."""

    def __init__(self, message: str, *, code: str = "failed", hint: str | None = None) -> None:
        super().__init__(message)
        self.code = code  # one of pedos_protocol.errors.CODES
        self.hint = hint  # the next command to try


class HypervisorLost(Exception):  # noqa: N818 - a state of the world, not a mistake of a caller
    """The connection to the hypervisor ended: the service cannot continue without it."""


@frozen
class DomainInfo:
    """One VM as the hypervisor sees it. `domid` is None while it is halted.

    `uuid` distinguishes it from a later VM of its name; None if it is not known.
    """

    name: str
    domid: int | None
    state: DomainState
    uuid: str | None = None


class Driver(Protocol):
    """The interface of every driver. All names are names of VMs in `domains()`."""

    @property
    def carriers(self) -> Mapping[str, Carrier]:
        """By device class, its carrier, which may report what is lacking."""
        ...

    @property
    def starts_paused(self) -> bool:
        """Whether a VM that was started is paused until `resume`, so that it has not run yet."""
        ...

    @property
    def boot_timeout(self) -> float:
        """Seconds from the moment when a VM may run to its agent's first report."""
        ...

    def domains(self) -> Mapping[str, DomainInfo]:
        """The VMs as last reported, in the hypervisor's order. Kept live by `run`; never blocks."""
        ...

    def knows_all(self) -> bool:
        """Whether a VM that is missing in `domains()` does not exist: False while a folder of VMs'
        configurations cannot be read."""
        ...

    def events(self) -> trio.MemoryReceiveChannel[DomainInfo]:
        """A new subscription: every change of a domain from now on, in order.

        `domains()` already shows a change when its event arrives. The channel ends with `run`.
        """
        ...

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serves the driver. Started when `domains()` is complete; raises HypervisorLost."""
        ...

    async def start(self, name: str, devices: Sequence[Lease] = ()) -> int:
        """Starts a VM and returns its domain number; DriverError. A running VM keeps its own.

        It is made with these devices, which their carriers have prepared (Carrier.at_creation). If
        starts are paused, the VM is made and waits for `resume`.
        """
        ...

    async def resume(self, name: str, domid: int) -> None:
        """Unpauses a VM that `start` has made; DriverError."""
        ...

    async def shutdown(self, name: str, force: bool) -> None:
        """Returns when the VM is down; DriverError. `force` does not wait for it to agree."""
        ...

    async def connect_control(self, name: str, domid: int) -> trio.abc.Stream:
        """A new control stream to the agent of this domain; OSError while it does not listen."""
        ...
