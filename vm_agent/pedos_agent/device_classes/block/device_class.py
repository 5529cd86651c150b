"""Disks, through the interface of the agent."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import trio

from pedos_agent.device_classes.base import (
    Carried,
    Carrier,
    Deliver,
    DeviceClass,
    Failed,
    Host,
    Uses,
)
from pedos_agent.device_classes.block import discovery_block, folder_disks
from pedos_agent.device_classes.block.carriers import LocalDisks, XenDisks
from pedos_agent.device_classes.block.folder_data import with_data
from pedos_agent.device_classes.pinned import Pinner
from pedos_agent.inventory.local_device import LocalDevice
from pedos_agent.system.roots import Roots


class Block(DeviceClass):
    """Disks and partitions: lent and borrowed under both hypervisors."""

    name = "block"

    def watch(self, host: Host) -> Callable[..., Awaitable[Any]] | None:
        """On Xen; in local mode they are in a folder."""
        if not host.settings.xen:
            return None

        async def watch(
            deliver: Deliver,
            carried: Callable[[], Carried],
            *,
            failed: Failed,
            task_status: trio.TaskStatus[None],
        ) -> None:
            await discovery_block.watch(
                deliver, carried, host.rescan, host.roots, failed=failed, task_status=task_status
            )

        return watch

    def in_folder(self, path: str, device_id: str, pin: Pinner) -> LocalDevice | None:
        """See DeviceClass."""
        return folder_disks.disk_at(path, self.name, device_id, pin)

    def complete(
        self, found: list[LocalDevice], carried: Carried, roots: Roots
    ) -> list[LocalDevice]:
        """See DeviceClass."""
        lent = {device for device, _ in carried.lent}
        return with_data(folder_disks.with_parents(found), lent, roots)

    def is_borrowed(self, path: Path) -> bool:
        """See DeviceClass."""
        return folder_disks.is_borrowed(path)

    def uses(self) -> Uses | None:
        """See DeviceClass."""
        return folder_disks.DiskUses()

    def carrier(self, host: Host) -> Carrier | None:
        """See DeviceClass."""
        return XenDisks(host) if host.settings.xen else LocalDisks(host)
