"""What all peers of one event loop share: one alarm for their deadlines, one moment to write.

A task for each would take some 4 KiB per peer, and dom0 has a peer for each VM.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Final, Protocol

import trio

from .per_loop import PerLoop


class Expiring(Protocol):
    """Something with a deadline, of trio's clock."""

    deadline: float

    def expire(self) -> None:
        """Its deadline has come. Must not raise."""


class Sweeper:
    """One alarm for many deadlines, instead of a cancel scope for each."""

    def __init__(self) -> None:
        self._watched: set[Expiring] = set()
        self._alarm = trio.CancelScope()
        self._alarm_time = math.inf  # its deadline, which is slow to ask
        #: `forget(expiring)`: it has ended by itself. Safe for one that is not watched.
        self.forget: Final = self._watched.discard

    def watch(self, expiring: Expiring) -> None:
        """Lets it expire at its deadline, unless it is forgotten before.

        Mostly the alarm is early enough already: an alarm for a call that was answered since stays
        where it is, and serves the next ones.
        """
        self._watched.add(expiring)
        if expiring.deadline < self._alarm_time:
            self._alarm.deadline = self._alarm_time = expiring.deadline

    async def run(self) -> None:
        """For ever."""
        while True:
            with self._alarm:
                await trio.sleep_forever()
            now = trio.current_time()
            for expiring in [one for one in self._watched if one.deadline <= now]:
                self._watched.discard(expiring)
                expiring.expire()
            self._alarm_time = min((one.deadline for one in self._watched), default=math.inf)
            self._alarm = trio.CancelScope(deadline=self._alarm_time)


#: Peers that are written to at once: messages to all of a thousand VMs must not hold the event loop
#: for 5 ms, and the ring of one may take 50 us to fill.
FLUSHES_AT_ONCE = 64


class Flusher:
    """Calls back once all tasks that can run now have run."""

    def __init__(self) -> None:
        self._due: dict[Callable[[], None], None] = {}  # in order, each once
        self._parked = trio.lowlevel.ParkingLot()

    def soon(self, flush: Callable[[], None]) -> None:
        """`flush` is called once, however often it is requested until then. It must not raise."""
        self._due[flush] = None
        if self._parked:
            self._parked.unpark()

    async def run(self) -> None:
        """For ever."""
        while True:
            if not self._due:
                await self._parked.park()
            for flush in list(itertools.islice(self._due, FLUSHES_AT_ONCE)):
                del self._due[flush]
                flush()
            await trio.lowlevel.cancel_shielded_checkpoint()


class EventLoop:
    """The shared parts of the event loop that runs."""

    def __init__(self) -> None:
        self.sweeper = Sweeper()
        self.flusher = Flusher()
        #: trio.current_time(), without two calls on the way to the clock.
        self.time: Final = trio.lowlevel.current_clock().current_time
        #: Seconds that the handler has whose first step runs now; infinity without one.
        self.step_seconds = math.inf
        trio.lowlevel.spawn_system_task(self.sweeper.run)
        trio.lowlevel.spawn_system_task(self.flusher.run)


#: That of the caller.
event_loop: Final = PerLoop("pedos_vchan.event_loop", EventLoop)
