"""When a sound reaches programs: bursts are played into a microphone, and recorders note them.

What a recorder has read says little about when it was there, because the reader may be late. But a
recording has one sample after the other, so the chunk that came with the least delay dates all that
are near it.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import math
import os
import select
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pedos_dom0.local.sound_server import MICROPHONE_INPUT

from tests.sound.hearing import FORMAT, RATE, tone
from tests.sound.servers import Server

BURST_S = 0.01
# Longer than any delay that could be meant for it: a burst belongs to the one before it.
EVERY_S = 0.3
LEVEL = 0.5
HEARD = 0.15  # of full scale; the resamplers of the servers hardly change LEVEL
# Ten seconds: a reader that is late must not stop a recorder, which loses samples then.
PIPE = 1 << 20
NEAR_S = 1.0  # at 1000 ppm, samples drift by 1 ms in that time


def bursts(seconds: float) -> bytes:
    """s16le mono: a burst of 1 kHz each EVERY_S."""
    one = tone(BURST_S, level=LEVEL)
    return (one + bytes(2 * round(EVERY_S * RATE) - len(one))) * math.ceil(seconds / EVERY_S)


@contextlib.contextmanager
def speaking(
    server: Server, folder: Path, seconds: float, prefix: tuple[str, ...] = ()
) -> Iterator[None]:
    """Bursts are played into the server's microphone meanwhile."""
    file = folder / f"bursts-{seconds:.0f}.raw"
    file.write_bytes(bursts(seconds))
    command = ["pacat", "--playback", *FORMAT, f"--device={MICROPHONE_INPUT}", "--latency-msec=40"]
    with subprocess.Popen([*prefix, *command, file], env=server.environment()) as player:
        try:
            yield
        finally:
            player.kill()


class Recording:
    """What one program records, and when its chunks were read."""

    def __init__(self, server: Server, source: str, prefix: tuple[str, ...]) -> None:
        command = [*prefix, "parec", *FORMAT, f"--device={source}", "--latency-msec=10"]
        self.child = subprocess.Popen(command, env=server.environment(), stdout=subprocess.PIPE)
        fcntl.fcntl(self.fileno(), fcntl.F_SETPIPE_SZ, PIPE)
        self.samples = array.array("h")
        self._chunks: list[tuple[float, int]] = []  # seconds, and samples up to then
        self._odd = b""

    def fileno(self) -> int:
        assert self.child.stdout is not None
        return self.child.stdout.fileno()

    def read(self) -> None:
        data = self._odd + os.read(self.fileno(), 1 << 16)
        now = time.monotonic()
        whole = len(data) // 2 * 2
        self._odd = data[whole:]
        self.samples.frombytes(data[:whole])
        self._chunks.append((now, len(self.samples)))

    def heard(self) -> list[float]:
        """When each burst began, in seconds of time.monotonic()."""
        threshold, step = round(HEARD * 32768), RATE // 1000
        quiet = round((EVERY_S - BURST_S) / 2 * RATE)
        found, last, n = [], -quiet, 0
        while n < len(self.samples):
            block = self.samples[n : n + step]
            if max(block) >= threshold:
                at = n + next(i for i, sample in enumerate(block) if sample >= threshold)
                if at - last >= quiet:
                    found.append(at)
                last = n + len(block)
            n += step
        return self._dated(found)

    def _dated(self, places: Sequence[int]) -> list[float]:
        dates, first = [], 0
        for place in places:
            while self._chunks[first][1] < place - NEAR_S * RATE:
                first += 1
            offset = math.inf
            for when, samples in self._chunks[first:]:
                if samples > place + NEAR_S * RATE:
                    break
                offset = min(offset, when - samples / RATE)
            dates.append(place / RATE + offset)
        return dates


@contextlib.contextmanager
def recording(
    sources: Mapping[str, tuple[Server, str]], prefix: tuple[str, ...] = ()
) -> Iterator[dict[str, Recording]]:
    """Recorders of these sources; each is a server and a name there."""
    recorders = {name: Recording(*source, prefix) for name, source in sources.items()}
    try:
        yield recorders
    finally:
        for each in recorders.values():
            each.child.kill()
            each.child.wait()


def record(recorders: Mapping[str, Recording], seconds: float) -> None:
    """Reads them all, that long."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        for each in select.select(list(recorders.values()), [], [], left)[0]:
            each.read()


def added(at_source: Sequence[float], at_target: Sequence[float]) -> list[tuple[float, float]]:
    """(when, milliseconds) for each burst that both have heard: how much later the target did."""
    found, j = [], 0
    for spoken in at_source:
        # The two recorders are dated to some milliseconds: nothing is heard before it is said.
        while j < len(at_target) and at_target[j] < spoken - EVERY_S / 6:
            j += 1
        if j < len(at_target) and at_target[j] < spoken + EVERY_S * 5 / 6:
            found.append((spoken, 1000 * (at_target[j] - spoken)))
    return found
