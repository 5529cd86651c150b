"""Asks about paths, chosen by others, whose file system may never answer.

With FUSE or over a network any look at a path may wait for ever, and nothing ends it. So a separate
thread looks, which is left behind when it takes too long. While such a thread hangs, the same
question is not asked again, nor any other about the same file system, however many names lead
there: a hang costs a caller its time once, and the process one thread.
"""

from __future__ import annotations

import contextlib
import errno
import threading
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal, TypeVar

from .mounts import remote_at
from .threads import NoThreadError

T = TypeVar("T")

Kind = Literal["look", "attach", "give-back"]

# A file system answers in milliseconds, one over a network in some hundred of them; a loop device
# that another program is just closing answers when what was written to it is on the disk.
ANSWER_SECONDS: Final = 3.0
# Threads that may be left behind by each kind of question. Beyond this, a question counts as
# unanswered. An attach has a kind of its own, which looks at other paths do not use up.
HANGING_MAX: Final = 16
# Those that give devices back are not refused because others hang, unless all these do: what is
# lent to a VM would stay with it. A VM lends 16 USB devices at most, which is all that usbip-host
# knows, and hardly borrows three times as many. One that is lent has three such questions, and one
# more if an earlier agent has lent it; one that is borrowed has four, and all have one in common.
GIVING_BACK_MAX: Final = 256
_PLACES: Final[Mapping[Kind, int]] = {
    "look": HANGING_MAX,
    "attach": HANGING_MAX,
    "give-back": GIVING_BACK_MAX,
}
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
    """Returns or raises what `ask` does; TimeoutError if `ask` takes longer than `seconds`, and
    NoThreadError.

    `what` names the question and its subject, `path` the file system; or `ask` names it itself, by
    `going_to`. `late` gets a result that arrives after the time-out, to free what it holds; until
    that is done the question counts as hanging. This blocks, so the event loop must not call it.
    """
    with _lock:
        is_hanging = any(each.what == what for each in _hanging)
        if is_hanging or sum(each.kind == kind for each in _hanging) >= _PLACES[kind]:
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
    """Announces that the next question is for the file system at this path; links on the way are
    resolved.

    TimeoutError if that file system hangs. Outside of `ask` in a thread, this does nothing.
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
        self.file_system: str | None = None  # the one that hangs, if one does
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
            if not self._is_left:
                return
        try:
            if self.error is None:
                self._late(self.result)
        finally:
            self.error = None
            # Not before: whoever asks again would be undone by what is late.
            with _lock:
                _hanging.discard(self)

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
        """Whether the answer arrives within that time."""
        return self._done.wait(seconds)

    def answer(self) -> Any:
        """Returns the result, or raises it; to be called once.

        An error's traceback refers to this object and to everything that was open where it was
        raised. If this object kept the error, all that would stay open until garbage is collected.
        """
        error, self.error = self.error, None
        try:
            if error is not None:
                raise error
            return self.result
        finally:
            del error

    def leave(self) -> bool:
        """Stop waiting; False if the answer has just arrived."""
        with _lock:
            if self._done.is_set():
                return False
            self._is_left = True
            self._note_file_system()
            _hanging.add(self)
            return True

    def _note_file_system(self) -> None:
        """The file system whose answer it waits for now."""
        self.file_system = None
        with contextlib.suppress(OSError):  # then only the same question is known to hang
            self.file_system = None if self._path is None else remote_at(self._path)


def _no_answer() -> TimeoutError:
    return TimeoutError(errno.ETIMEDOUT, "it does not answer")
