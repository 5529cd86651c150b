"""trio in a program whose machine may be paused: deadlines count the time in which it ran.

A VM is paused, its host sleeps, the process is stopped: then the machine's clock jumps, and by that
clock all deadlines pass at once, also those whose answers are there to be read. By this one a pause
of any length takes half a second.

A loop that hangs is ended by the same count (csrc/running.h): systemd's WatchdogSec= cannot tell a
pause from a hang, and kills a healthy agent, which ends all that its VM lends and borrows.
"""

from __future__ import annotations

import faulthandler
import logging
import math
import os
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar, TypeVarTuple

import trio
from pedos_host.line_writer import stderr

from ._native import lib

log = logging.getLogger(__name__)

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

TICK: Final = lib.PV_TICK_NS / 1e9  # seconds
TICK_MAX: Final = lib.PV_TICK_NS_MAX / 1e9

#: Seconds of its own time after which an event loop that has not turned is given up. Nothing that
#: the loop does by itself takes one; a machine that swaps may delay it for ten.
HANG_SECONDS: Final = 30.0
#: Overrides it, for a machine that is slower still; 0 is for a debugger.
HANG_VARIABLE: Final = "PEDOS_HANG_SECONDS"
#: At least two ticks, because in one a healthy program may not have had its turn; at most a day,
#: because more is meant as never.
HANG_SECONDS_MIN: Final = 2 * TICK
HANG_SECONDS_MAX: Final = 86_400.0
#: Signs of life in that time: a single late one does not end a healthy program.
SIGNS: Final = 3


class RunningClock(trio.abc.Clock):
    """Seconds in which this process ran; `read` is for tests."""

    def __init__(self, read: Callable[[], float] = lib.pv_running_now) -> None:
        self._read = read
        # C itself, with no Python in between: a turn of the event loop asks several times.
        self.current_time = read  # type: ignore[method-assign]

    def start_clock(self) -> None:
        """OSError when there is no thread to be had."""
        if error := lib.pv_running_start():
            raise OSError(-error, os.strerror(-error))

    def current_time(self) -> float:
        return self._read()

    def deadline_to_sleep_time(self, deadline: float) -> float:
        return deadline - self._read()


def run(main: Callable[[*Ts], Awaitable[T]], *arguments: *Ts) -> T:
    """`trio.run` for a program that lends or borrows: with this clock, and ended if it hangs."""
    return trio.run(_watched, main, arguments, clock=RunningClock(), strict_exception_groups=True)


async def _watched(main: Callable[..., Awaitable[T]], arguments: tuple[Any, ...]) -> T:
    if seconds := _hang_seconds():
        words = stderr()
        if words is not None:
            # At its end it reports what hangs, and where.
            faulthandler.enable(words)
        lib.pv_running_limit(round(seconds / TICK), -1 if words is None else words)
        # A system task: it goes on while everything else is taken down.
        trio.lowlevel.spawn_system_task(_stay_alive, seconds / SIGNS)
    try:
        return await main(*arguments)
    finally:
        lib.pv_running_limit(0, -1)


def _hang_seconds() -> float:
    said = os.environ.get(HANG_VARIABLE, "")
    try:
        seconds = float(said or HANG_SECONDS)
    except ValueError:
        seconds = math.nan
    if seconds == 0 or HANG_SECONDS_MIN <= seconds <= HANG_SECONDS_MAX:
        return seconds
    log.warning(
        "%s is %.40r, which is neither 0 nor a number of seconds from %g to %g: %g it is",
        *(HANG_VARIABLE, said, HANG_SECONDS_MIN, HANG_SECONDS_MAX, HANG_SECONDS),
    )
    return HANG_SECONDS


async def _stay_alive(seconds: float) -> None:
    while True:
        lib.pv_running_alive()
        await trio.sleep(seconds)
