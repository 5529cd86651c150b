"""Who uses a borrowed disk in local mode, where it is a file.

`users_of` finds a name for the sentence that refuses what the kernel does: to unmount an open file.
Open files are found by /proc, and loop devices by sysfs. `elsewhere` finds the mounts by which it
can be used though it is unmounted here. Links are read and never followed, as a look at the file
itself may wait for a source that hangs.
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

# Users that the sentence names; who has freed these asks again.
NAMED_MAX: Final = 3
# What proc(5) says of a process that is another user's; and of one without mounts or memory, as it
# has ended.
_PASSED_OVER: Final = frozenset((errno.EACCES, errno.EPERM, errno.ESRCH, errno.EINVAL))


def users_of(path: Path, roots: Roots = ROOTS) -> str:
    """Who has the file open, such as "loop0, cp (pid 71)"; "" if none is seen: those of other users
    are not. OSError if it cannot be told of any."""
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
        more = ", ..."  # those that were seen until then are named
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
    """By which other mount the file that is mounted at `path` can be used; "" if none is seen. A
    copy in another namespace that goes with this one is none. OSError if that cannot be told: this
    process's mounts cannot be read, or it lacks what it takes to look at another's."""
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
    """Within, one that is another user's or has just ended is passed over, and nothing else: what
    keeps this process from looking says nothing of what is there."""
    try:
        yield
    except OSError as error:
        if not is_gone(error) and error.errno not in _PASSED_OVER:
            raise


def _named(roots: Roots, pid: str) -> str:
    return f"{harmless_text(read_note(f'{roots.proc}/{pid}/comm'))} (pid {pid})"
