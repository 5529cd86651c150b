"""Makes tones, and measures them in what was recorded: s16le, mono.

The guests of the emulated Xen have this file as well (tests/xen/inside/tone.py), so it imports
nothing of the project.

One window over a whole recording would miss a tone: a target adapts its rate to the source's, which
shifts the tone's phase, and over a second the parts cancel out. Blocks of 20 ms are short enough,
and long enough to tell 1000 Hz from 750 Hz.
"""

from __future__ import annotations

import array
import math

RATE = 48000  # Hz
BLOCK = RATE // 50
TONE = 1000  # Hz; a whole number of periods in a block, as all multiples of 50 Hz are
LEVEL = 0.2  # of full scale


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
