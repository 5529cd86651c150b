"""Builds the explorer of interleavings; as a program, runs it at sizes that take minutes.

python -m tests.interleave.search
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.compiled import compile_c

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "native" / "csrc"

# JOB SIZE COUNT PIECE MOST, see explore.c: so small that all of them together take seconds.
SMALL = [
    "one 2 3 2 1",
    "one 2 6 1 2",
    "one 4 8 4 4",
    "one 4 8 3 1",
    "one 8 9 8 5",
    "leave 2 4 2 1",
    "leave 4 8 2 2",
    "both 2 2 1 1",
    "both 4 3 3 2",
    "pump 2 6 2 1",
    "pump 16 12 9 5",
    "pumps 16 3 2 2",
    "turn 2 3 2 1",
    "turn 4 4 4 3",
    "turn 4 4 4 2",
    "turns 2 2 2 2",
    "turns 4 3 3 2",
    "mixed 4 3 3 2",
]
LARGE = [
    "one 2 12 2 2",
    "one 4 16 3 3",
    "one 16 40 7 5",
    "leave 4 16 3 1",
    "both 2 4 2 1",
    "both 4 6 3 2",
    "pumps 2 2 2 2",
    "pumps 2 3 2 2",
    "pumps 4 4 2 2",
    "pumps 8 8 4 4",
    "pumps 16 9 5 3",
    "turn 2 6 2 2",
    "turn 4 8 3 2",
    "turns 2 2 1 1",
    "turns 2 3 2 1",
    "mixed 2 2 1 1",
    "mixed 2 3 2 2",
]


def build(directory: Path, *, warnings: bool = False, briefly: bool = False) -> Path:
    """Compiles explore.c over native/csrc; sources that stand in directory come first. To run
    briefly, it is compiled in half the time."""
    program = directory / "explore"
    flags = [
        "-std=gnu11",
        "-D_GNU_SOURCE",
        "-O0" if briefly else "-O1",
        f"-I{directory}",
        f"-I{CSRC}",
    ]
    flags += ["-Wall", "-Wextra", "-Werror"] if warnings else ["-w"]
    compile_c(["gcc", *flags, HERE / "explore.c", "-o", program])
    return program


def main() -> int:
    """Runs all jobs; 0 when every interleaving of each ends well."""
    worst = 0
    with tempfile.TemporaryDirectory() as directory:
        program = build(Path(directory))
        for job in SMALL + LARGE:
            before = time.monotonic()
            done = subprocess.run(
                [program, *job.split()], stdout=subprocess.PIPE, text=True, check=False
            )
            worst = max(worst, abs(done.returncode))
            print(f"{job:20}{time.monotonic() - before:7.1f} s  {done.stdout.rstrip()}", flush=True)
    return worst


if __name__ == "__main__":
    sys.exit(main())
