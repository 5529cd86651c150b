"""Waits for changes in folders: inotify(7), through the C library's three functions.

An event is only a wake-up. Its content is dropped, and whoever waits looks at the folders again:
so a lost, doubled or overflowed event does no harm.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

import trio

# linux/inotify.h
_IN_ATTRIB = 0x00000004
_IN_CLOSE_WRITE = 0x00000008
_IN_MOVED_FROM = 0x00000040
_IN_MOVED_TO = 0x00000080
_IN_CREATE = 0x00000100
_IN_DELETE = 0x00000200
_IN_DELETE_SELF = 0x00000400
_IN_MOVE_SELF = 0x00000800
_IN_ONLYDIR = 0x01000000
_IN_MASK_ADD = 0x20000000  # a folder may be both watched itself and the parent of another
_IN_NONBLOCK = os.O_NONBLOCK
_IN_CLOEXEC = os.O_CLOEXEC

# IN_MODIFY is left out on purpose: a lent disk image is written to all the time. A file that was
# written by somebody else is seen when it is closed.
_COMES_AND_GOES = (
    _IN_CREATE | _IN_DELETE | _IN_MOVED_FROM | _IN_MOVED_TO | _IN_DELETE_SELF | _IN_MOVE_SELF
)
_CONTENT = _COMES_AND_GOES | _IN_ATTRIB | _IN_CLOSE_WRITE

#: Bytes read at once: some hundred events. What does not fit is read in the next turn.
_DRAIN_SIZE = 65536


class FolderWatch:
    """Watches folders and their parents, so that one that is missing, or removed and made again,
    is noticed too.

        with FolderWatch([folder]) as watch:
            scan(folder)
            while True:
                await watch.changed()
                scan(folder)

    OSError if the user's inotify instances or watches are used up.
    """

    def __init__(self, paths: Iterable[str | os.PathLike[str]]) -> None:
        self._paths = [Path(path) for path in paths]
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = self._libc.inotify_init1(_IN_NONBLOCK | _IN_CLOEXEC)
        if self._fd < 0:
            self._raise()
        try:
            self._arm()
        except BaseException:
            self.close()
            raise

    def _raise(self, path: Path | None = None) -> None:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), None if path is None else str(path))

    def _arm(self) -> None:
        """Watches all that is there. Watching the same folder again changes nothing."""
        for path in self._paths:
            # The parent first: a folder made between the two steps is then noticed by it.
            self._watch(path.parent, _COMES_AND_GOES)
            self._watch(path, _CONTENT)

    def _watch(self, path: Path, mask: int) -> None:
        flags = mask | _IN_ONLYDIR | _IN_MASK_ADD
        if self._libc.inotify_add_watch(self._fd, os.fsencode(path), ctypes.c_uint32(flags)) < 0:
            # One that is not there now is no error; the parent will tell when it is.
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                self._raise(path)

    async def changed(self) -> None:
        """Returns when at least one thing has changed since the last call, or since the start."""
        await trio.lowlevel.checkpoint()
        while not self._drain():
            await trio.lowlevel.wait_readable(self._fd)
        self._arm()

    def _drain(self) -> bool:
        seen = False
        while True:
            try:
                os.read(self._fd, _DRAIN_SIZE)
            except BlockingIOError:
                return seen
            seen = True

    def close(self) -> None:
        """Ends the watch; a task that waits in `changed` gets trio.ClosedResourceError."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            with contextlib.suppress(RuntimeError):  # outside of trio nobody can wait
                trio.lowlevel.notify_closing(fd)
            os.close(fd)

    def __enter__(self) -> FolderWatch:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
