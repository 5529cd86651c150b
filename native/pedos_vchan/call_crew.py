"""The crew of an event loop: threads in C that run calls, and what it hears of all of them.

`csrc/call_crew.h` says more. No thread of it ever runs Python, so that a call costs the loop no
hand-over of the interpreter's lock.
"""

from __future__ import annotations

import itertools
import logging
import os
from typing import TYPE_CHECKING, Final

from ._native import ffi, lib
from .per_loop import PerLoop
from .ready import ready

if TYPE_CHECKING:
    from collections.abc import Callable

    from . import _native
    from .channel import Channel


log = logging.getLogger(__name__)


class _Run:
    """A call that runs, and who is told of its events and its end."""

    __slots__ = ("call", "channel", "hear", "then", "unmet")

    def __init__(
        self,
        call: _native.Call,
        channel: Channel,
        hear: Callable[[int, int], None],
        then: Callable[[int | None], None],
        unmet: Callable[[int], None],
    ) -> None:
        self.call = call
        self.channel = channel
        self.hear = hear
        self.then = then
        self.unmet = unmet


class Crew:
    """The threads for the calls of one event loop."""

    def __init__(self) -> None:
        """OSError."""
        native = lib.pv_crew_new()
        if not native:
            raise OSError("no memory or no descriptor for calls")
        self._native = ffi.gc(native, lib.pv_crew_free)
        self._runs: dict[int, _Run] = {}
        self._numbers = itertools.count()
        self._news = ffi.new("struct pv_crew_news *")
        ready().add(lib.pv_crew_fd(native), self._hear, at_end=self._abandon)

    def begin(
        self,
        call: _native.Call,
        channel: Channel,
        streams: list[int],
        *,
        shutdown: bool,
        wanted: int,
        lazily: int,
        hear: Callable[[int, int], None],
        then: Callable[[int | None], None],
        unmet: Callable[[int], None],
    ) -> None:
        """Has a thread run the call over the channel to its end. `then` is called when the thread
        is done with its memory and descriptors, with 0 or the negative errno with which its three
        streams could not be taken.

        Three more descriptors may follow them, which the thread closes at once. It closes the
        streams in any case, too, so `streams` is empty once it has them. OSError when none is to be
        had: nothing is begun then. `hear` gets each event in `wanted`, and its number, at once, and
        each in `lazily` before the end or PV_CREW_LAZY_MS later. Should the loop end before the
        call, the call ends at once, and `then` gets None, outside of any loop.

        Of a call that follows a keeper `unmet` is called instead, with 0 or errno, if the first
        word of that is for others to read: channel and streams are as they were.
        """
        number = next(self._numbers)
        fds = [*streams, *[-1] * (lib.PV_CREW_FDS - len(streams))]
        error = lib.pv_crew_run(
            self._native, number, call, channel.native(), fds, shutdown, wanted, lazily
        )
        if error:
            raise OSError(-error, os.strerror(-error))
        streams.clear()
        self._runs[number] = _Run(call, channel, hear, then, unmet)
        _crews.add(self)

    def _hear(self) -> None:
        """Pass on what the threads tell."""
        news = self._news
        while lib.pv_crew_next(self._native, news):
            run, event, number = self._runs[news.call], news.event, news.number
            try:
                if event == lib.PV_CALL_DONE:
                    self._forget(news.call).then(number)
                elif event == lib.PV_CALL_UNMET:
                    self._forget(news.call).unmet(number)
                else:
                    run.hear(event, number)
            except Exception:
                # The other calls' news come the same way.
                log.exception("an event of a call could not be handled")

    def _forget(self, number: int) -> _Run:
        run = self._runs.pop(number)
        lib.pv_crew_forget(run.call)
        if not self._runs:
            _crews.discard(self)
        return run

    def _abandon(self) -> None:
        """The loop has ended: what still runs ends, and then its memory may be freed."""
        for each in self._runs.values():
            lib.pv_call_cancel(each.call)
        for number in list(self._runs):
            self._forget(number).then(None)


#: Those with calls, whose memory threads use. If a loop breaks down, Python frees what it has in
#: any order, and `Crew._abandon` comes at some time in that.
_crews: set[Crew] = set()

#: That of the caller's event loop. OSError when it is made.
crew: Final = PerLoop("pedos_vchan.call_crew", Crew)
