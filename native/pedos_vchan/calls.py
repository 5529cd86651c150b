"""What a `Peer` needs to wait and to serve cheaply: waiters and first steps."""

from __future__ import annotations

import math
import threading
import types
from collections.abc import Coroutine, Generator
from typing import TYPE_CHECKING, Any, TypeVar

import trio

if TYPE_CHECKING:
    from pedos_protocol.events import Answer, ErrorAnswer

    from .event_loop import Flusher
    from .stream import VchanStream

T = TypeVar("T")


class Waiter:
    """A call of ours that waits for its answer until `deadline` (of trio's clock)."""

    __slots__ = ("_task", "answer", "deadline", "in_place_of", "is_settled", "timed_out")

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self.is_settled = False
        self.timed_out = False
        self.answer: Answer | ErrorAnswer | None = None  # None when settled: none came in time
        self.in_place_of: VchanStream | None = None  # whose reader the caller stands in for
        self._task: trio.lowlevel.Task | None = None

    def settle(self, answer: Answer | ErrorAnswer | None) -> None:
        """Ends the waiting. An answer counts until the caller has looked, even after a time-out:
        what it tells of is done, and its caller must not take it for undone."""
        self.answer = self.answer or answer
        if not self.is_settled:
            self.is_settled = True
            task, self._task = self._task, None
            if task is not None:
                trio.lowlevel.reschedule(task)
            elif self.in_place_of is not None:
                self.in_place_of.wake_substitute()

    def expire(self) -> None:
        """Ends the waiting because the deadline has come."""
        self.timed_out = True
        self.settle(None)

    async def wait(self) -> None:
        """Returns once settled; lets other tasks run in any case. Cancelled only if it is not."""
        if self.is_settled:
            await trio.lowlevel.cancel_shielded_checkpoint()
            return

        def abort(_: object) -> trio.lowlevel.Abort:
            self._task = None
            return trio.lowlevel.Abort.SUCCEEDED

        # As trio.Event does, without making an event and a queue for each call.
        self._task = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(abort)

    async def wait_in_place(self, stream: VchanStream) -> None:
        """Waits for news of `stream` instead of its reader, or to be settled."""
        self.in_place_of = stream
        try:
            await stream.wait_instead()
        finally:
            self.in_place_of = None


class _FirstStep(threading.local):
    """Of what `first_step` runs now in the event loop of this thread."""

    seconds = math.inf


_first_step = _FirstStep()


def effective_deadline() -> float:
    """trio.current_effective_deadline(), also in the `first_step` of a handler."""
    deadline = trio.current_effective_deadline()
    seconds = _first_step.seconds
    return deadline if seconds == math.inf else min(deadline, trio.current_time() + seconds)


def first_step(work: Coroutine[Any, Any, Any], seconds: float = math.inf) -> object:
    """Runs `work` in the current task until it lets other tasks run for the first time.

    Returns what `rest` needs to go on, in the same task; until then nothing else may be awaited.
    Raises StopIteration with the result if there is no rest: most handlers never wait, and so cost
    neither a task nor a cancel scope. How many `seconds` it has is noted for `effective_deadline`.
    """
    _first_step.seconds = seconds
    try:
        return work.send(None)
    finally:
        _first_step.seconds = math.inf


#: Handlers of one peer that go on in one pass of the event loop. One and the same thing may wake
#: all 128 that it can have; all other peers would wait for all of them.
GOING_ON_AT_ONCE = 2


class Gate:
    """Lets a few handlers of one peer go on in each pass of the event loop, first come first."""

    def __init__(self, flusher: Flusher) -> None:
        self._flusher = flusher
        self._left = GOING_ON_AT_ONCE
        self._parked = trio.lowlevel.ParkingLot()

    def may_pass(self) -> bool:
        """Whether there is room in this pass, which is then taken; otherwise `wait`."""
        if self._left == 0:
            return False
        if self._left == GOING_ON_AT_ONCE:
            self._flusher.soon(self._next_pass)
        self._left -= 1
        return True

    async def wait(self) -> None:
        """Returns in a later pass. Even if cancelled: who waits knows of that already."""
        with trio.CancelScope(shield=True):
            await self._parked.park()

    def _next_pass(self) -> None:
        going = self._parked.unpark(count=GOING_ON_AT_ONCE)
        self._left = GOING_ON_AT_ONCE - len(going)
        if going:
            self._flusher.soon(self._next_pass)


@types.coroutine
def rest(
    work: Coroutine[Any, Any, T], trap: object, gate: Gate | None = None
) -> Generator[Any, Any, T]:
    """Awaits the rest of what `first_step` has begun, each step of it through `gate`."""
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
