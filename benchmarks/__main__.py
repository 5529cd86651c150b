"""Runs the benchmarks and prints the table; ends with 1 if a gate was missed."""

from __future__ import annotations

import argparse
import importlib
import json
import platform
import sys
import time
import traceback
from pathlib import Path

from .effort import FULL, choose
from .row import Row, as_table

# The module that measures a gate, with `measure() -> list[Row]`; several gates share one.
MODULES = {
    "U1": "start_up",
    "C1": "concurrent_calls",
    "C2": "peer_death",
    "L1": "round_trip",
    "L2": "round_trip",
    "L3": "round_trip",
    "L4": "ring_alone",
    "L5": "ring_alone",
    "T1": "throughput",
    "B1": "bulk",
    "B2": "bulk",
    "B3": "lateness",
    "M1": "memory",
    "P1": "policy",
    "R6": "rpc_pump",
    "R7": "rpc_pump",
    "R8": "rpc_pump",
    "fair": "fairness",
    "L6": "soak",  # and the drift of M1
    "sound": "sound",
    "widget": "widget",
    "scale": "scale",  # and the service's drift
    "R1": "rpc",
    "R3": "rpc",
    "R4": "rpc",
    "R5": "rpc",
    "R9": "rpc",
    "R11": "rpc",
    "R14": "rpc",
}
# All gates of calls of services by one name.
GROUPS = {"rpc": [gate for gate in MODULES if gate.startswith("R")]}


def machine() -> dict[str, str]:
    """The machine of the figures, without which they mean little."""
    model = "unknown processor"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return {
        "date": time.strftime("%Y-%m-%d"),
        "kernel": platform.release(),
        "processor": model,
        "python": platform.python_version(),
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--json", metavar="FILE", help="keep the figures in FILE")
    parser.add_argument(
        "--svg", metavar="DIR", help="measure for the plots as well; they and the table into DIR"
    )
    parser.add_argument(
        "--full", action="store_true", help="as many calls and reconnections as the gates name"
    )
    known = ", ".join((*MODULES, *GROUPS))
    parser.add_argument("gates", nargs="*", metavar="GATE", help=f"of {known}")
    arguments = parser.parse_args()
    wanted = [gate for named in arguments.gates for gate in GROUPS.get(named, [named])]
    unknown = set(wanted) - set(MODULES)
    if unknown:
        parser.error(f"no gate named {', '.join(sorted(unknown))}; there are {known}")
    if arguments.full:
        choose(FULL)
    rows: list[Row] = []
    failed: list[str] = []
    for name in dict.fromkeys(MODULES[gate] for gate in wanted or MODULES):
        module = importlib.import_module(f"benchmarks.{name}")
        gates = [gate for gate, measured_in in MODULES.items() if measured_in == name]
        print(f"measuring {', '.join(gates)} ...", file=sys.stderr)
        try:
            rows += module.measure()
        except Exception:  # the others are still worth measuring; this counts as a failure below
            traceback.print_exc()
            failed += gates
    where = machine()
    table = f"{', '.join(where.values())}\n{as_table(rows)}\n"
    print(table, end="")
    if arguments.json:
        kept = [{**vars(row), "holds": row.holds} for row in rows]
        Path(arguments.json).write_text(json.dumps({"machine": where, "rows": kept}, indent=2))
    if arguments.svg:
        print("measuring for the plots ...", file=sys.stderr)
        plots = importlib.import_module("benchmarks.plots")
        plots.draw(Path(arguments.svg), f"{where['processor']}, {where['date']}")
        (Path(arguments.svg) / "table.txt").write_text(table)
    if failed:
        print(f"could not be measured, see above: {', '.join(failed)}", file=sys.stderr)
    return 0 if all(row.holds for row in rows) and not failed else 1


if __name__ == "__main__":
    sys.exit(main())
