"""How microphones get out of this VM and into it: by the user's session at both ends, and a data
channel of ours in between."""

from __future__ import annotations

from collections.abc import Collection

import attrs
from pedos_protocol.agent_messages import ExportStart, ImportStart
from pedos_protocol.errors import CallError

from pedos_agent.device_classes.base import Borrowing, Host
from pedos_agent.device_classes.lifetime import Lifetime
from pedos_agent.device_classes.mic.exporter import lend
from pedos_agent.device_classes.mic.importer import BorrowedMic
from pedos_agent.device_classes.mic.link_server import LinkServer
from pedos_agent.inventory.local_device import LocalDevice


@attrs.frozen(eq=False)
class Microphones:
    """The session that `link` serves records and offers them."""

    host: Host
    link: LinkServer

    async def lend(self, lifetime: Lifetime, params: ExportStart, found: LocalDevice) -> None:
        """See Carrier."""
        session = self.link.usable
        device = None if session is None else session.device(found.device.device)
        if session is None:
            raise CallError("busy", f"{found.device.device} cannot be recorded: {self.link.lack}")
        if device is None or session.marks(device) != found.marks:
            # A file in a folder describes it, or it has just been unplugged.
            why = f"no sound server of this VM has {found.device.device}"
            raise CallError("failed", why)
        await lend(lifetime, params, device, session, self.host)

    def number(self, found: LocalDevice) -> str | None:
        """None: it is no disk."""
        return None

    def borrow(self, params: ImportStart, taken: Collection[str]) -> Borrowing:
        """See Carrier."""
        return BorrowedMic(params, self.host, self.link)

    def of_predecessor(self, name: str) -> Borrowing | None:
        """None: imports that the agents carry end with them."""
        return None

    async def clean_leftovers(self) -> None:
        """See Carrier. There are none: a session ends what it has when its agent has gone."""
