"""Runs every benchmark and prints the table: `python -m benchmarks [--json FILE] [GATE...]`."""

from __future__ import annotations

import argparse
import importlib
import json
import platform
import sys
import time
from pathlib import Path

from .row import Row, as_table

# One module a group of gates; each has `measure() -> list[Row]`.
MODULES = {
    "U1": "start_up",
    "C1": "concurrent_calls",
    "C2": "peer_death",
    "L1": "round_trip",
}


def machine() -> dict[str, str]:
    """What the figures were measured on; a figure without this means little."""
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
    parser.add_argument("gates", nargs="*", metavar="GATE", help=f"of {', '.join(MODULES)}")
    arguments = parser.parse_args()
    unknown = set(arguments.gates) - set(MODULES)
    if unknown:
        parser.error(f"no gate named {', '.join(sorted(unknown))}; there are {', '.join(MODULES)}")
    rows: list[Row] = []
    for gate in arguments.gates or MODULES:
        module = importlib.import_module(f"benchmarks.{MODULES[gate]}")
        print(f"measuring {gate} ...", file=sys.stderr)
        rows += module.measure()
    where = machine()
    print(", ".join(where.values()))
    print(as_table(rows))
    if arguments.json:
        kept = [{**vars(row), "holds": row.holds} for row in rows]
        Path(arguments.json).write_text(json.dumps({"machine": where, "rows": kept}, indent=2))
    return 0 if all(row.holds for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
