"""Handlers that run without a task of their own until they first have to wait.

The first step of a handler, a coroutine, is `work.send(None)` in the task that reads. It returns
what `rest` needs to continue in the same task; until then nothing else may be awaited. It raises
StopIteration with the result if there is no rest: most handlers never wait, and so need neither a
task nor a cancel scope. `effective_deadline` knows the limit of such a step nevertheless.
"""

from __future__ import annotations

import math
import types
from collections.abc import Coroutine, Generator
from typing import TYPE_CHECKING, Any, TypeVar

import trio

from .event_loop import event_loop
from .parking import Parking

if TYPE_CHECKING:
    from .event_loop import EventLoop, Flusher

T = TypeVar("T")


def effective_deadline(loop: EventLoop) -> float:
    """trio.current_effective_deadline(), also in the first step of a handler."""
    deadline = trio.current_effective_deadline()
    seconds = loop.step_seconds
    return deadline if seconds == math.inf else min(deadline, loop.time() + seconds)


def seconds_left() -> float:
    """Until the caller of the handler that runs gives up; infinity if nobody does."""
    loop = event_loop()
    return max(0.0, effective_deadline(loop) - loop.time())


#: Handlers of one peer that continue in one pass of the event loop. One event may wake all 128 that
#: it can have; all other peers would wait for all of them.
GOING_ON_AT_ONCE = 2


class Gate:
    """Lets a few handlers of one peer continue in each pass of the event loop, first come first
    served."""

    __slots__ = (
        "_flusher",
        "_left",
        "_parked",
        "waiting",
    )

    def __init__(self, flusher: Flusher) -> None:
        self._flusher = flusher
        self._left = GOING_ON_AT_ONCE
        self._parked = Parking()
        #: Handlers that have begun and not ended: the most that one event can wake.
        self.waiting = 0

    def may_pass(self) -> bool:
        """Whether there is room in this pass, which is then taken; otherwise `wait`."""
        if self._left == 0:
            return False
        if self._left == GOING_ON_AT_ONCE:
            if self.waiting <= GOING_ON_AT_ONCE:
                return True  # uncounted: a pass in which they are counted takes a callback
            self._flusher.soon(self._next_pass)
        self._left -= 1
        return True

    async def wait(self) -> None:
        """Returns in a later pass. Even if cancelled: the waiting task knows of that already."""
        with trio.CancelScope(shield=True):
            await self._parked.park()

    def _next_pass(self) -> None:
        going = self._parked.unpark(GOING_ON_AT_ONCE)
        self._left = GOING_ON_AT_ONCE - going
        if going:
            self._flusher.soon(self._next_pass)


@types.coroutine
def rest(
    work: Coroutine[Any, Any, T], trap: object, gate: Gate | None = None
) -> Generator[Any, Any, T]:
    """Awaits the rest of `work` after its first step, each step of it through `gate`."""
    try:
        while True:
            try:
                sent = yield trap
            except BaseException as error:
                if gate is not None and not gate.may_pass():
                    yield from gate.wait()
                trap = work.throw(error)
            else:
                if gate is not None and not gate.may_pass():
                    yield from gate.wait()
                trap = work.send(sent)
    except StopIteration as stop:
        result: T = stop.value
        return result
