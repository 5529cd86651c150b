"""Waits for many descriptors with one task, and calls a function for each that can be read.

A descriptor costs two system calls in its life, and no task; and those that are ready at once have
their turn in one pass of the event loop.
"""

from __future__ import annotations

import logging
import select
from typing import TYPE_CHECKING, Final

import trio
from pedos_host.throttle import throttle

from .per_loop import PerLoop

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)

#: Descriptors that have their turn before other tasks do; the others come next.
AT_ONCE: Final = 16


class Ready:
    """The descriptors that are waited for in one event loop."""

    def __init__(self) -> None:
        """OSError."""
        self._epoll = select.epoll()
        self._then: dict[int, Callable[[], None]] = {}
        self._at_end: list[Callable[[], None]] = []
        trio.lowlevel.spawn_system_task(self._run)

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
                await trio.lowlevel.wait_readable(self._epoll.fileno())
                for descriptor, _ in self._epoll.poll(0, AT_ONCE):
                    then = self._then.get(descriptor)
                    if then is not None:  # else another one's turn has removed it
                        self._turn(descriptor, then)
        finally:
            self._epoll.close()
            for each in self._at_end:
                each()

    def _turn(self, descriptor: int, then: Callable[[], None]) -> None:
        try:
            then()
        except Exception:
            # It would come again and again, and the others are none of its business.
            self.remove(descriptor)
            if (more := throttle.more("a descriptor's turn failed")) is not None:
                log.exception("what came from a descriptor could not be handled%s", more)


#: That of the caller's event loop. OSError when it is made.
ready: Final = PerLoop("pedos_vchan.ready", Ready)
