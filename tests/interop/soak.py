"""`python -m tests.interop.soak [CHANNELS [PATIENCE]]`: the long runs, for an idle machine.

CHANNELS (100000) are opened, used and closed with data in flight; a wait of PATIENCE (100)
milliseconds is a stall. Prints one line of figures for each job; fails at the first bad one.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from . import program


def main(channels: int = 100_000, patience: int = 100) -> None:
    if reason := program.missing():
        sys.exit(reason)
    with tempfile.TemporaryDirectory() as folder:
        built = program.build(Path(folder))
        for job, rounds in (("orders", 5), ("churn", channels), ("ends", channels)):
            print(job, program.run(built, job, rounds, seed=1, patience=patience))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
