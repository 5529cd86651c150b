"""PCI devices that a VM is given: the toolstack carries them, and the agents look on.

dom0's agent has nothing to do: dom0's service takes the device from dom0. The VM's agent waits
until its kernel shows the device, and says whether it is used when it is to be taken away.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection
from typing import Final

import attrs
import trio
from pedos_host.faultpoints import reach
from pedos_host.pci_use import why_used
from pedos_protocol.agent_messages import ExportStart, ImportStart
from pedos_protocol.errors import CallError
from pedos_protocol.names import harmless_text
from pedos_protocol.pci_names import address_of_id

from pedos_agent.device_classes import kernel
from pedos_agent.device_classes.base import Borrowing, Host
from pedos_agent.device_classes.lifetime import Lifetime
from pedos_agent.inventory.local_device import LocalDevice
from pedos_agent.system.reading import is_there, link_target

log = logging.getLogger(__name__)

MODULE: Final = "xen-pcifront"
# A kernel that has booted has shown them by then; one that is given one more takes half a second.
# Below the 15 s that dom0 waits, with the load of the module.
APPEAR_SECONDS: Final = 8.0
# Between two looks whether it is still there, for which there is no event here: a device that the
# toolstack has taken away is known to dom0 at once, so this only has to be some time.
LOOK_SECONDS: Final = 5.0


def _is_name(text: str) -> bool:
    try:
        address_of_id(text)
    except ValueError:
        return False
    return True


@attrs.frozen(eq=False)
class PciDevices:
    """Xen's pciback lends, xen-pcifront borrows."""

    host: Host

    async def lend(self, lifetime: Lifetime, params: ExportStart, found: LocalDevice) -> None:
        """See Carrier."""
        lifetime.ready({})
        await lifetime.ending()

    def number(self, found: LocalDevice) -> str | None:
        """None: it is no disk."""
        return None

    def borrow(self, params: ImportStart, taken: Collection[str]) -> Borrowing:
        """See Carrier. Its name is what dom0's pciback has made it here; without one, this is no
        paravirtual domain, and only its kernel knows what it has."""
        if params.frontend is not None and not _is_name(params.frontend):
            raise CallError("failed", f"{params.frontend} cannot be a PCI device here")
        return BorrowedPci(params.frontend, self.host)

    def of_predecessor(self, name: str) -> Borrowing | None:
        """See Carrier."""
        return BorrowedPci(name, self.host, was_kept=True) if _is_name(name) else None

    async def clean_leftovers(self) -> None:
        """Nothing: a device that Xen has given works on without agents."""


@attrs.frozen(eq=False)
class BorrowedPci:
    """A device on the bus of xen-pcifront. `was_kept`: an earlier agent saw it come, and dom0 asks
    only because that has ended."""

    name: str | None
    host: Host
    was_kept: bool = False

    async def run(self, lifetime: Lifetime) -> None:
        """See Borrowing."""
        if self.name is None:
            lifetime.ready({})
            await lifetime.ending()
            return
        await kernel.load(MODULE, self._is_loaded)
        if not await kernel.until(f"look for {self.name}", self._is_there, APPEAR_SECONDS):
            raise CallError(
                "failed",
                f"the kernel of this VM shows no PCI device {self.name} within "
                f"{APPEAR_SECONDS:g} s, though Xen has given it one",
            )
        await reach("import.ready")
        lifetime.ready({})
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._end_when_gone, lifetime)
            await lifetime.ending()
            nursery.cancel_scope.cancel()
        await reach("import.stopped")

    async def _end_when_gone(self, lifetime: Lifetime) -> None:
        """What could not be looked at may be there: its end would have Xen take it away."""
        was_seen = True
        while True:
            try:
                if not await kernel.step(f"look for {self.name}", self._is_there):
                    break
                was_seen = True
            except CallError as error:
                if was_seen:
                    log.warning("%s", error.message)
                was_seen = False
            await trio.sleep(LOOK_SECONDS)
        lifetime.end(f"{self.name} has gone")

    async def why_busy(self, lifetime: Lifetime) -> str | None:
        """See Borrowing. A device that a driver of this VM has is used in the eyes of an agent that
        did not see it come: nobody has asked to take it away."""
        if self.name is None:
            return None
        try:
            return await kernel.step(f"look for uses of {self.name}", self._why_used)
        except CallError as error:
            return error.message

    async def give_back(
        self,
        lifetime: Lifetime,
        *,
        may_refuse: bool,
        still_asked: Callable[[], Awaitable[None]],
    ) -> None:
        """CallError(busy) if it is used, always: only the toolstack can take it away."""
        if reason := await self.why_busy(lifetime):
            raise CallError("busy", harmless_text(reason))

    def _why_used(self) -> str | None:
        if not self._is_there():
            return None
        driver = link_target(f"{self._folder}/driver")
        if self.was_kept and driver is not None:
            return f"{self.name} is driven by {driver.rpartition('/')[2]} here"
        roots = self.host.roots
        used = why_used(str(roots.sys), str(roots.dev), self._address)
        return used and f"{self.name} is in use here: {used}"

    @property
    def _address(self) -> str:
        assert self.name is not None
        return address_of_id(self.name)

    @property
    def _folder(self) -> str:
        return f"{self.host.roots.sys}/bus/pci/devices/{self._address}"

    def _is_there(self) -> bool:
        return is_there(self._folder)

    def _is_loaded(self) -> bool:
        """Its bus is there when the module is, or is built into the kernel."""
        return self._is_there() or is_there(f"{self.host.roots.sys}/bus/xen/drivers/pcifront")
