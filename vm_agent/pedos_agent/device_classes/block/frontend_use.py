"""Who uses a borrowed disk in local mode, where it is a file.

`users_of` finds names for the sentence when the kernel refuses to unmount an open file. It finds
open files in /proc, and loop devices in sysfs. `elsewhere` finds the mounts through which the file
can be used although it is unmounted here. Links are read and never followed, because a look at the
file itself may wait for a source that hangs.
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
from pedos_agent.system.reading import is_gone, link_target, names_in, read_note
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
    for pid in filter(str.isdecimal, names_in(roots.proc)):
        if _has_open(f"{roots.proc}/{pid}/fd", file):
            yield _named(roots, pid)


def _has_open(folder: str, file: str) -> bool:
    with _looking_at_a_process():
        return any(link_target(f"{folder}/{name}") == file for name in names_in(folder))
    return False


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
