"""Reads files again whenever they change: the one loop for the policy and for the facts."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NoReturn

import trio
from pedos_host.folder_watch import FolderWatch

from .whole_file import why

# Seconds from a change to reading: an editor's write and rename, or a package's many files, come as
# one burst, and reporting errors of half of it is useless.
SETTLE = 0.05
# Seconds after which files with errors are read again without a wake-up: the cause may be corrected
# where no watch sees it (behind a symbolic link, above a missing folder).
AGAIN = 10.0


async def follow(
    watched: Callable[[], tuple[Path, ...]],
    read: Callable[[], Awaitable[None]],
    is_flawed: Callable[[], bool],
    complain: Callable[[str], None],
) -> NoReturn:
    """Calls `read` now and after every change in the folders `watched()`, until cancelled.

    A reading may change both the folders to watch and whether it `is_flawed`, that is, to be
    repeated without a change. `complain` is told, once each, why the folders cannot be watched;
    then they are read at intervals.
    """
    complaint = ""
    while True:
        folders = watched()
        try:
            with FolderWatch(folders) as watch:
                while True:
                    # Once more at the start: a file may have changed before the watch began.
                    await read()
                    if set(watched()) != set(folders):
                        break  # watch link targets and included files elsewhere, too
                    with trio.move_on_after(AGAIN if is_flawed() else math.inf):
                        await watch.changed()
                        await trio.sleep(SETTLE)
            continue
        except OSError as error:
            if why(error) != complaint:
                complaint = why(error)
                complain(complaint)
        # The cause of a failed watch may prevent reading, too: find out now.
        await read()
        await trio.sleep(AGAIN)
