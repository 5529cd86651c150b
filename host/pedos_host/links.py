"""Where links lead, step by step, with a question to each file system before it is asked."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

from .in_time import going_to

#: Links on the way to one file; the kernel (fs/namei.c) has the same bound.
_HOPS_MAX = 40


def walk(path: str) -> None:
    """Follows a path to its target: TimeoutError if a file system on the way hangs."""
    for _ in steps(os.path.dirname(path), os.path.basename(path)):
        pass


def steps(folder: str, target: str) -> Iterator[tuple[str, str]]:
    """The folders, and the names in them, that determine where a link in `folder` leads: each link
    on the way, and the file itself or the first missing name."""
    at = os.path.realpath(folder)
    rest = target.split("/")[::-1]
    if target.startswith("/"):
        at = "/"
    hops = 0
    while rest:
        name = rest.pop()
        if name in ("", "."):
            continue
        if name == "..":
            at = os.path.dirname(at)
            continue
        path = os.path.join(at, name)
        going_to(path)
        try:
            link = os.readlink(path)
        except OSError as error:
            is_missing = error.errno != errno.EINVAL  # which exists and is no link
            if is_missing or not any(part not in ("", ".") for part in rest):
                yield at, name
            if is_missing:
                return
            at = path
            continue
        yield at, name
        hops += 1
        if hops > _HOPS_MAX:
            return
        if link.startswith("/"):
            at = "/"
        rest += link.split("/")[::-1]
