"""Who uses a borrowed disk in local mode, where it is a file.

`users_of` finds names for the sentence when the kernel refuses to unmount an open file. It finds
open files in /proc, by their name or by the file system that they are on: nbdfuse serves the one
file of a file system, which may have been opened under another name. Loop devices it finds in
sysfs, by the name. `elsewhere` finds the mounts through which the file can be used although it is
unmounted here. Links are read and never followed, because a look at the file itself may wait for a
source that hangs.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from pedos_host.mounts import mounted
from pedos_protocol.names import harmless_text

from pedos_agent.device_classes.block.block_use import REASON_MAX, backing_file
from pedos_agent.system.reading import is_gone, lines_of, link_target, names_in, read_note
from pedos_agent.system.roots import ROOTS, Roots

# Users that the sentence names; after ending those, a user asks again.
NAMED_MAX: Final = 3
# The errors of proc(5) for another user's process, and for one that has ended.
_PASSED_OVER: Final = frozenset((errno.EACCES, errno.EPERM, errno.ESRCH, errno.EINVAL))


def users_of(path: Path, roots: Roots = ROOTS) -> str:
    """Who has the file open, such as "loop0, cp (pid 71)"; "" if no one visible: processes of other
    users are not. OSError if it is unknown for all."""
    users: list[str] = []
    more = ""
    try:
        for user in _users(os.path.realpath(path.parent) + f"/{path.name}", roots):
            if len(users) == NAMED_MAX:
                more = ", ..."
                break
            users.append(user)
    except OSError:
        if not users:
            raise
        more = ", ..."  # name those that were found until then
    return ", ".join(users) + more


def _users(file: str, roots: Roots) -> Iterator[str]:
    for name in names_in(roots.sys / "class/block"):
        if backing_file(roots.sys, name) == file:
            yield name
    mounts = _MountsOf(file, roots)
    for pid in filter(str.isdecimal, names_in(roots.proc)):
        if _has_open(roots.proc / pid, file, mounts):
            yield _named(roots, pid)


class _MountsOf:
    """The mounts of the file system that is mounted at `file`, by mount namespace."""

    def __init__(self, file: str, roots: Roots) -> None:
        here = mounted(roots.proc / "self/mountinfo")
        at = [mount.number for mount in here if mount.point == os.fsencode(file)]
        self._number = at[-1] if at else None
        self._known: dict[str | None, frozenset[str]] = {}

    def seen_by(self, process: Path) -> frozenset[str]:
        """Their ids in the namespace of this process; none if the file is not mounted."""
        if self._number is None:
            return frozenset()
        namespace = link_target(process / "ns/mnt")
        if namespace not in self._known:
            table = mounted(process / "mountinfo")
            ids = (mount.id.decode() for mount in table if mount.number == self._number)
            self._known[namespace] = frozenset(ids)
        return self._known[namespace]


def _has_open(process: Path, file: str, mounts: _MountsOf) -> bool:
    with _looking_at_a_process():
        names = names_in(process / "fd")
        if any(link_target(process / "fd" / name) == file for name in names):
            return True
        ids = mounts.seen_by(process) if names else frozenset()
        return bool(ids) and any(_mount_of(process / "fdinfo" / name) in ids for name in names)
    return False


def _mount_of(fdinfo: Path) -> str:
    """The id of the mount through which a file was opened (proc(5)); "" if it was closed."""
    lines = lines_of(str(fdinfo))
    found = (
        value for name, _, value in (line.partition(":\t") for line in lines) if name == "mnt_id"
    )
    return next(found, "")


def elsewhere(path: Path, roots: Roots = ROOTS) -> str:
    """The other mount through which the file mounted at `path` can be used; "" if none is visible.
    A copy in another namespace that disappears with this one does not count. OSError if unknown:
    this process's mounts cannot be read, or it lacks something to look at another's."""
    here = list(mounted(roots.proc / "self/mountinfo"))
    point = os.fsencode(path)
    ours = next((mount for mount in reversed(here) if mount.point == point), None)
    if ours is None:
        return ""
    for mount in here:
        if mount.number == ours.number and mount.point != point:
            return f"it is mounted at {harmless_text(os.fsdecode(mount.point), REASON_MAX)} too"
    seen = {link_target(roots.proc / "self/ns/mnt")}
    for pid in filter(str.isdecimal, names_in(roots.proc)):
        with _looking_at_a_process():
            namespace = link_target(roots.proc / pid / "ns/mnt")
            if namespace in seen:
                continue
            for mount in mounted(roots.proc / pid / "mountinfo"):
                if mount.number == ours.number and not mount.peers & ours.peers:
                    return f"{_named(roots, pid)} has it in another mount namespace"
            seen.add(namespace)
    return ""


@contextlib.contextmanager
def _looking_at_a_process() -> Iterator[None]:
    """Within, a process that is another user's or has just ended is skipped, and nothing else: a
    lack of this process says nothing of what exists."""
    try:
        yield
    except OSError as error:
        if not is_gone(error) and error.errno not in _PASSED_OVER:
            raise


def _named(roots: Roots, pid: str) -> str:
    return f"{harmless_text(read_note(f'{roots.proc}/{pid}/comm'))} (pid {pid})"
