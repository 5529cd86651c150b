"""How much later a program in the target hears what one in the source hears, on each pair."""

from __future__ import annotations

import contextlib
import statistics
from pathlib import Path
from tempfile import TemporaryDirectory

from pedos_dom0.local.sound_server import MICROPHONE

from .row import Row
from .sound_listening import added, record, recording, speaking
from .sound_pairs import HEAR, PRIORITY, SPEAK, Pairs

MEDIAN_MOST, P95_MOST = 60.0, 80.0  # milliseconds
# At the beginning the streams start, which takes a second or two on a busy machine.
BEGINNING_S, LISTENING_S = 3.0, 20.0

Heard = dict[tuple[str, str], list[tuple[float, float]]]


def listen(running: Pairs, folder: Path, seconds: float) -> Heard:
    """(when, milliseconds later) of the bursts on each pair of servers, all pairs at once."""
    house = running.house
    names = {
        (source, target): house.lend(speaks, hears)
        for source, speaks in SPEAK.items()
        for target, hears in HEAR.items()
    }
    for (_, target), name in names.items():
        server = house.server(HEAR[target])
        server.wait_until(lambda at=server, name=name: name in at.sources(), "it is listed")
    taps = {source: (house.server(vm), MICROPHONE) for source, vm in SPEAK.items()}
    for (source, target), name in names.items():
        taps[f"{source} -> {target}"] = (house.server(HEAR[target]), name)
    prefix = ("chrt", "--rr", str(PRIORITY)) if running.realtime else ()
    with contextlib.ExitStack() as playing:
        for vm in SPEAK.values():
            # Longer than the recording, because it begins before it.
            length = BEGINNING_S + seconds + 60
            playing.enter_context(speaking(house.server(vm), folder, length, prefix))
        recorders = playing.enter_context(recording(taps, prefix))
        record(recorders, BEGINNING_S + seconds)
    for source, target in names:
        house.take_back(SPEAK[source], HEAR[target])
    dated = {name: each.heard() for name, each in recorders.items()}
    heard = {
        (source, target): added(dated[source], dated[f"{source} -> {target}"])
        for source, target in names
    }
    for pair, bursts in heard.items():
        if not bursts:
            raise RuntimeError(f"nothing was heard: {pair}")
        begin = bursts[0][0] + BEGINNING_S
        heard[pair] = [each for each in bursts if each[0] >= begin]
    return heard


def measure(running: Pairs) -> list[Row]:
    with TemporaryDirectory() as folder:
        heard = listen(running, Path(folder), LISTENING_S)
    rows = []
    for (source, target), bursts in heard.items():
        late = sorted(ms for _, ms in bursts)
        p95 = late[len(late) * 95 // 100]
        what, detail = f"{source} -> {target} ({running.how})", {"bursts": len(late)}
        median = statistics.median(late)
        rows.append(Row("sound", f"delay, median, {what}", median, MEDIAN_MOST, "ms", detail))
        rows.append(Row("sound", f"delay, 95 %, {what}", p95, P95_MOST, "ms", detail))
    return rows
