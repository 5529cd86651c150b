"""Waits for many descriptors with one task, and calls a function for each that can be read.

A descriptor costs two system calls in its life, and no task; and those that are ready at once have
their turn in one pass of the event loop.

To wake that task costs more than most of these turns. So in a program under `running.run` they come
where the event loop is about to wait, as no task can run: this waits in its place, for all that it
would wait for. The task has the turns that come while others can run.
"""

from __future__ import annotations

import contextvars
import logging
import select
from typing import TYPE_CHECKING, Final

import trio
from pedos_host.throttle import throttle

from .per_loop import PerLoop
from .running import RunningClock

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)

#: Seconds to wait in the loop's place at most; poll(2) counts in milliseconds, and not to infinity.
WAIT_MAX: Final = 3600.0
#: Descriptors that have their turn before other tasks do; the others come next.
AT_ONCE: Final = 16


class Ready:
    """The descriptors that are waited for in one event loop."""

    def __init__(self) -> None:
        """OSError."""
        self._epoll = select.epoll()
        self._descriptor = self._epoll.fileno()
        self._then: dict[int, Callable[[], None]] = {}
        self._at_end: list[Callable[[], None]] = []
        trio.lowlevel.spawn_system_task(self._run)
        clock, whole_loop = trio.lowlevel.current_clock(), _epoll_of_trio()
        if isinstance(clock, RunningClock) and whole_loop is not None:
            self._both = select.poll()
            self._both.register(self._descriptor, select.POLLIN)
            self._both.register(whole_loop, select.POLLIN)
            self._context = contextvars.copy_context()  # of tasks that start in a turn
            clock.before_wait = self._wait

    def add(
        self,
        descriptor: int,
        then: Callable[[], None],
        *,
        at_end: Callable[[], None] | None = None,
    ) -> None:
        """Calls `then`, which must not wait, each time that there is something to read or the end;
        again and again if it reads nothing. `remove` comes before the descriptor is closed.
        `at_end` is called when the event loop ends. OSError."""
        self._epoll.register(descriptor, select.EPOLLIN)
        self._then[descriptor] = then
        if at_end is not None:
            self._at_end.append(at_end)

    def remove(self, descriptor: int) -> None:
        """Waits for it no longer. Does nothing if it is not waited for."""
        if self._then.pop(descriptor, None) is not None and not self._epoll.closed:
            self._epoll.unregister(descriptor)

    async def _run(self) -> None:
        try:
            while True:
                await trio.lowlevel.wait_readable(self._descriptor)
                self._take_turns()
        finally:
            self._epoll.close()
            for each in self._at_end:
                each()

    def _wait(self, seconds: float) -> float:
        """In place of the event loop, whose tasks all wait: until one may run, or one of ours has
        had its turn."""
        if self._epoll.closed:
            return seconds
        for descriptor, _ in self._both.poll(min(seconds, WAIT_MAX) * 1000):
            if descriptor == self._descriptor:
                self._context.run(self._take_turns)
        return 0

    def _take_turns(self) -> None:
        for descriptor, _ in self._epoll.poll(0, AT_ONCE):
            then = self._then.get(descriptor)
            if then is not None:  # else another one's turn has removed it
                self._turn(descriptor, then)

    def _turn(self, descriptor: int, then: Callable[[], None]) -> None:
        try:
            then()
        except Exception:
            # It would come again and again, and the others are none of its business.
            self.remove(descriptor)
            if (more := throttle.more("a descriptor's turn failed")) is not None:
                log.exception("what came from a descriptor could not be handled%s", more)


def _epoll_of_trio() -> int | None:
    """What the event loop waits for; trio has a function for this with kqueue and IOCP alone. None
    if it is not found: all turns are the task's then."""
    try:
        manager = trio._core._run.GLOBAL_RUN_CONTEXT.runner.io_manager
        return manager._epoll.fileno()
    except AttributeError:
        return None


#: That of the caller's event loop. OSError when it is made.
ready: Final = PerLoop("pedos_vchan.ready", Ready)
