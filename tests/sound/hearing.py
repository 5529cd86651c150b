"""Hears whether a known tone is in a recording, without hardware and without libraries."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from pedos_dom0.local.sound_server import MICROPHONE, MICROPHONE_INPUT

from tests.patience import PATIENCE
from tests.sound.servers import Server
from tests.sound.tones import LEVEL, RATE, TONE, blocks, loudness, tone

__all__ = [
    "LEVEL",
    "RATE",
    "TONE",
    "Recorder",
    "blocks",
    "has_tone",
    "is_silent",
    "loudness",
    "playing",
    "record",
    "tone",
]

# A tone of LEVEL came through every pair of servers with 0.19. Other tones leak below 0.002 into
# its blocks, and digital silence is 0.
HEARD = 0.15
SILENT = 0.003
# Part of the blocks that must have the tone: a busy machine without real-time priority loses some.
BLOCKS_HEARD = 0.9

FORMAT = ("--raw", f"--rate={RATE}", "--channels=1", "--format=s16le")


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
    server.has_room()
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
        server.has_room()
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
