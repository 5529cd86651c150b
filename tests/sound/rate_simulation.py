"""A microphone, two clocks and the fill control (native/sound/rate.c): what becomes of the fill.

Times are milliseconds of the target's clock, amounts are samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from cffi import FFI

PER_MS = 48


@dataclass(frozen=True)
class Cycle:
    ms: float
    fill: float  # what is buffered and what the source has collected since it last sent; samples
    wanted: int
    played: int
    dropped: int
    correction: float  # ppm
    target: int


def on_time(n: int) -> float:
    return 0.0


@dataclass
class Machine:
    """How it behaves: what a source sends at once, how late that arrives, when nothing runs."""

    ppm: float = 0.0  # how much faster the source's clock is
    packet: int = 480
    quantum: int = 256
    late: Callable[[int], float] = on_time  # milliseconds, of the n-th packet
    is_lost: Callable[[int], bool] = lambda n: False
    stalls: tuple[tuple[float, float], ...] = ()  # from, to: nothing arrives; the server runs on


class Simulation:
    def __init__(self, ffi: FFI, c: SimpleNamespace, machine: Machine) -> None:
        self.c, self.machine = c, machine
        self.rate: Any = ffi.new("struct rate *")
        c.rate_init(self.rate)
        self.ms = 0.0
        self._buffered = 0
        self._last = 0.0
        self._rest = 0.0
        self._arrivals = self._arrive()
        self._next = next(self._arrivals)

    def _arrive(self) -> Iterator[tuple[float, int]]:
        """When packets arrive, in order: one that is late holds up those behind it."""
        machine = self.machine
        n, latest = 0, 0.0
        while True:
            n += 1
            ms = n * machine.packet / PER_MS / (1 + machine.ppm / 1e6) + machine.late(n)
            for begin, end in machine.stalls:
                ms = end if begin <= ms < end else ms
            latest = max(latest, ms)
            if not machine.is_lost(n):
                yield latest, machine.packet

    def cycle(self) -> Cycle:
        while self._next[0] <= self.ms:
            self._last = self._next[0]
            self._buffered += self._next[1]
            self._next = next(self._arrivals)
        exact = self.machine.quantum * self.c.rate_correction(self.rate) + self._rest
        wanted = int(exact)
        self._rest = exact - wanted
        age = int((self.ms - self._last) * PER_MS)
        before = self._buffered
        step = self.c.rate_cycle(self.rate, wanted, before, age)
        assert step.drop + step.play <= before
        assert step.play <= wanted
        self._buffered -= step.drop + step.play
        seen = Cycle(
            ms=self.ms,
            fill=before - step.drop + min(age, self.machine.packet),
            wanted=wanted,
            played=step.play,
            dropped=step.drop,
            correction=(self.c.rate_correction(self.rate) - 1) * 1e6,
            target=self.c.rate_target(self.rate),
        )
        self.ms += self.machine.quantum / PER_MS
        return seen

    def run(self, seconds: float) -> list[Cycle]:
        end = self.ms + seconds * 1000
        seen = []
        while self.ms < end:
            seen.append(self.cycle())
        return seen


def gaps(cycles: list[Cycle]) -> list[Cycle]:
    """Cycles that played silence."""
    return [each for each in cycles if each.played < each.wanted]
