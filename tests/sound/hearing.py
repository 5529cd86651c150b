"""Hears whether a known tone is in a recording, without hardware and without libraries.

One window over a whole recording would miss it: a target adapts its rate to the source's, which
shifts the tone's phase, and over a second the parts cancel out. Blocks of 20 ms are short enough,
and long enough to tell 1000 Hz from 750 Hz.
"""

from __future__ import annotations

import array
import contextlib
import math
import os
import select
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from pedos_dom0.local.sound_server import MICROPHONE, MICROPHONE_INPUT

from tests.patience import PATIENCE
from tests.sound.servers import Server

RATE = 48000  # Hz
BLOCK = RATE // 50
TONE = 1000  # Hz; a whole number of periods in a block, as all multiples of 50 Hz are
LEVEL = 0.2  # of full scale
# A tone of LEVEL came through every pair of servers with 0.19. Other tones leak below 0.002 into
# its blocks, and digital silence is 0.
HEARD = 0.15
SILENT = 0.003
# Part of the blocks that must have the tone: a busy machine without real-time priority loses some.
BLOCKS_HEARD = 0.9

FORMAT = ("--raw", f"--rate={RATE}", "--channels=1", "--format=s16le")


def tone(seconds: float, frequency: int = TONE, level: float = LEVEL) -> bytes:
    """A sine as s16le mono; `frequency` is a whole number of Hz."""
    one_second = array.array(
        "h",
        (round(32767 * level * math.sin(2 * math.pi * frequency * n / RATE)) for n in range(RATE)),
    ).tobytes()
    whole = one_second * math.ceil(seconds)
    return whole[: 2 * round(seconds * RATE)]


def loudness(block: array.array[int], frequency: int = TONE) -> float:
    """Goertzel: the amplitude of `frequency` in the block, 1 is full scale."""
    coefficient = 2 * math.cos(2 * math.pi * frequency / RATE)
    before = last = 0.0
    for sample in block:
        before, last = last, sample + coefficient * last - before
    power = last * last + before * before - coefficient * last * before
    return 2 * math.sqrt(max(power, 0.0)) / len(block) / 32768


def blocks(recording: bytes, frequency: int = TONE) -> list[float]:
    """The loudness of each whole block of 20 ms."""
    samples = array.array("h", recording[: len(recording) // 2 * 2])
    return [
        loudness(samples[start : start + BLOCK], frequency)
        for start in range(0, len(samples) - BLOCK + 1, BLOCK)
    ]


def has_tone(recording: bytes, frequency: int = TONE) -> bool:
    """The tone is there all the time, apart from a tenth."""
    levels = blocks(recording, frequency)
    return len([level for level in levels if level >= HEARD]) >= BLOCKS_HEARD * len(levels) > 0


def is_silent(recording: bytes, frequency: int = TONE) -> bool:
    """Nothing of the tone is in any block of it."""
    levels = blocks(recording, frequency)
    return bool(levels) and max(levels) <= SILENT


@contextlib.contextmanager
def playing(
    server: Server, folder: Path, frequency: int = TONE, sink: str = MICROPHONE_INPUT
) -> Iterator[None]:
    """Plays a tone meanwhile, as if somebody spoke into the server's microphone."""
    file = folder / f"tone-{frequency}.raw"
    if not file.exists():
        file.write_bytes(tone(PATIENCE, frequency))
    command = ["pacat", "--playback", *FORMAT, f"--device={sink}", "--latency-msec=40", str(file)]
    player = subprocess.Popen(command, env=server.environment(), stderr=subprocess.PIPE)
    with player:
        try:
            server.wait_until(
                lambda: any(each["pid"] == player.pid for each in server.playing()),
                "the tone is played",
            )
            yield
        finally:
            player.kill()


class Recorder:
    """A program that records, as any user of a VM runs one. It ends with its `with`."""

    def __init__(self, server: Server, source: str = MICROPHONE) -> None:
        self.server = server
        command = ["parec", *FORMAT, f"--device={source}", "--latency-msec=10"]
        self._child = subprocess.Popen(
            command, env=server.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        self._child.kill()
        self._child.communicate()

    @property
    def pid(self) -> int:
        return self._child.pid

    def hear(self, seconds: float) -> bytes:
        """What comes from now on, that long. The samples are the clock: nothing sleeps here."""
        self.drop()
        return self.more(seconds)

    def more(self, seconds: float) -> bytes:
        """What follows what was heard last, that long."""
        return self._read(2 * round(seconds * RATE))

    def drop(self) -> None:
        """Forgets what has come so far."""
        assert self._child.stdout is not None
        fd = self._child.stdout.fileno()
        while select.select([fd], [], [], 0)[0]:
            if not os.read(fd, 1 << 16):
                break

    def until(self, what: str, heard: Callable[[bytes], bool]) -> None:
        """Returns once a quarter of a second satisfies `heard` (has_tone, is_silent). Tests ask for
        no more: without real-time priority, servers on a busy machine lose what they play."""
        deadline = time.monotonic() + PATIENCE
        while not heard(recording := self.hear(0.25)):
            levels = [f"{level:.3f}" for level in blocks(recording)]
            assert time.monotonic() < deadline, f"never: {what}; at last {levels}"

    def _read(self, size: int) -> bytes:
        assert self._child.stdout is not None
        fd = self._child.stdout.fileno()
        deadline = time.monotonic() + PATIENCE
        got = bytearray()
        while len(got) < size:
            ready = select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0]
            assert ready, f"the recorder got {len(got)} of {size} bytes in {PATIENCE} s"
            data = os.read(fd, size - len(got))
            if not data:
                said = self._child.stderr.read().decode() if self._child.stderr else ""
                raise AssertionError(f"the recorder ended after {len(got)} bytes: {said}")
            got += data
        return bytes(got)


def record(server: Server, seconds: float, source: str = MICROPHONE) -> bytes:
    """What a program hears that records that long."""
    with Recorder(server, source) as recorder:
        return recorder.hear(seconds)
