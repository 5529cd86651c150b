"""L4 and L5: the ring alone, in C, against a Unix socket and the real libxenvchan.

L4 is on one core. libxenvchan is Debian's, on the stand-in Xen of the interop tests; there it is
compared with our ring on the same stand-in, so that an event costs both the same. L5 is across two
cores, through the channel as the product has it.
"""

from __future__ import annotations

from pathlib import Path

from .contenders import c_unix_socket
from .processes import CSRC, ROOT, compiled, cores, output_of, pinned
from .row import Row, medians_in_turn

TRIPS = 50_000
TRIPS_ACROSS = 5_000  # waking the other core costs ten times as much
INTEROP = ROOT / "tests" / "interop"
RING = [CSRC / f"{name}.c" for name in ("ring", "halt_poll", "channel", "shm")]


def ring_seconds(program: Path, kind: str, core: int, other: int, trips: int) -> float:
    """Seconds per round trip of 64 bytes over our ring, in C; ring_pingpong.c defines `kind`."""
    return int(output_of([program, kind, str(core), str(other), str(trips)])) / 1e9


def _one_core() -> list[Row]:
    xen = [INTEROP / "standin.c", INTEROP / "attach.c", *RING[:-1], f"-I{INTEROP}"]
    with (
        compiled("unix_pingpong.c") as unix,
        compiled("ring_pingpong.c", more=RING) as ring,
        # The stand-ins must come before the libraries' own functions.
        compiled("xen_pingpong.c", more=["-rdynamic", *xen, "-lxenvchan", "-pthread"]) as foreign,
        pinned() as core,
    ):

        def xen_seconds(kind: str) -> float:
            return int(output_of([foreign, kind, str(core), str(TRIPS)])) / 1e9

        medians = medians_in_turn(
            {
                "ring": lambda: ring_seconds(ring, "ring", core, core, TRIPS),
                "channel": lambda: ring_seconds(ring, "channel", core, core, TRIPS),
                "c_unix_socket": lambda: c_unix_socket(unix, core, core, TRIPS),
                "ring_on_xen": lambda: xen_seconds("ours"),
                "libxenvchan": lambda: xen_seconds("libxenvchan"),
            }
        )
    detail = {f"{name}_us": seconds * 1e6 for name, seconds in medians.items()}
    return [
        Row(
            "L4",
            f"the ring alone in C, against {whom}",
            medians[a] / medians[b],
            limit,
            "x",
            detail,
        )
        for whom, a, b, limit in (
            ("a C Unix socket", "ring", "c_unix_socket", 0.55),
            ("the real libxenvchan", "ring_on_xen", "libxenvchan", 1.1),
        )
    ]


def _two_cores() -> list[Row]:
    """Where patience pays, across two cores, and where it does not: on one core, the peer cannot
    answer while this end polls."""
    here, there = cores()
    with compiled("unix_pingpong.c") as unix, compiled("ring_pingpong.c", more=RING) as ring:
        medians = medians_in_turn(
            {
                "patient": lambda: ring_seconds(ring, "patient", here, there, TRIPS_ACROSS),
                "c_unix_socket": lambda: c_unix_socket(unix, here, there, TRIPS_ACROSS),
                "patient_on_one": lambda: ring_seconds(ring, "patient", here, here, TRIPS),
                "asleep_on_one": lambda: ring_seconds(ring, "channel", here, here, TRIPS),
            }
        )
    return [
        Row(
            "L5",
            what,
            medians[ours] / medians[other],
            limit,
            "x",
            {f"{name}_us": seconds * 1e6 for name, seconds in medians.items()},
        )
        for what, ours, other, limit in (
            (
                "the channel in C across two cores, against a C Unix socket",
                "patient",
                "c_unix_socket",
                0.3,
            ),
            ("looking again where it does not pay", "patient_on_one", "asleep_on_one", 1.1),
        )
    ]


def measure() -> list[Row]:
    return _one_core() + _two_cores()
