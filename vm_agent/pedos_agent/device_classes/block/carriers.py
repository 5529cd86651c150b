"""How disks get out of this VM and into it: carried by the agents in local mode, by Xen itself."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Collection

import attrs
import trio
from pedos_protocol.agent_messages import ExportStart, ImportStart
from pedos_protocol.device_classes import FRONTENDS
from pedos_protocol.errors import CallError

from pedos_agent.device_classes.base import Borrowing, Host
from pedos_agent.device_classes.block import mounts, xen_block
from pedos_agent.device_classes.block.borrowed import Borrowed, folder_is_gone
from pedos_agent.device_classes.block.disk import disk_number
from pedos_agent.device_classes.block.exporter import export_block
from pedos_agent.device_classes.block.importer import import_block
from pedos_agent.device_classes.lifetime import Lifetime
from pedos_agent.inventory.local_device import LocalDevice
from pedos_agent.system.reading import is_gone


def _number(found: LocalDevice) -> str | None:
    return None if found.inode is None else disk_number(found.inode)


@attrs.frozen(eq=False)
class BorrowedFile:
    """A disk that nbdfuse shows as a file: the agents carry the data."""

    params: ImportStart
    disk: Borrowed
    host: Host

    @property
    def name(self) -> str:
        """The file's name in `dev`."""
        return self.disk.name

    async def run(self, lifetime: Lifetime) -> None:
        """See Borrowing."""
        await import_block(lifetime, self.params, self.disk, self.host)

    async def why_busy(self, lifetime: Lifetime) -> str | None:
        """See Borrowing. An import that is just ending is never refused."""
        if lifetime.reason is not None:
            return None
        # A program that is just closing it does not block this, as it does not block `give_back`.
        end = trio.current_time() + mounts.BUSY_SECONDS
        while reason := await self.disk.why_in_use():
            if trio.current_time() >= end:
                break
            await trio.sleep(mounts.BUSY_RETRY_SECONDS)
        return reason

    async def give_back(
        self,
        lifetime: Lifetime,
        *,
        may_refuse: bool,
        still_asked: Callable[[], Awaitable[None]],
    ) -> None:
        """Remove the mount if it is not used: from then on it cannot be. CallError(busy). A VM that
        may not refuse has it taken down with everything else."""
        if not may_refuse or lifetime.reason is not None:
            return
        lifetime.requested = True  # the end of nbdfuse, which this brings about
        released = False
        try:
            await self.disk.release(still_asked)
            released = True
        finally:
            if not released:  # or the caller has given up: dom0 is told of an end by itself
                lifetime.requested = False


@attrs.frozen(eq=False)
class BorrowedDisk:
    """A disk that the toolstack has attached."""

    name: str
    host: Host

    async def run(self, lifetime: Lifetime) -> None:
        """See Borrowing."""
        await xen_block.import_block(lifetime, self.name, self.host.roots, self.host.rescan)

    async def why_busy(self, lifetime: Lifetime) -> str | None:
        """See Borrowing; also of one that is just ending, as only the toolstack takes it away."""
        return await xen_block.why_in_use(self.name, self.host.roots)

    async def give_back(
        self,
        lifetime: Lifetime,
        *,
        may_refuse: bool,
        still_asked: Callable[[], Awaitable[None]],
    ) -> None:
        """CallError(busy) if it is used, always: only the toolstack can take the disk away."""
        if reason := await self.why_busy(lifetime):
            raise CallError("busy", reason)


@attrs.frozen(eq=False)
class LocalDisks:
    """nbdkit, a data channel, nbdfuse."""

    host: Host

    async def lend(self, lifetime: Lifetime, params: ExportStart, found: LocalDevice) -> None:
        """See Carrier."""
        await export_block(lifetime, params, found, self.host)

    def number(self, found: LocalDevice) -> str | None:
        """See Carrier."""
        return _number(found)

    def borrow(self, params: ImportStart, taken: Collection[str]) -> Borrowing:
        """See Carrier."""
        settings = self.host.settings
        try:
            name = self._free_frontend(params.frontend, taken)
            return BorrowedFile(params, Borrowed(settings.dev, name), self.host)
        except OSError as error:
            if is_gone(error):
                raise folder_is_gone(settings.dev) from error
            raise

    def of_predecessor(self, name: str) -> Borrowing | None:
        """None: imports that the agents carry end with them."""
        return None

    async def clean_leftovers(self) -> None:
        """See Carrier."""
        await mounts.clean_leftovers(self.host.settings.dev)

    def _free_frontend(self, asked: str | None, taken: Collection[str]) -> str:
        vm = self.host.settings.vm
        if asked is not None:
            if asked in taken or self._name_exists(asked):
                raise CallError("busy", f"{asked} is already used in {vm}")
            return asked
        for name in FRONTENDS:
            if name not in taken and not self._name_exists(name):
                return name
        raise CallError("busy", f"all block device names are used in {vm}")

    def _name_exists(self, name: str) -> bool:
        # By the folder's list alone: looking at a dead mount gives an error, at a stuck one hangs.
        dev = self.host.settings.dev
        if name in os.listdir(dev) and not mounts.is_mounted(dev / name):
            mounts.clear_placeholder(dev / name)  # one that could not be removed when it was used
        return name in os.listdir(dev)


@attrs.frozen(eq=False)
class XenDisks:
    """The toolstack attaches and detaches; the agents hold ready and wait."""

    host: Host

    async def lend(self, lifetime: Lifetime, params: ExportStart, found: LocalDevice) -> None:
        """See Carrier."""
        await xen_block.export_block(lifetime, params, found, self.host.roots, self.host.rescan)

    def number(self, found: LocalDevice) -> str | None:
        """See Carrier."""
        return _number(found)

    def borrow(self, params: ImportStart, taken: Collection[str]) -> Borrowing:
        """See Carrier. dom0 has attached it already, under a name that its toolstack found free."""
        if params.frontend is None:
            raise CallError("failed", "dom0 did not say as what it has attached it")
        if params.frontend in taken:
            vm = self.host.settings.vm
            raise CallError("busy", f"{params.frontend} is already used in {vm}")
        return BorrowedDisk(params.frontend, self.host)

    def of_predecessor(self, name: str) -> Borrowing | None:
        """See Carrier."""
        return BorrowedDisk(name, self.host) if name in FRONTENDS else None

    async def clean_leftovers(self) -> None:
        """Nothing: a disk that Xen has attached works on without agents."""
