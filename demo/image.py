"""The demo's disk: made of the project's own files, or a copy of the user's image."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from pathlib import Path

from stage import PATH, Difference

PROJECT = Path(__file__).resolve().parent.parent
# Files to put onto the disk: what a user would read, and enough to make the disk a real one.
CONTENTS = ["README.md", "ARCHITECTURE.md", "LICENSE", "docs", "demo", "protocol", "host", "native",
            "dom0_service", "vm_agent", "cli"]  # fmt: skip
LEAVE_OUT = shutil.ignore_patterns("__pycache__", "*.so", "*.egg-info", "build", "_native.c")
# Much larger than the files above; the image is sparse on the host.
SIZE = "64M"

# Where an ext2, ext3 or ext4 file system has its superblock and the magic number in it (bytes).
SUPERBLOCK = 1024
MAGIC_OFFSET = 56
MAGIC = 0xEF53
STATE_OFFSET = 58
INCOMPATIBLE_OFFSET = 96
NEEDS_RECOVERY = 0x4


def make(target: Path, staging: Path) -> None:
    """An ext4 image with copies of the project's files in it."""
    for name in CONTENTS:
        source = PROJECT / name
        if source.is_dir():
            shutil.copytree(source, staging / name, ignore=LEAVE_OUT)
        elif source.exists():
            staging.mkdir(exist_ok=True)
            shutil.copy(source, staging / name)
    argv = ["mke2fs", "-q", "-t", "ext4", "-L", "demo", "-d", str(staging), str(target), SIZE]
    done = _run(argv)
    if done.returncode != 0:
        raise Difference("mke2fs", "an image", done.stdout.strip())


def copy(image: Path, target: Path) -> None:
    """A copy of the user's image; the image itself is only read."""
    argv = ["cp", "--reflink=auto", "--sparse=auto", "--", str(image), str(target)]
    done = _run(argv)
    if done.returncode != 0:
        raise Difference(f"a copy of {image}", "room for it", done.stdout.strip())
    target.chmod(0o600)


def is_ext(image: Path) -> bool:
    """Is it a cleanly unmounted ext2/3/4 file system, so that debugfs can work in it?"""
    with image.open("rb") as file:
        file.seek(SUPERBLOCK)
        block = file.read(SUPERBLOCK)
    if len(block) < SUPERBLOCK:
        return False
    magic, state = struct.unpack_from("<HH", block, MAGIC_OFFSET)
    (incompatible,) = struct.unpack_from("<I", block, INCOMPATIBLE_OFFSET)
    return magic == MAGIC and bool(state & 1) and not incompatible & NEEDS_RECOVERY


def find_file(image: Path) -> str | None:
    """The path in the file system of some file that is not empty; None if there is none.

    Searches the folders breadth first, and skips names that debugfs could take for more than a
    name.
    """
    folders = ["/"]
    while folders:
        folder = folders.pop(0)
        listing = _run(["debugfs", "-R", f'ls -p "{folder}"', str(image)]).stdout
        for line in listing.splitlines():
            # /INODE/MODE/UID/GID/NAME/SIZE/ with an octal mode; folders have no size
            fields = line.split("/")
            if len(fields) != 8 or not fields[1].isdigit() or fields[1] == "0":
                continue
            mode, name, size = fields[2], fields[5], fields[6]
            if name in (".", "..") or not name.isprintable() or set(name) & set("\"'\\"):
                continue
            path = folder.rstrip("/") + "/" + name
            if mode.startswith("10") and size.isdigit() and int(size) > 0:
                return path
            if mode.startswith("04"):
                folders.append(path)
    return None


def _run(argv: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        argv,
        env={**os.environ, "PATH": PATH},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
