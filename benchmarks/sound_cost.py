"""What pedos-sound costs, and what listeners lose when a third one stands still."""

from __future__ import annotations

import cmath
import itertools
import math
import statistics
import time
from array import array
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.sound.hearing import Recorder, has_tone, playing
from tests.sound.house import stopped
from tests.sound.tones import BLOCK, RATE

from .processes import processor_seconds
from .row import Row
from .sound_pairs import HEAR, SPEAK, THIRD, Pairs

# Percent of a core.
RECORDING_MOST, IDLE_MOST = 2.0, 0.1
# The kernel counts a process's time in nanoseconds: long enough for what comes once a second.
RECORDING_S, IDLE_S = 5.0, 10.0
# What a stopped listener took from others it would take each time; what else runs here does not.
LISTENING_S, LISTENING_ROUNDS = 2.0, 15

# No frame of 10 ms has a whole number of its periods: one that is lost turns the phase by 47
# degrees. Rate matching turns it too, but by less than a degree from block to block.
PILOT = 1013
TURN = math.radians(15)


def turns(recording: bytes) -> int:
    """How often samples of the pilot are lost or inserted in it."""
    samples = array("h", recording)
    phases = []
    for start in range(0, len(samples) - BLOCK + 1, BLOCK):
        total = sum(
            sample * cmath.exp(-2j * math.pi * PILOT * (start + n) / RATE)
            for n, sample in enumerate(samples[start : start + BLOCK])
        )
        phases.append(cmath.phase(total))
    steps = [
        math.remainder(after - before, 2 * math.pi) for before, after in itertools.pairwise(phases)
    ]
    usual = statistics.median(steps)
    spells, in_spell = 0, False
    for step in steps:
        turned = abs(math.remainder(step - usual, 2 * math.pi)) > TURN
        spells += turned and not in_spell
        in_spell = turned
    return spells


def _percent(pid: int, seconds: float) -> float:
    before, start = processor_seconds(pid), time.monotonic()
    time.sleep(seconds)
    return 100 * (processor_seconds(pid) - before) / (time.monotonic() - start)


def cost(pairs: Pairs, folder: Path) -> list[Row]:
    """Percent of a core, of the source and of each kind of target."""
    house, rows = pairs.house, []
    speaker = house.speaker(SPEAK["PipeWire"])
    rows.append(
        Row("sound", "pedos-sound with nothing lent", _percent(speaker, IDLE_S), IDLE_MOST, "%")
    )
    source = SPEAK["PipeWire"]
    names = {vm: house.lend(source, vm) for vm in HEAR.values()}
    lent = _percent(speaker, IDLE_S)
    rows.append(Row("sound", "pedos-sound lent to two that do not record", lent, IDLE_MOST, "%"))
    with playing(house.server(source), folder):
        recorders = [Recorder(house.server(vm), name) for vm, name in names.items()]
        try:
            for recorder in recorders:
                recorder.until("the tone is heard", has_tone)
            for what, vm in {"source of two": source, **HEAR}.items():
                spent = _drained(house.speaker(vm), recorders, RECORDING_S)
                row = f"pedos-sound while recorded, {what} ({pairs.how})"
                rows.append(Row("sound", row, spent, RECORDING_MOST, "%"))
        finally:
            for recorder in recorders:
                recorder.__exit__()
    for vm in names:
        house.take_back(source, vm)
    return rows


def _drained(pid: int, recorders: list[Recorder], seconds: float) -> float:
    """As `_percent`, while the recorders' pipes are emptied, because a full one stops its server's
    stream."""
    before, start = processor_seconds(pid), time.monotonic()
    while time.monotonic() - start < seconds:
        for recorder in recorders:
            recorder.hear(0.1)
    return 100 * (processor_seconds(pid) - before) / (time.monotonic() - start)


def third(pairs: Pairs, folder: Path) -> list[Row]:
    """Jumps in what two hear, beyond those of a program that records at the source itself, while a
    third listener's pedos-sound stands still."""
    house, source = pairs.house, SPEAK["PipeWire"]
    listeners = (*HEAR.values(), THIRD)
    names = {vm: house.lend(source, vm) for vm in listeners}
    server = house.server(source)
    with playing(server, folder, PILOT), Recorder(server) as reference:
        recorders = {vm: Recorder(house.server(vm), name) for vm, name in names.items()}
        try:
            for recorder in recorders.values():
                recorder.until("the tone is heard", lambda heard: has_tone(heard, PILOT))
            two = {vm: recorders[vm] for vm in HEAR.values()}
            with stopped(house.speaker(THIRD)):
                rounds = [_lost(reference, two)]
                while any(rounds[-1].values()) and len(rounds) < LISTENING_ROUNDS:
                    rounds.append(_lost(reference, two))
        finally:
            for recorder in recorders.values():
                recorder.__exit__()
    for vm in names:
        house.take_back(source, vm)
    return [
        Row(
            "sound",
            f"lost in {LISTENING_S:.0f} s beside a stopped listener, {kind} ({pairs.how})",
            min(lost[vm] for lost in rounds),
            0,
            "times",
            {"rounds": len(rounds), "most": max(lost[vm] for lost in rounds)},
        )
        for kind, vm in HEAR.items()
    ]


def _lost(reference: Recorder, listeners: dict[str, Recorder]) -> dict[str, int]:
    """How often each lost samples that the source's own recorder did not lose."""
    direct, heard = bytearray(), {vm: bytearray() for vm in listeners}
    for recorder in (reference, *listeners.values()):
        recorder.drop()
    for _ in range(round(LISTENING_S / 0.1)):
        direct += reference.more(0.1)
        for vm, recorder in listeners.items():
            heard[vm] += recorder.more(0.1)
    own = turns(bytes(direct))
    return {vm: max(0, turns(bytes(recording)) - own) for vm, recording in heard.items()}


def measure(pairs: Pairs) -> list[Row]:
    with TemporaryDirectory(prefix="sound-") as folder:
        return [*third(pairs, Path(folder)), *cost(pairs, Path(folder))]
