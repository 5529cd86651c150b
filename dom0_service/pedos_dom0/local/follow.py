"""Shows a log file as it grows, like `tail -f`.

The program writes into the file itself, so it depends neither on a viewer nor on `pedos-local`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import trio
from pedos_protocol.names import escaped_text

# Seconds between two looks: FolderWatch leaves writes out, and one stat costs nothing.
LOOK_INTERVAL = 0.1
# Bytes to read at once; text without a line end is held back up to this.
CHUNK = 64 * 1024

# journald's level prefixes mean nothing to a person at a terminal.
_LEVEL = re.compile(r"^<[0-7]>")


class Follower:
    """Passes on every whole line that is appended to `path` from now on."""

    def __init__(self, path: Path, show: Callable[[str], object]) -> None:
        """`show` gets a line with its end, and must not block. The file may be created later."""
        self._path = path
        self._show = show
        self._rest = b""
        self._offset = 0
        self._offset = self._size()

    async def run(self) -> None:
        """Looks until it is cancelled."""
        while True:
            while self.look():
                await trio.lowlevel.checkpoint()
            await trio.sleep(LOOK_INTERVAL)

    def look(self) -> bool:
        """Shows the next new chunk, if any; returns whether there may be more."""
        size = self._size()
        if size < self._offset:  # it was emptied
            self._offset, self._rest = 0, b""
        if size == self._offset:
            return False
        try:
            with self._path.open("rb") as log:
                log.seek(self._offset)
                data = log.read(CHUNK)
        except OSError:
            return False
        self._offset += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > CHUNK:
            lines.append(self._rest)
            self._rest = b""
        for line in lines:
            # The program wrote it, but it may quote a VM.
            text = line.decode("utf-8", "replace")
            self._show(escaped_text(_LEVEL.sub("", text)) + "\n")
        return bool(data)

    def _size(self) -> int:
        try:
            return self._path.stat().st_size
        except FileNotFoundError:
            return 0
        except OSError:
            return self._offset  # unknown: take it as not emptied, and without news for now
