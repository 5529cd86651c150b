"""Whether the delay stays, on each pair of servers, when the source's clock is fast or slow."""

from __future__ import annotations

import contextlib
import statistics
import subprocess
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from .row import Row
from .sound_latency import listen
from .sound_pairs import Pairs

MOST = 5.0  # milliseconds between the first fifth and the last one
LISTENING_S = 60.0
RATES = {1000: 48048, -1000: 47952}  # samples a second of a source so many ppm off
HERE = Path(__file__).parent


@contextlib.contextmanager
def other_clock() -> Iterator[tuple[dict[str, str], Path]]:
    """The environment of a house whose microphones have a clock of their own, and the file that
    says its rate when a recording begins."""
    with TemporaryDirectory() as folder:
        preloaded, rate = Path(folder) / "sound_offset.so", Path(folder) / "rate"
        flags = ["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror"]
        source = HERE / "sound_offset.c"
        subprocess.run(["gcc", *flags, "-o", preloaded, source, "-lpulse", "-ldl"], check=True)
        rate.write_text("48000\n")
        yield {"LD_PRELOAD": str(preloaded), "PEDOS_SOUND_RATE_FILE": str(rate)}, rate


def measure(running: Pairs, rate: Path) -> list[Row]:
    rows = []
    for ppm, samples in RATES.items():
        rate.write_text(f"{samples}\n")
        with TemporaryDirectory() as folder:
            heard = listen(running, Path(folder), LISTENING_S)
        for (source, target), bursts in heard.items():
            late = [ms for _, ms in bursts]
            fifth = len(late) // 5
            first, last = statistics.median(late[:fifth]), statistics.median(late[-fifth:])
            rows.append(
                Row(
                    "sound",
                    f"drift, {ppm:+} ppm, {source} -> {target} ({running.how})",
                    abs(last - first),
                    MOST,
                    "ms",
                    {"first": first, "last": last, "bursts": len(late)},
                )
            )
    rate.write_text("48000\n")
    return rows
