"""Which file of a layer holds the data of a file on an overlay.

Both have an inode and locks of their own, so that the kernel takes them for two files. The table of
mounts tells where the layers are. In a container their paths may lead nowhere, and then no agent of
its machine can reach them by another name.
"""

from __future__ import annotations

import os
import re
from typing import Final

from pedos_host.in_time import going_to
from pedos_host.mounts import MOUNTINFO, Mount, mounted, plain

from pedos_agent.system.reading import is_gone

# An option as given to mount(8), with a backslash before a comma or a colon in the name of a layer.
_BETWEEN_LAYERS: Final = re.compile(rb"(?<!\\):+")
_ESCAPED: Final = re.compile(rb"\\(.)")
_DELETED: Final = " (deleted)"
#: An overlay of overlays of overlays the kernel does not make (FILESYSTEM_MAX_STACK_DEPTH).
DEPTH_MAX: Final = 2


class UntoldError(OSError):
    """It is unknown which file it is."""


def layer_file(descriptor: int, *, written: bool, mountinfo: str = MOUNTINFO) -> str | None:
    """The path of the file below an open one; None if that is on no overlay, or no such file can be
    reached. `written`: it is open for writing, so that it is in the upper layer by now.

    UntoldError if it may be one that can be reached, OSError if it cannot be looked at.
    """
    mount = _mount_of(descriptor, mountinfo)
    if mount is None or mount.kind != b"overlay":
        return None
    path = os.readlink(f"/proc/self/fd/{descriptor}")
    below = os.path.relpath(path, os.fsdecode(mount.point))
    if path.endswith(_DELETED) or below.startswith(".."):
        raise UntoldError("it lies on an overlay, and not under that name")
    uppers, lowers = _layers(mount.options)
    for layer in uppers if written else (*uppers, *lowers):
        folder = os.fsdecode(layer)
        if not os.path.isabs(folder):
            raise UntoldError("it lies on an overlay that was mounted with relative paths")
        going_to(folder)
        there = os.path.join(folder, os.fsdecode(mount.root).lstrip("/"), below)
        there = os.path.normpath(there)  # a file that is mounted itself is "." below that mount
        if _is_reached(there):
            return there
        if written and _is_reached(folder):
            raise UntoldError("it lies on an overlay, and is not found in the upper layer of that")
    return None


def _is_reached(path: str) -> bool:
    """Whether a name leads to something for this process. OSError if unknown, which must not be
    taken for a no, as `os.path` does."""
    try:
        os.lstat(path)
    except OSError as error:
        if is_gone(error) or isinstance(error, PermissionError):
            return False
        raise
    return True


def _mount_of(descriptor: int, mountinfo: str) -> Mount | None:
    """The mount through which a file was opened; None if that has left the tree by now."""
    with open(f"/proc/self/fdinfo/{descriptor}", "rb") as file:
        words = file.read().split()
    wanted = words[words.index(b"mnt_id:") + 1]
    return next((mount for mount in mounted(mountinfo) if mount.id == wanted), None)


def _layers(options: bytes) -> tuple[list[bytes], list[bytes]]:
    uppers, lowers = [], []
    for option in options.split(b","):
        name, _, value = option.partition(b"=")
        if name == b"upperdir":
            uppers.append(_layer(plain(value)))
        elif name in (b"lowerdir+", b"datadir+"):
            lowers.append(_layer(plain(value)))
        elif name == b"lowerdir":
            lowers += map(_layer, _BETWEEN_LAYERS.split(plain(value)))
    return uppers, lowers


def _layer(text: bytes) -> bytes:
    return _ESCAPED.sub(rb"\1", text)
