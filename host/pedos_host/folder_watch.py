"""Waits for changes in folders: inotify(7), through the C library's three functions.

An event is only a wake-up, after which the waiting task looks at the folders itself: so a lost,
doubled or overflowed event does no harm.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import math
import os
import struct
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from types import TracebackType

import trio

from .backoff import Backoff
from .in_time import in_time
from .links import steps
from .threads import to_thread

# linux/inotify.h
_IN_ATTRIB = 0x00000004
_IN_CLOSE_WRITE = 0x00000008
_IN_MOVED_FROM = 0x00000040
_IN_MOVED_TO = 0x00000080
_IN_CREATE = 0x00000100
_IN_DELETE = 0x00000200
_IN_DELETE_SELF = 0x00000400
_IN_MOVE_SELF = 0x00000800
_IN_IGNORED = 0x00008000
_IN_ONLYDIR = 0x01000000
_IN_MASK_ADD = 0x20000000  # a folder may be both watched and the parent of another
_IN_NONBLOCK = os.O_NONBLOCK
_IN_CLOEXEC = os.O_CLOEXEC

# IN_MODIFY is left out on purpose: a lent disk image is written to all the time. A file that
# another program writes is noticed when that program closes it.
_COMES_AND_GOES = (
    _IN_CREATE | _IN_DELETE | _IN_MOVED_FROM | _IN_MOVED_TO | _IN_DELETE_SELF | _IN_MOVE_SELF
)
_CONTENT = _COMES_AND_GOES | _IN_ATTRIB | _IN_CLOSE_WRITE

#: Bytes to read at once: some hundred events. The rest is read in the next turn.
_DRAIN_SIZE = 65536
_EVENT = struct.Struct("iIII")  # wd, mask, cookie, length of the name behind it

#: Names that are watched elsewhere, because links in the folders lead there: a user has some
#: thousand watches, and other programs need some too.
LINKED_MAX = 512


class FolderWatch:
    """Watches folders and their parents, to notice also a folder that is missing, or removed and
    made again.

        with FolderWatch([folder]) as watch:
            scan(folder)
            while True:
                await watch.changed()
                scan(folder)

    OSError if the user's inotify instances or watches are used up.
    """

    def __init__(self, paths: Iterable[str | os.PathLike[str]]) -> None:
        self._paths = [Path(path) for path in paths]
        self._links = False
        self._is_whole = True  # when all links could be followed
        self._backoff = Backoff()
        self._arm_at = math.inf  # when to try the other links again
        self._seen = False  # an event after which some watches are still missing
        self._own: set[int] = set()  # watches whose every event counts
        self._linked: dict[int, set[bytes]] = {}  # watches of which only some names count
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

    async def follow_links(self) -> None:
        """From now on, also watch the files that symbolic links in the folders lead to, wherever
        they are, with the links on the way and folders that do not exist yet.

        Look at the folders after this. OSError likewise, and if there are more than LINKED_MAX
        names to watch.
        """
        self._links = True
        await self._arm_in_thread()

    async def _arm_in_thread(self) -> None:
        """A link may lead to a file system that does not answer."""
        await to_thread(self._arm)
        again = self._backoff.over() if self._is_whole else self._backoff.after_failure()
        self._arm_at = trio.current_time() + again

    def _arm(self) -> None:
        """Watches everything that exists. Watching the same folder again changes nothing."""
        own = []
        for path in self._paths:
            # The parent first: it then notices a folder that is made between the two steps.
            own += [self._watch(path.parent, _COMES_AND_GOES), self._watch(path, _CONTENT)]
        self._own = {watch for watch in own if watch is not None}
        if self._links:
            self._arm_links()

    def _arm_links(self) -> None:
        self._is_whole = True
        names: dict[str, set[bytes]] = defaultdict(set)
        count = 0
        for folder in self._paths:
            for target in _links_in(folder):
                for above, name in self._steps(os.fspath(folder), target):
                    names[above].add(os.fsencode(name))
                    count += 1
                    if count > LINKED_MAX:
                        raise OSError(errno.ENOSPC, f"more than {LINKED_MAX} links to follow")
        linked: dict[int, set[bytes]] = defaultdict(set)
        for above, some in names.items():
            watch = None
            try:
                watch = in_time(above, partial(self._watch, Path(above), _CONTENT), path=above)
            except TimeoutError:
                self._is_whole = False
            if watch is not None:
                linked[watch] |= some
        for old in self._linked.keys() - linked.keys() - self._own:
            self._libc.inotify_rm_watch(self._fd, old)
        self._linked = dict(linked)

    def _steps(self, folder: str, target: str) -> list[tuple[str, str]]:
        """As `steps`; no steps while the link leads to a file system that does not answer."""
        try:
            return in_time(f"{folder}/{target}", lambda: list(steps(folder, target)))
        except TimeoutError:
            self._is_whole = False
            return []

    def _watch(self, path: Path, mask: int) -> int | None:
        flags = mask | _IN_ONLYDIR | _IN_MASK_ADD
        watch: int = self._libc.inotify_add_watch(
            self._fd, os.fsencode(path), ctypes.c_uint32(flags)
        )
        if watch >= 0:
            return watch
        # A missing folder is no error; its parent will report it.
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            self._raise(path)
        return None

    async def changed(self) -> None:
        """Returns when at least one thing has changed since the last call, or since the start; also
        now and then while a link leads to something that does not answer and cannot be watched.

        A call that is cancelled, or fails, leaves what it has seen to the next call, which watches
        what is new before it returns.
        """
        await trio.lowlevel.checkpoint()
        while not self._seen and not self._drain():
            with trio.move_on_at(self._arm_at) as waited:
                await trio.lowlevel.wait_readable(self._fd)
            self._seen = waited.cancelled_caught
        self._seen = True
        if self._links:
            await self._arm_in_thread()
        else:
            self._arm()
        self._seen = False

    def _drain(self) -> bool:
        seen = False
        while True:
            try:
                events = os.read(self._fd, _DRAIN_SIZE)
            except BlockingIOError:
                return seen
            seen = seen or self._counts(events)

    def _counts(self, events: bytes) -> bool:
        """Whether one of these events concerns a watched name, and not another name in a folder
        that a link leads to."""
        at = 0
        while at < len(events):
            watch, mask, _, length = _EVENT.unpack_from(events, at)
            name = events[at + _EVENT.size : at + _EVENT.size + length].rstrip(b"\0")
            at += _EVENT.size + length
            some = self._linked.get(watch)
            if watch in self._own or some is None:
                # The second case: the queue has overflowed, or the event is of an ended watch.
                if mask != _IN_IGNORED:
                    return True
            elif not name or name in some:
                return True
        return False

    def close(self) -> None:
        """Ends the watch; a task that waits in `changed` gets trio.ClosedResourceError."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            with contextlib.suppress(RuntimeError):  # outside of trio no task can wait
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


def _links_in(folder: Path) -> Iterator[str]:
    """The targets of the links in a folder, as the links have them."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.startswith(".") and entry.is_symlink():
                with contextlib.suppress(FileNotFoundError):  # it was just removed
                    yield os.readlink(entry.path)
