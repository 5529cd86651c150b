"""Asks what may never answer: a file system whose server hangs, at a path that somebody else chose.

With FUSE or over a network any look at a path may wait for ever, and nothing ends it. So it is made
in a thread of its own, which is left behind when it takes too long. While such a thread hangs,
neither the same thing is asked again nor anything of the same file system, however many names lead
there: it costs a caller its time once, and the process one thread.
"""

from __future__ import annotations

import contextlib
import errno
import threading
from collections.abc import Callable
from typing import Any, Final, Literal, TypeVar

from .mounts import remote_at
from .threads import NoThreadError

T = TypeVar("T")

Kind = Literal["look", "attach"]

# A file system answers in milliseconds, one over a network in some hundred of them; a loop device
# that another program is just giving up, when what was written to it is on the disk.
ANSWER_SECONDS: Final = 3.0
# Threads that are left behind by each kind of question. With more than this, what is asked counts
# as not answered. What attaches has its own, which looks at whatever lies about do not use up.
HANGING_MAX: Final = 16
#: Of the threads that ask.
THREAD_NAME: Final = "asking"

_lock: Final = threading.Lock()
_hanging: Final[set[Asked]] = set()
_this_thread: Final = threading.local()


def in_time(
    what: str,
    ask: Callable[[], T],
    *,
    path: str | None = None,
    kind: Kind = "look",
    seconds: float | None = None,
    late: Callable[[T], object] = lambda _result: None,
) -> T:
    """What `ask` returns or raises; TimeoutError when it does neither within `seconds`, and
    NoThreadError.

    `what` says what is asked, and of whom, `path` of which file system; or `ask` says so itself, by
    `going_to`. `late` gets a result that comes when nobody waits for it any more, to give back what
    it holds. Blocks meanwhile, so not for the event loop.
    """
    with _lock:
        is_hanging = any(each.what == what for each in _hanging)
        if is_hanging or sum(each.kind == kind for each in _hanging) >= HANGING_MAX:
            raise _no_answer()
    asked = Asked(what, kind, path, ask, late)
    try:
        asked.thread.start()
    except RuntimeError as error:
        raise NoThreadError from error
    if not asked.wait(ANSWER_SECONDS if seconds is None else seconds) and asked.leave():
        raise _no_answer()
    return asked.answer()  # type: ignore[no-any-return]


def going_to(path: str) -> None:
    """Says that the file system at this path is asked next; links on the way are resolved.

    TimeoutError if that is one that hangs. Where nothing is asked in time, this does nothing.
    """
    if (asked := getattr(_this_thread, "asked", None)) is not None:
        asked.go_to(path)


class Asked:
    """One question, in its thread."""

    def __init__(
        self,
        what: str,
        kind: Kind,
        path: str | None,
        ask: Callable[[], Any],
        late: Callable[[Any], object],
    ) -> None:
        self.what, self.kind = what, kind
        self.file_system: str | None = None  # which hangs, if one does
        self.thread = threading.Thread(target=self._run, name=THREAD_NAME, daemon=True)
        self.result: Any = None
        self.error: BaseException | None = None
        self._done = threading.Event()
        self._path, self._ask, self._late = path, ask, late
        self._is_left = False

    def _run(self) -> None:
        _this_thread.asked = self
        try:
            if self._path is not None:
                self.go_to(self._path)
            self.result = self._ask()
        except BaseException as error:
            self.error = error
        with _lock:
            self._done.set()
            is_late = self._is_left
            if is_late:
                _hanging.discard(self)
        if is_late:
            if self.error is None:
                self._late(self.result)
            self.error = None

    def go_to(self, path: str) -> None:
        """See `going_to`."""
        self._path = path
        with _lock:
            if self._is_left:
                self._note_file_system()
            hanging = {each.file_system for each in _hanging if each is not self} - {None}
        if hanging and remote_at(path) in hanging:
            raise _no_answer()

    def wait(self, seconds: float) -> bool:
        """Whether it is answered within that time."""
        return self._done.wait(seconds)

    def answer(self) -> Any:
        """What it returned, or raised; to be taken once.

        An error's traceback refers to this object and to all that was open where it was raised. If
        this object kept it, they would stay open until garbage is collected.
        """
        error, self.error = self.error, None
        try:
            if error is not None:
                raise error
            return self.result
        finally:
            del error

    def leave(self) -> bool:
        """Wait no longer; False if it has just answered."""
        with _lock:
            if self._done.is_set():
                return False
            self._is_left = True
            self._note_file_system()
            _hanging.add(self)
            return True

    def _note_file_system(self) -> None:
        """Of which one it waits for an answer now."""
        self.file_system = None
        with contextlib.suppress(OSError):  # then only the same thing is known to hang
            self.file_system = None if self._path is None else remote_at(self._path)


def _no_answer() -> TimeoutError:
    return TimeoutError(errno.ETIMEDOUT, "it does not answer")
