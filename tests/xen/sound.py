"""Sessions with sound in guests: a microphone that is one only by name, and what is heard of it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from .driving import wait_until
from .image import USER_ID

if TYPE_CHECKING:
    from .bench import Bench, Result

SOURCE, TARGET = "sys-usb", "work"
#: What that microphone hears is what is played into this; it is no monitor, which is never lent.
SPEAKER, MICROPHONE = "fakesink", "fakemic"
#: The recording device of the target (docs/mic.md).
BORROWED = f"pedos_mic.{SOURCE}"
LOG_IN_LIMIT = 240.0  # seconds; a session starts a dozen programs
#: Samples that are handled at once: each time costs a domain of the bench milliseconds, whatever
#: programs ask for.
QUANTUM = 2048
#: The recorder's and the player's own buffers, for the same reason.
LATENCY_MS = 200
RAW = "--raw --format=s16le --rate=48000 --channels=1"

#: Prints a line for each stream that records from that microphone. (What leads into it is another.)
RECORDERS = (
    f"id=$(in-session pactl list short sources | awk '$2 == \"{MICROPHONE}\" {{print $1}}'); "
    "in-session pactl list short source-outputs | awk -v id=${id:-none} '$2 == id'"
)


def log_in(bench: Bench, guest: str) -> None:
    """The user's session runs there, as after a login, and programs can play and record."""
    begin = (
        f"systemctl start user@{USER_ID}.service && until in-session pactl info; do sleep 1; done"
    )
    slow = f"in-session pw-metadata -n settings 0 clock.force-quantum {QUANTUM}"
    bench.run(guest, f"({begin}; {slow}) > /dev/null 2>&1", limit=LOG_IN_LIMIT).check()


def log_out(bench: Bench, guest: str) -> None:
    """Ends the session with everything in it."""
    bench.run(guest, f"systemctl stop user@{USER_ID}.service").check()


def plug_microphone(bench: Bench, guest: str = SOURCE) -> None:
    """The user's microphone, which is the one that programs record from there."""
    bench.run(
        guest,
        f"in-session pactl load-module module-null-sink sink_name={SPEAKER} rate=48000 channels=1 "
        f"channel_map=mono && in-session pactl load-module module-remap-source "
        f"source_name={MICROPHONE} master={SPEAKER}.monitor channels=1 channel_map=mono && "
        f"in-session pactl set-default-source {MICROPHONE}",
    ).check()


def speak(bench: Bench, hertz: int, seconds: float) -> None:
    """A tone goes into the microphone when this returns, and so long, if nobody stops it."""
    play = f"in-session pacat --playback {RAW} --device={SPEAKER} --latency-msec={LATENCY_MS}"
    playing = "in-session pactl list short sink-inputs | grep -q ."
    bench.run(
        SOURCE,
        f"(bench-tone play {hertz} {seconds:g} | {play}) > /dev/null 2>&1 & "
        f"until {playing}; do sleep 0.5; done; sleep 2",
    ).check()


def hear(
    bench: Bench, seconds: float, *tones: int, device: str = BORROWED, guest: str = TARGET
) -> dict[int, list[float]]:
    """How loud each tone is in each 20 ms of a recording of so long: see inside/tone.py."""
    record = f"in-session parec {RAW} --device={device} --latency-msec={LATENCY_MS}"
    words = " ".join(str(tone) for tone in tones)
    said = bench.run(guest, f"timeout {seconds:g} {record} | bench-tone hear {words}").check()
    return {int(tone): loud for tone, loud in json.loads(said).items()}


def recorders(bench: Bench) -> str:
    """The streams that record from the microphone now; empty if it is open for nobody."""
    return bench.run(SOURCE, RECORDERS).check()


def when_somebody_records(bench: Bench) -> None:
    """Returns when the microphone is open."""
    wait_until(bench, SOURCE, f'[ "$({RECORDERS})" ]')


def when_nobody_records(bench: Bench) -> None:
    """Returns when it is not."""
    wait_until(bench, SOURCE, f'[ -z "$({RECORDERS})" ]')


def sources(bench: Bench, guest: str = TARGET) -> set[str]:
    """The recording devices there, by name."""
    listed = bench.run(guest, "in-session pactl list short sources").check()
    return {line.split("\t")[1] for line in listed.splitlines()}


def attach(bench: Bench, device: str = f"{SOURCE}:mic", vm: str = TARGET) -> Result:
    """Returns when the target's session has the recording device."""
    said = bench.run("dom0", f"qvm-device mic attach {vm} {device}")
    if said.status == 0:
        wait_until(bench, vm, f"in-session pactl list short sources | grep -q {BORROWED}")
    return said
