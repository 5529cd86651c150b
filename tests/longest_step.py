"""How long single steps of tasks hold the event loop, in processor time."""

from __future__ import annotations

import functools
import time
from collections.abc import Awaitable, Callable
from typing import Any

import trio

from tests.yardstick import slowness

STEP_MAX = 0.005  # s that one step of one task may hold the loop; more on a slow processor
TRIES = 3


class TookLongError(AssertionError):
    """A step took too long this time."""


class LongestStep(trio.abc.Instrument):
    """Measures what single steps of tasks take, in processor time of the loop's thread.

    Processor time and not time: the hostile process and other tests want the processors, too.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._began: float | None = None

    async def begin(self) -> None:
        """Measures from the caller's next step on."""
        self._began = None  # the step that leads here is not the attack's
        trio.lowlevel.add_instrument(self)
        await trio.lowlevel.checkpoint()

    async def end(self) -> None:
        """Measures up to here; the step that leads here counts, so it has to end first."""
        await trio.lowlevel.checkpoint()
        trio.lowlevel.remove_instrument(self)

    def check(self, most: float = STEP_MAX) -> None:
        """TookLongError if a step took more than `most` seconds of a usual processor."""
        if self.seconds >= most * slowness():
            raise TookLongError(f"a step took {self.seconds * 1000:.1f} ms of processor time")

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._began = time.thread_time()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if self._began is not None:
            self.seconds = max(self.seconds, time.thread_time() - self._began)


def more_than_once(test: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    """Repeats a test of the longest step when a step took too long: a neighbour's work on this
    machine is counted as ours now and then, our own code's every time."""

    @functools.wraps(test)
    async def tried(*arguments: Any, longest_step: LongestStep, **more: Any) -> None:
        for _ in range(TRIES - 1):
            longest_step.seconds = 0.0
            try:
                return await test(*arguments, longest_step=longest_step, **more)
            except TookLongError:
                continue
        longest_step.seconds = 0.0
        return await test(*arguments, longest_step=longest_step, **more)

    return tried
