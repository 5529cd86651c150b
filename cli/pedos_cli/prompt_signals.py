"""Signals as something to poll for, so that no code of the program runs within a handler."""

from __future__ import annotations

import os
import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType, TracebackType
    from typing import Any, Literal

    Taken = Literal["interrupt", "resume"] | int

READ_SIZE = 64
"""Signals taken at once; further ones add nothing."""

_ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_KNOWN = (signal.SIGINT, signal.SIGCONT, *_ENDING)


class Signals:
    """Between `with` and its end, signals are bytes at `fileno()`. For the main thread alone."""

    def __init__(self) -> None:
        self._reader = self._writer = -1
        self._fd_before = -1
        self._before: dict[signal.Signals, Callable[..., Any] | int | None] = {}

    def __enter__(self) -> Signals:
        self._reader, self._writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._fd_before = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        for number in _KNOWN:
            self._before[number] = signal.signal(number, _note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        signal.set_wakeup_fd(self._fd_before)
        os.close(self._reader)
        os.close(self._writer)

    def fileno(self) -> int:
        """The descriptor to poll for input."""
        return self._reader

    def take(self) -> list[Taken]:
        """Return what came: to deny or end, to show the question again, or an exit status."""
        try:
            numbers = os.read(self._reader, READ_SIZE)
        except BlockingIOError:
            return []
        taken: list[Taken] = []
        for number in numbers:
            if number == signal.SIGINT:
                taken.append("interrupt")
            elif number == signal.SIGCONT:
                taken.append("resume")
            elif number in _ENDING:
                taken.append(128 + number)
        return taken


def _note(number: int, frame: FrameType | None) -> None:
    """Only the byte in the pipe matters."""
