"""What another dom0 had its hypervisor carry, and this one has no means to take back.

A newer dom0 may have been here before, with a class that this one does not know; or the carrier of
the class lacks what it needs now. The hypervisor may still have such a device, so that it must not
be lent to another VM before the domain that has it has ended.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from pedos_dom0.drivers.base import DriverError
from pedos_dom0.drivers.carrier import CarriedByAgents

if TYPE_CHECKING:
    from collections.abc import Callable

    from pedos_dom0.tables.leases import Lease


class OutOfReach(CarriedByAgents):
    """The carrier of such a device: its domain has it until it ends."""

    by_hypervisor = True

    def __init__(self, lack: str, runs: Callable[[int], bool]) -> None:
        """`runs` tells whether a domain of that number has not ended."""
        super().__init__(lack=lack)
        self._runs = runs

    async def detach(self, lease: Lease, *, force: bool) -> None:
        await trio.lowlevel.checkpoint()
        if self._runs(lease.vm_domid):
            raise DriverError(
                f"{lease.key} cannot be taken back from {lease.vm} before that ends ({self.lack})",
                hint=f"qvm-shutdown {lease.vm}",
            )

    def is_attached(self, lease: Lease) -> bool:
        return self._runs(lease.vm_domid)
