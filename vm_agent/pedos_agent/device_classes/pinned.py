"""Holds what a name in a folder of devices leads to, as far as it is safe to look at."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TypeVar

from pedos_host.in_time import in_time
from pedos_host.links import walk
from pedos_protocol.frozen import frozen

from pedos_agent.inventory.local_device import Pin
from pedos_agent.system.reading import link_target

T = TypeVar("T")


@frozen
class Pinner:
    """Holds files of one folder. `mounted` are the names in it that are file systems themselves;
    `is_borrowed` tells whether a path is a device that this VM has borrowed."""

    mounted: Collection[str]
    is_borrowed: Callable[[Path], bool]

    def __call__(
        self, path: str, ask: Callable[[Pin, os.stat_result], T]
    ) -> tuple[Pin, os.stat_result, T] | None:
        """The target of the name, and the question to `ask` of its file system; None if that is a
        device which a VM has borrowed: holding it would keep it from being given back, and a look
        at it may wait for its source for ever. OSError if it leads to a file system that does not
        answer."""

        def look() -> tuple[Pin, os.stat_result, T] | None:
            if may_hang:
                walk(path)
            pin = Pin(path)
            # The kernel's answer to where it is, without asking the file system.
            if self.is_borrowed(Path(os.readlink(pin.path))):
                return None
            status = pin.status()
            return pin, status, ask(pin, status)

        # Everything else is in the folder's own file system, which has just answered.
        may_hang = os.path.basename(path) in self.mounted or link_target(path) is not None
        return in_time(path, look) if may_hang else look()


def shown_name(path: str) -> str:
    """Give the file name as text: bytes that are no UTF-8 become U+FFFD, so harmless ones."""
    return os.fsencode(os.path.basename(path)).decode("utf-8", "replace")
