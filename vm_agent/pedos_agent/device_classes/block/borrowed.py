"""The file of a borrowed disk in local mode: its place, its uses, its release.

Only the kernel can tell whether it is used, and is asked twice. It refuses to unmount an open file,
but only one that is open through that mount. Through another one (a bind mount, or the copy in
every other mount namespace) the disk can still be used, and then nbdfuse continues to serve it. So
the agent looks for such mounts first, and at nbdfuse last.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import trio
from pedos_host.threads import to_thread
from pedos_protocol.errors import CallError
from pedos_protocol.names import harmless_text

from pedos_agent.device_classes.block import mounts
from pedos_agent.device_classes.block.block_use import untold
from pedos_agent.device_classes.block.frontend_use import elsewhere, users_of
from pedos_agent.device_classes.tool import Tool
from pedos_agent.inventory.local_device import Pin
from pedos_agent.system.reading import link_target, names_in

# nbdfuse disconnects from the kernel as soon as the last mount has gone; only then it says goodbye
# to the source, which may be stuck.
SERVES_SECONDS: Final = 2.0
SERVES_RETRY_SECONDS: Final = 0.02


def folder_is_gone(dev: Path) -> CallError:
    """For dom0's user. The folder is a user's, too, who may have removed it."""
    where = harmless_text(str(dev))
    return CallError(
        "failed",
        f"the folder {where}, in which borrowed disks appear, is gone; make it again, or restart "
        "the VM",
    )


class Borrowed:
    """DEV/`name`, also if DEV has been renamed."""

    def __init__(self, dev: Path, name: str) -> None:
        """OSError if the folder is missing, or no descriptor is left to hold it."""
        self.name = name
        self.fuse: Tool | None = None  # the process that shows it, while it does
        self._folder = Pin(os.fspath(dev))

    @property
    def path(self) -> Path:
        """Where it is now, as the kernel's list of mounts has it."""
        return Path(os.readlink(self._folder.path), self.name)

    async def why_in_use(self) -> str | None:
        """Why `release` would refuse, if a use is visible, or that it is unknown."""
        try:
            return await to_thread(self._why_in_use)
        except OSError as error:
            return untold(self.name, error)

    def _why_in_use(self) -> str | None:
        path = self.path
        if users := users_of(path):
            return f"{self.name} is in use: {users} has it open"
        if where := elsewhere(path):
            return f"{self.name} is in use: {where}"
        if self._is_served() and not mounts.is_mounted(path):
            return f"{self.name} is in use: it was unmounted, but something has it open still"
        return None

    async def release(self, still_asked: Callable[[], Awaitable[None]]) -> None:
        """Unmounts it if it is not used: from then on it cannot be. CallError(busy) if it is used,
        or if that is unknown. `still_asked` is awaited right before, and cancelled if the stop is
        not wanted."""
        try:
            where = await to_thread(elsewhere, self.path)
        except OSError as error:
            raise CallError("busy", untold(self.name, error)) from error
        if where:
            raise CallError("busy", f"{self.name} is in use: {where}")
        await still_asked()
        if await mounts.unmount(self.path):
            with trio.move_on_after(SERVES_SECONDS):
                while self._is_served():  # noqa: ASYNC110 - there is no event to wait for
                    await trio.sleep(SERVES_RETRY_SECONDS)
                return
        another = f"{self.name} is in use: another program has it open"
        raise CallError("busy", await self.why_in_use() or another)

    def _is_served(self) -> bool:
        """Whether nbdfuse has the kernel's end of it, which it keeps until nothing uses it."""
        if self.fuse is None or self.fuse.child.returncode is not None:
            return False
        folder = f"/proc/{self.fuse.child.pid}/fd"
        with contextlib.suppress(OSError):
            return any(link_target(f"{folder}/{each}") == "/dev/fuse" for each in names_in(folder))
        return True  # unknown: the safe side
