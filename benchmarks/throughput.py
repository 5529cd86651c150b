"""T1: calls per second with 32 in flight, all on one core, against gRPC, D-Bus and bare asyncio.

The processor time of a call is a row for information: unlike elapsed time, it is much the same on a
busy machine.
"""

from __future__ import annotations

from .contenders import DBUS, GRPC, PROTOCOLS, STACK
from .processes import pinned
from .row import Row, medians_in_turn
from .two_processes import processor_seconds_per_call

IN_FLIGHT = 32
CALLS = 8_000
CALLS_GRPC = 1_600  # about the same time


def measure() -> list[Row]:
    with pinned():
        medians = medians_in_turn(
            {
                "stack": lambda: STACK(IN_FLIGHT, CALLS),
                "grpc_aio": lambda: GRPC(IN_FLIGHT, CALLS_GRPC),
                "dbus": lambda: DBUS(IN_FLIGHT, CALLS),
                "asyncio_protocols": lambda: PROTOCOLS(IN_FLIGHT, CALLS),
                "processor": lambda: processor_seconds_per_call(IN_FLIGHT, CALLS),
            }
        )
    microseconds = medians["processor"] * 1e6
    what = f"processor time of a call, {IN_FLIGHT} in flight, both ends"
    return [Row("T1", what, microseconds, None, "us")] + [
        Row(
            "T1",
            f"calls per second, {IN_FLIGHT} in flight, against {whom}",
            medians[peer] / medians["stack"],
            limit,
            "x",
            {f"{name}_per_s": 1 / medians[name] for name in ("stack", peer)},
            at_least=True,
        )
        for whom, peer, limit in (
            ("grpc.aio", "grpc_aio", 10),
            ("D-Bus", "dbus", 3),
            ("asyncio protocols", "asyncio_protocols", 1),
        )
    ]
