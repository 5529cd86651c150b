"""Imported devices as files in DEV: which are mounted, how they are unmounted, and leftovers.

An imported device is a FUSE mount over a placeholder, see `pedos_vchan.mounts`.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Final

import trio
from pedos_protocol.names import frontend_names
from pedos_vchan.mounts import MOUNTINFO, fuse_mounts, fusermount, remove_placeholder

from .tool import run_tool

log = logging.getLogger(__name__)

# fusermount3 only talks to the kernel; slower than this means that something else is wrong.
FUSERMOUNT_SECONDS: Final = 3.0
# A reader that is just closing the file makes it busy for a moment.
BUSY_SECONDS: Final = 0.5
BUSY_RETRY_SECONDS: Final = 0.05


def mounted_frontends(dev: Path, mountinfo: str = MOUNTINFO) -> list[str]:
    """Names of the frontends in `dev` that are FUSE mounts now, dead ones too; each once."""
    folder = os.path.realpath(dev)
    names = set(frontend_names())
    mounted = (os.path.split(point) for point in fuse_mounts(dev, mountinfo))
    return sorted({name for parent, name in mounted if parent == folder and name in names})


def is_mounted(path: Path) -> bool:
    """Say whether a frontend's file is a mount now. Does not touch the mount, which may hang."""
    return path.name in mounted_frontends(path.parent)


async def unmount(path: Path) -> bool:
    """Unmount gracefully; False when it stays busy for BUSY_SECONDS."""
    said = ""
    with trio.move_on_after(BUSY_SECONDS):
        while is_mounted(path):
            status, said = await run_tool(fusermount(path, lazy=False), seconds=FUSERMOUNT_SECONDS)
            if status != 0:
                await trio.sleep(BUSY_RETRY_SECONDS)
    if is_mounted(path):
        log.info("%s does not unmount: %s", path.name, said)
        return False
    return True


async def unmount_by_force(path: Path) -> None:
    """Take the mount out of the tree though it is busy or dead; its open files lose it later."""
    # A loop, because a predecessor that was killed may have left one mount over another.
    while is_mounted(path):
        status, said = await run_tool(fusermount(path, lazy=True), seconds=FUSERMOUNT_SECONDS)
        if status != 0:
            log.error("%s cannot be unmounted: %s", path, said)
            return


async def clean_leftovers(dev: Path) -> None:
    """Remove what a killed predecessor left in `dev`: its mounts and placeholder files."""
    for name in mounted_frontends(dev):
        log.info("removing the mount %s of a predecessor", name)
        await unmount_by_force(dev / name)
    for name in frontend_names():
        remove_placeholder(dev / name)
