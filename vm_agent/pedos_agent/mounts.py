"""Imported devices as files in DEV: placeholders, mounts over them, and leftovers of both.

An imported device is a FUSE mount over an empty file. The placeholder's mode marks it as ours: an
empty file that is writable and not readable is nothing that a user keeps, and if a mount is gone
it can never be mistaken for a disk.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import stat
from pathlib import Path
from typing import Final

import trio
from pedos_protocol.names import frontend_names

from .tool import run_tool

log = logging.getLogger(__name__)

PLACEHOLDER_MODE: Final = 0o200
# fusermount3 only talks to the kernel; slower than this means that something else is wrong.
FUSERMOUNT_SECONDS: Final = 3.0
# A reader that is just closing the file makes it busy for a moment.
BUSY_SECONDS: Final = 0.5
BUSY_RETRY_SECONDS: Final = 0.05
_OCTAL: Final = re.compile(rb"\\([0-7]{3})")


def mounted_frontends(dev: Path, mountinfo: str = "/proc/self/mountinfo") -> list[str]:
    """Names of the frontends in `dev` that are FUSE mounts now, dead ones too; each once."""
    folder = os.fsencode(os.path.realpath(dev))
    names = set(frontend_names())
    found: dict[str, None] = {}
    with open(mountinfo, "rb") as file:
        for line in file:
            # proc(5): "ID PARENT MAJ:MIN ROOT POINT OPTIONS [TAGS...] - TYPE SOURCE SUPER"
            fields = line.split(b" ")
            try:
                point, kind = fields[4], fields[fields.index(b"-") + 1]
            except (ValueError, IndexError):
                continue
            point = _OCTAL.sub(lambda match: bytes([int(match[1], 8) & 0xFF]), point)
            parent, _, name = point.rpartition(b"/")
            if parent == folder and kind.startswith(b"fuse") and os.fsdecode(name) in names:
                found[os.fsdecode(name)] = None
    return list(found)


def is_mounted(path: Path) -> bool:
    """Say whether a frontend's file is a mount now. Does not touch the mount, which may hang."""
    return path.name in mounted_frontends(path.parent)


def make_placeholder(path: Path) -> None:
    """Make the empty file that a device is mounted over; FileExistsError when the name is taken."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, PLACEHOLDER_MODE)
    try:
        os.fchmod(fd, PLACEHOLDER_MODE)  # whatever the umask was
    finally:
        os.close(fd)


def remove_placeholder(path: Path) -> None:
    """Remove it if it is there and ours; anything else is left alone."""
    with contextlib.suppress(FileNotFoundError):
        status = os.lstat(path)
        if (
            stat.S_ISREG(status.st_mode)
            and stat.S_IMODE(status.st_mode) == PLACEHOLDER_MODE
            and status.st_size == 0
            and status.st_uid == os.geteuid()
        ):
            os.unlink(path)


async def unmount(path: Path) -> bool:
    """Unmount gracefully; False when it stays busy for BUSY_SECONDS."""
    said = ""
    with trio.move_on_after(BUSY_SECONDS):
        while is_mounted(path):
            status, said = await run_tool(
                ["fusermount3", "-u", str(path)], seconds=FUSERMOUNT_SECONDS
            )
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
        status, said = await run_tool(
            ["fusermount3", "-u", "-z", str(path)], seconds=FUSERMOUNT_SECONDS
        )
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
