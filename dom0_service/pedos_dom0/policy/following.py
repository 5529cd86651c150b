"""Reads files again whenever they change: the one loop for the policy and for the facts."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NoReturn

import trio
from pedos_host.folder_watch import FolderWatch

from .whole_file import why

# Seconds from a change to reading: an editor's write and rename, or a package's many files, come
# as one burst, and there is no use in complaining of the half of it.
SETTLE = 0.05
# Seconds after which files with errors are looked at again without a wake-up: what is wrong may
# be mended where nothing is watched (behind a symbolic link, above a missing folder).
AGAIN = 10.0


async def follow(
    watched: Callable[[], tuple[Path, ...]],
    read: Callable[[], Awaitable[None]],
    is_flawed: Callable[[], bool],
    complain: Callable[[str], None],
) -> NoReturn:
    """Calls `read` now and after every change in the folders `watched()`, until cancelled.

    A reading may change both what is to be watched and whether it `is_flawed`, that is to be made
    again without a change. `complain` is told, once each, why the folders cannot be watched; then
    they are read now and then.
    """
    complaint = ""
    while True:
        folders = watched()
        try:
            with FolderWatch(folders) as watch:
                while True:
                    # Once more at the start: something may have changed before the watch began.
                    await read()
                    if set(watched()) != set(folders):
                        break  # what is linked to or included from elsewhere is to be watched too
                    with trio.move_on_after(AGAIN if is_flawed() else math.inf):
                        await watch.changed()
                        await trio.sleep(SETTLE)
            continue
        except OSError as error:
            if why(error) != complaint:
                complaint = why(error)
                complain(complaint)
        # What keeps it from being watched may keep it from being read: that is to be known now.
        await read()
        await trio.sleep(AGAIN)
