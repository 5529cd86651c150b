"""Imported devices as files in DEV: which are mounted, how they are unmounted, and leftovers.

An imported device is a FUSE mount over a placeholder, see `pedos_host.mounts`.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Final

import trio
from pedos_host.backoff import Backoff
from pedos_host.mounts import MOUNTINFO, fuse_mounts, fusermount, remove_placeholder
from pedos_protocol.names import frontend_names

from pedos_agent.device_classes.tool import run_tool
from pedos_agent.system.reading import words

log = logging.getLogger(__name__)

# fusermount3 only talks to the kernel; if it takes longer, something else is wrong.
FUSERMOUNT_SECONDS: Final = 3.0
# A program that is just closing the file makes it busy for a moment.
BUSY_SECONDS: Final = 0.5
BUSY_RETRY_SECONDS: Final = 0.05
# A temporary lack of descriptors is over sooner. dom0 waits 20 s for a stop.
FORCE_SECONDS: Final = 5.0


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
    """Unmount gracefully; False if it stays busy for BUSY_SECONDS.

    A fusermount3 that is still running has its own time: it may have unmounted already. So the
    check whether it is mounted comes last.
    """
    said = ""
    end = trio.current_time() + BUSY_SECONDS
    while True:
        try:
            if not is_mounted(path):
                return True
            if trio.current_time() >= end:
                break
            command = fusermount(path, lazy=False)
            status, said = await run_tool(command, seconds=FUSERMOUNT_SECONDS)
        except OSError as error:  # no descriptor left, perhaps for a moment only
            status, said = -1, words(error)
            if trio.current_time() >= end:
                break
        if status != 0:
            await trio.sleep(BUSY_RETRY_SECONDS)
    log.info("%s does not unmount: %s", path.name, said)
    return False


async def unmount_by_force(path: Path) -> None:
    """Remove the mount from the tree although it is busy or dead; its open files lose it later.

    If the system lacks something for that, it is repeated for FORCE_SECONDS.
    """
    backoff, said = Backoff(), ""
    with trio.move_on_after(FORCE_SECONDS):
        # A loop, because a predecessor that was killed may have left one mount over another.
        while True:
            try:
                if not is_mounted(path):
                    return
                command = fusermount(path, lazy=True)
                status, said = await run_tool(command, seconds=FUSERMOUNT_SECONDS)
            except OSError as error:
                said = words(error)
                await trio.sleep(backoff.after_failure())
            else:
                if status != 0:
                    break
    log.error("%s cannot be unmounted: %s", path, said)


async def clean_leftovers(dev: Path) -> None:
    """Remove what a killed predecessor left in `dev`: its mounts and placeholder files."""
    for name in mounted_frontends(dev):
        log.info("removing the mount %s of a predecessor", name)
        await unmount_by_force(dev / name)
    for name in frontend_names():
        clear_placeholder(dev / name)


def clear_placeholder(path: Path) -> None:
    """Remove a placeholder over which nothing is mounted. One that cannot be removed, as in a
    read-only folder, only keeps its name taken."""
    try:
        remove_placeholder(path)
    except OSError as error:
        log.error("%s cannot be removed: %s", path, words(error))
