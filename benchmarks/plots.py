"""The two plots of the documentation, as hand-written SVG: a few lines and their labels.

`latency.svg`: the time of a call against the calls in flight, for our stack and the alternatives.
`ring-size.svg`: bulk speed through the pump against the size of the ring.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

from .bulk import pump_speed
from .contenders import DBUS, GRPC, PROTOCOLS, STACK
from .processes import pinned
from .row import medians_in_turn

IN_FLIGHT = (1, 2, 4, 8, 16, 32, 64, 128)
CALLS = {"this project": 4_000, "grpc.aio": 1_000, "D-Bus": 3_000, "asyncio protocols": 8_000}
ORDERS = range(12, 21)

WIDTH, HEIGHT = 640, 360
LEFT, RIGHT, TOP, BOTTOM = 70, 150, 40, 50
# Colours that colour-blind readers can tell apart, on light and dark pages alike.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")

Points = Sequence[tuple[float, float]]


def _ticks(low: float, high: float, base: int) -> list[float]:
    first, last = math.floor(math.log(low, base)), math.ceil(math.log(high, base))
    return [float(base) ** power for power in range(first, last + 1)]


def _short(value: float) -> str:
    for size, unit in ((2**20, "Mi"), (2**10, "Ki")):
        if value >= size and value % size == 0:
            return f"{value / size:g} {unit}"
    return f"{value:g}"


def chart(title: str, across: str, up: str, lines: Mapping[str, Points]) -> str:
    """A chart with both axes logarithmic, across by powers of two and up by powers of ten."""
    every = [point for points in lines.values() for point in points]
    xs = _ticks(min(x for x, _ in every), max(x for x, _ in every), 2)
    ys = _ticks(min(y for _, y in every), max(y for _, y in every), 10)

    def place(value: float, ticks: list[float], start: float, end: float) -> float:
        share = math.log(value / ticks[0]) / math.log(ticks[-1] / ticks[0])
        return round(start + share * (end - start), 1)

    def x_of(value: float) -> float:
        return place(value, xs, LEFT, WIDTH - RIGHT)

    def y_of(value: float) -> float:
        return place(value, ys, HEIGHT - BOTTOM, TOP)

    middle = (LEFT + WIDTH - RIGHT) / 2
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{middle}" y="20" text-anchor="middle" font-size="14">{escape(title)}</text>',
        f'<text x="{middle}" y="{HEIGHT - 12}" text-anchor="middle">{escape(across)}</text>',
        f'<text transform="translate(16 {HEIGHT / 2}) rotate(-90)" text-anchor="middle">'
        f"{escape(up)}</text>",
    ]
    for x in xs:
        at = x_of(x)
        parts.append(f'<path d="M{at} {TOP}V{HEIGHT - BOTTOM}" stroke="#ddd"/>')
        parts.append(
            f'<text x="{at}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{_short(x)}</text>'
        )
    for y in ys:
        at = y_of(y)
        parts.append(f'<path d="M{LEFT} {at}H{WIDTH - RIGHT}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{at + 4}" text-anchor="end">{y:g}</text>')
    for number, (name, points) in enumerate(lines.items()):
        colour = COLOURS[number % len(COLOURS)]
        path = "L".join(f"{x_of(x)} {y_of(y)}" for x, y in points)
        parts.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [
            f'<circle cx="{x_of(x)}" cy="{y_of(y)}" r="3" fill="{colour}"/>' for x, y in points
        ]
        row = TOP + 20 + 20 * number
        parts.append(f'<circle cx="{WIDTH - RIGHT + 16}" cy="{row - 4}" r="4" fill="{colour}"/>')
        parts.append(f'<text x="{WIDTH - RIGHT + 26}" y="{row}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _latencies() -> dict[str, list[tuple[float, float]]]:
    contenders = dict(zip(CALLS, (STACK, GRPC, DBUS, PROTOCOLS), strict=True))
    lines: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    for count in IN_FLIGHT:
        for name, contender in contenders.items():
            # With so many in flight all the time, a call takes so many times its share.
            lines[name].append((count, contender(count, CALLS[name]) * count * 1e6))
    return lines


def _ring_speeds() -> list[tuple[float, float]]:
    def at(order: int) -> Callable[[], float]:
        return lambda: pump_speed(order)

    medians = medians_in_turn({str(order): at(order) for order in ORDERS})
    return [(float(2 ** int(order)), speed / 1e9) for order, speed in medians.items()]


def draw(folder: Path, machine: str) -> None:
    """Measures for both plots and writes them into folder, which is made if necessary."""
    folder.mkdir(parents=True, exist_ok=True)
    with pinned():
        latencies, speeds = _latencies(), _ring_speeds()
    title = f"Time of a call, one core ({machine})"
    latency = chart(title, "calls in flight", "microseconds", latencies)
    (folder / "latency.svg").write_text(latency)
    title = f"Bulk through the pump, one core ({machine})"
    ring = chart(title, "bytes of ring", "GB/s", {"pump": speeds})
    (folder / "ring-size.svg").write_text(ring)
