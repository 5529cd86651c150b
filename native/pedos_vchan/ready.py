"""Waits for many descriptors, and calls a function for each that can be read.

A descriptor costs two system calls in its life, and no task; and those that are ready at once have
their turn in one pass of the event loop.

To wake a task costs more than most of these turns. So there is none: an instrument of trio takes
them where the loop has waited.
"""

from __future__ import annotations

import contextlib
import contextvars
import logging
import select
from typing import TYPE_CHECKING, Final, NoReturn

import trio
from pedos_host.throttle import throttle

from .per_loop import PerLoop

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)

#: Descriptors that have their turn before other tasks do; the others come next.
AT_ONCE: Final = 16


class Ready(trio.abc.Instrument):
    """The descriptors that are waited for in one event loop."""

    def __init__(self) -> None:
        """OSError."""
        self._epoll = select.epoll()
        self._then: dict[int, Callable[[], None]] = {}
        self._at_end: list[Callable[[], None]] = []
        self._context = contextvars.copy_context()  # of tasks that start in a turn
        self._main = _main_task()
        whole_loop = _epoll_of_trio()
        if whole_loop is not None:
            # trio ignores events that no task waits for.
            whole_loop.register(self._epoll, select.EPOLLIN)
            trio.lowlevel.add_instrument(self)
        trio.lowlevel.spawn_system_task(self._run, whole_loop is None)

    def add(
        self,
        descriptor: int,
        then: Callable[[], None],
        *,
        at_end: Callable[[], None] | None = None,
    ) -> None:
        """Calls `then`, which must not wait, each time that there is something to read or the end;
        again and again if it reads nothing. `remove` comes before the descriptor is closed.
        `at_end` is called when the event loop ends. OSError.

        The kernel says of some files once that they have changed, to whoever looks first (tables of
        mounts): trio looks before this, so tasks wait for those."""
        self._epoll.register(descriptor, select.EPOLLIN)
        self._then[descriptor] = then
        if at_end is not None:
            self._at_end.append(at_end)

    def remove(self, descriptor: int) -> None:
        """Waits for it no longer. Does nothing if it is not waited for."""
        if self._then.pop(descriptor, None) is not None and not self._epoll.closed:
            self._epoll.unregister(descriptor)

    async def _run(self, is_needed: bool) -> None:
        try:
            while is_needed:
                await trio.lowlevel.wait_readable(self._epoll.fileno())
                self._take_turns(self._epoll.poll(0, AT_ONCE))
            await trio.sleep_forever()
        finally:
            self._look_no_more()
            self._epoll.close()
            for each in self._at_end:
                each()

    def after_io_wait(self, timeout: float) -> None:
        """trio calls this in each pass of its loop, also where it has not waited."""
        try:
            if has_come := self._epoll.poll(0, AT_ONCE):
                self._context.run(self._take_turns, has_come)
        except BaseException as error:
            # trio goes on without an instrument that fails, and the program would hear of nothing.
            self._look_no_more()
            trio.lowlevel.spawn_system_task(_end_with, error)

    def task_exited(self, task: trio.lowlevel.Task) -> None:
        """The loop ends when the main task has: who would hear of a turn is gone."""
        if task is self._main:
            self._look_no_more()

    def _look_no_more(self) -> None:
        with contextlib.suppress(KeyError):
            trio.lowlevel.remove_instrument(self)

    def _take_turns(self, has_come: list[tuple[int, int]]) -> None:
        for descriptor, _ in has_come:
            then = self._then.get(descriptor)
            if then is not None:  # else another one's turn has removed it
                self._turn(descriptor, then)

    def _turn(self, descriptor: int, then: Callable[[], None]) -> None:
        try:
            then()
        except Exception:
            # It would come again and again, and the others are none of its business.
            with contextlib.suppress(OSError):  # it may have closed it
                self.remove(descriptor)
            if (more := throttle.more("a descriptor's turn failed")) is not None:
                log.exception("what came from a descriptor could not be handled%s", more)


async def _end_with(error: BaseException) -> NoReturn:
    """What a system task raises ends the loop."""
    raise error


def _main_task() -> trio.lowlevel.Task | None:
    """While a loop ends, any other task that is left, or None."""
    root = trio.lowlevel.current_root_task()
    assert root is not None  # or no loop runs here
    return next(iter(root.child_nurseries[-1].child_tasks), None)


def _epoll_of_trio() -> select.epoll | None:
    """What the event loop waits with; trio has a function for this with kqueue and IOCP alone. None
    if it is not found: all turns are a task's then."""
    try:
        found = trio._core._run.GLOBAL_RUN_CONTEXT.runner.io_manager._epoll
    except AttributeError:
        return None
    return found if isinstance(found, select.epoll) else None


#: That of the caller's event loop. OSError when it is made.
ready: Final = PerLoop("pedos_vchan.ready", Ready)
