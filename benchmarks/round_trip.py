"""L1, L2, L3: one call in flight through the whole stack, against the alternatives.

All on one core, in turn and five times; a figure is the ratio of the medians. L1 is against 64
bytes back and forth over a Unix socket in C; L2 against the same calls over a trio socket stream;
L3 against gRPC over a Unix socket and D-Bus through a bus of its own.
"""

from __future__ import annotations

from .contenders import DBUS, GRPC, OVER_SOCKET, STACK, c_unix_socket
from .processes import compiled, pinned
from .row import Row, medians_in_turn

TRIPS_C = 20_000
CALLS = 3_000  # through the stack and its like: a third of a second
CALLS_GRPC = 1_000  # the same time again


def measure() -> list[Row]:
    with compiled("unix_pingpong.c") as program, pinned() as core:
        medians = medians_in_turn(
            {
                "stack": lambda: STACK(1, CALLS),
                "c_unix_socket": lambda: c_unix_socket(program, core, core, TRIPS_C),
                "trio_socket": lambda: OVER_SOCKET(1, CALLS),
                "grpc_aio": lambda: GRPC(1, CALLS_GRPC),
                "dbus": lambda: DBUS(1, CALLS),
            }
        )
    rows = []
    for gate, whom, peer, limit in (
        ("L1", "a C Unix socket", "c_unix_socket", 6),
        ("L2", "the same over trio sockets", "trio_socket", 0.6),
        ("L3", "grpc.aio over a Unix socket", "grpc_aio", 0.15),
        ("L3", "D-Bus", "dbus", 0.35),
    ):
        detail = {f"{name}_us": medians[name] * 1e6 for name in ("stack", peer)}
        figure = medians["stack"] / medians[peer]
        rows.append(Row(gate, f"round trip of a call, against {whom}", figure, limit, "x", detail))
    return rows
