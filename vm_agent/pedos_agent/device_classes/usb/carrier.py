"""How USB devices get out of this VM and into it: the kernel's USB/IP at both ends, and a data
channel of ours in between."""

from __future__ import annotations

import logging
from collections.abc import Collection

import attrs
from pedos_protocol.agent_messages import ExportStart, ImportStart
from pedos_protocol.errors import CallError

from pedos_agent.device_classes.base import Borrowing, Host
from pedos_agent.device_classes.lifetime import Lifetime
from pedos_agent.device_classes.usb import exporter, importer
from pedos_agent.device_classes.usb.host_driver import HostDriver
from pedos_agent.device_classes.usb.turns import Turns
from pedos_agent.device_classes.usb.vhci import Claims, Vhci
from pedos_agent.inventory.local_device import LocalDevice

log = logging.getLogger(__name__)


@attrs.frozen(eq=False)
class UsbDevices:
    """usbip-host lends, vhci-hcd borrows."""

    host: Host
    # What this agent has on the ports of vhci-hcd.
    claims: Claims = attrs.field(factory=Claims)
    turns: Turns = attrs.field(factory=Turns)

    async def lend(self, lifetime: Lifetime, params: ExportStart, found: LocalDevice) -> None:
        """See Carrier."""
        await exporter.export_usb(lifetime, params, found, self.host, self._driver())

    def number(self, found: LocalDevice) -> str | None:
        """None: it is no disk."""
        return None

    def borrow(self, params: ImportStart, taken: Collection[str]) -> Borrowing:
        """See Carrier."""
        return importer.borrow(params, self.host, Vhci(self.host.roots.sys, self.claims))

    def of_predecessor(self, name: str) -> Borrowing | None:
        """None: imports that the agents carry end with them."""
        return None

    async def clean_leftovers(self) -> None:
        """See Carrier. Borrowed devices need nothing: the kernel frees a port when its socket is
        closed, as all are at the end of an agent. What cannot be given back is logged: the agent
        does the rest of its work."""
        try:
            await exporter.clean_leftovers(self._driver())
        except CallError as error:
            log.warning("what a predecessor lent may not be back: %s", error.message)

    def _driver(self) -> HostDriver:
        gives_back = self.host.settings.give_back
        return HostDriver(self.host.roots.sys, gives_back=gives_back, turns=self.turns)
