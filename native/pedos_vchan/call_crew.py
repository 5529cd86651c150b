"""The crew of an event loop: threads in C that run calls, and what it hears of all of them.

`csrc/call_crew.h` says more. No thread of it ever runs Python, so that a call costs the loop no
hand-over of the interpreter's lock.
"""

from __future__ import annotations

import itertools
import logging
import os
from typing import TYPE_CHECKING, Final

import trio

from ._native import ffi, lib
from .per_loop import PerLoop
from .ready import ready

if TYPE_CHECKING:
    from collections.abc import Callable

    from . import _native
    from .channel import Channel


log = logging.getLogger(__name__)


class _Run:
    """A call that runs: the task that waits for its end, and who is told of its events."""

    __slots__ = ("error", "hear", "task")

    def __init__(self, task: trio.lowlevel.Task, hear: Callable[[int, int], None]) -> None:
        self.task = task
        self.hear = hear
        self.error = 0


#: What threads use. If the loop breaks down, Python frees what the coroutines of its tasks have in
#: any order, before or after it closes these.
_held: set[object] = set()


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
        ready().add(lib.pv_crew_fd(native), self._hear)

    async def run(
        self,
        call: _native.Call,
        channel: Channel,
        streams: list[int],
        *,
        shutdown: bool,
        wanted: int,
        hear: Callable[[int, int], None],
    ) -> int:
        """Has a thread run the call over the channel to its end; returns 0, or the negative errno
        with which its three streams could not be taken.

        Three more descriptors may follow them, which the thread closes at once. It closes the
        streams in any case, too, so `streams` is empty once it has them. OSError when
        none is to be had: nothing is begun then. `hear` gets each event in `wanted`, and its
        number. Cancellation ends the call at once. This does not end before the thread is done with
        the call's memory and descriptors, even when the coroutine is closed, which waits then.
        """
        number = next(self._numbers)
        fds = [*streams, *[-1] * (lib.PV_CREW_FDS - len(streams))]
        error = lib.pv_crew_run(self._native, number, call, channel.native(), fds, shutdown, wanted)
        if error:
            raise OSError(-error, os.strerror(-error))
        streams.clear()
        held = (self, call, channel)
        _held.add(held)
        run = self._runs[number] = _Run(trio.lowlevel.current_task(), hear)

        def abort(_: object) -> trio.lowlevel.Abort:
            lib.pv_call_cancel(call)
            return trio.lowlevel.Abort.FAILED

        try:
            await trio.lowlevel.wait_task_rescheduled(abort)
        except GeneratorExit:
            lib.pv_call_cancel(call)
            raise
        finally:
            self._runs.pop(number, None)
            lib.pv_crew_forget(call)
            _held.discard(held)
        return run.error

    def _hear(self) -> None:
        """Pass on what the threads tell."""
        news = self._news
        while lib.pv_crew_next(self._native, news):
            run = self._runs[news.call]
            if news.event == lib.PV_CALL_DONE:
                del self._runs[news.call]
                run.error = news.number
                trio.lowlevel.reschedule(run.task)
                continue
            try:
                run.hear(news.event, news.number)
            except Exception:
                # The other calls' news come the same way.
                log.exception("an event of a call could not be handled")


#: That of the caller's event loop. OSError when it is made.
crew: Final = PerLoop("pedos_vchan.call_crew", Crew)
