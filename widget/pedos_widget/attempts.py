"""When to try again to connect to a socket where nothing answers.

A few times soon after each other, because whoever listens there is mostly being restarted. Then not
before there is a sign: something has changed where the socket is, or somebody wants the connection.
So a program takes no time of the processor while there is nothing to connect to.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

import trio
from pedos_host.folder_watch import FolderWatch

logger = logging.getLogger(__name__)

PAUSES: Final = (0.25, 0.5, 1.0, 2.0, 4.0, 5.0)
"""Seconds between attempts: a restart takes a second, one on a machine that comes up a few more. A
socket is seen in its folder before anybody listens, so a sign begins them anew."""

UNSEEN_S = 60.0
"""The same, in the long run, of a socket whose folder cannot be watched: one that is no file, or a
user whose watches are used up."""


class Attempts:
    """Those of one connection. Within trio's run."""

    def __init__(self) -> None:
        self._failed = 0  # since the connection, or the last sign
        self._path: str | None = None
        self._watch: FolderWatch | None = None
        self._wanted = trio.Event()

    def succeeded(self) -> None:
        """There is a connection: the first attempt after its end is soon."""
        self._failed = 0
        self.close()

    def wanted(self) -> None:
        """Somebody wants the connection now."""
        self._wanted.set()

    def close(self) -> None:
        """Nothing is waited for any more."""
        if self._watch is not None:
            self._watch.close()
            self._watch = None

    async def next(self, path: str | None) -> None:
        """Returns when to try again, after an attempt at `path` has failed; None is no file."""
        if self._failed == 0 or path != self._path:
            self._failed, self._path = 0, path
            # Before the next attempts: what comes between the last one and the wait is no less a
            # sign.
            self._open()
        self._wanted = trio.Event()
        if self._failed < len(PAUSES):
            with trio.move_on_after(PAUSES[self._failed]):
                await self._wanted.wait()
            self._failed += 1
        else:
            await self._sign()
            self._failed = 0

    def _open(self) -> None:
        self.close()
        if self._path is None:
            return
        folder = Path(self._path).parent
        # Of folders that do not exist, the next one above that does is watched.
        above = next((each for each in folder.parents if each.exists()), Path("/"))
        # A folder that this user may not read can still be seen to come.
        for folders in ([folder, above], [above]):
            try:
                self._watch = FolderWatch(folders)
            except OSError as error:
                logger.debug("%s cannot be watched: %s", folders[0], error.strerror)
            else:
                return

    async def _sign(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._cancel_when_wanted, nursery.cancel_scope)
            if self._watch is not None:
                await self._watch.changed()
            else:
                await trio.sleep(UNSEEN_S)
            nursery.cancel_scope.cancel()

    async def _cancel_when_wanted(self, scope: trio.CancelScope) -> None:
        await self._wanted.wait()
        scope.cancel()
