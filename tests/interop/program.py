"""Builds the interop program, if Debian's libxenvchan is there to be linked with."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from tests.compiled import compile_c

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "native" / "csrc"
SOURCES = [HERE / f"{name}.c" for name in ("interop", "attach", "standin")]
OURS = ("ring", "halt_poll", "channel")
#: Seconds of processor time that a run may take, and one more for each hundred rounds, which take a
#: tenth of that.
WORK = 30
#: Seconds, and one more for each round, until a run that waits beyond its patience is given up.
DEADLOCK = 600
FLAGS = ["-std=gnu11", "-D_GNU_SOURCE", "-O2", "-g", "-Wall", "-Wextra", "-Werror"]


def missing() -> str:
    """Why there is nothing to talk to on this machine; empty if there is."""
    asked = ["gcc", "-print-file-name=libxenvchan.so"]
    found = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    if not Path(found).is_absolute():  # gcc repeats the name that it does not find
        return "no libxenvchan.so to link with (Debian: libxen-dev)"
    header = ["gcc", "-E", "-include", "libxenvchan.h", "-x", "c", "/dev/null"]
    if subprocess.run(header, capture_output=True, check=False).returncode:
        return "no libxenvchan.h (Debian: libxen-dev)"
    return ""


def build(folder: Path, csrc: Path = CSRC) -> Path:
    """The program, with the ring from csrc."""
    program = folder / "interop"
    ours = [csrc / f"{name}.c" for name in OURS]
    # -rdynamic exports the stand-ins, so that they come before the libraries' own functions.
    command: list[str | Path] = [
        "gcc",
        *FLAGS,
        "-rdynamic",
        f"-I{csrc}",
        f"-I{HERE}",
        *SOURCES,
        *ours,
    ]
    compile_c([*command, "-lxenvchan", "-pthread", "-o", program])
    return program


def run(program: Path, job: str, rounds: int, *, seed: int, patience: int) -> Any:
    """The figures of one run; AssertionError if bad. `patience`: milliseconds of each wait in it.

    What works for ever has used up its processor time at some point, however busy the machine is.
    """
    limited = ["sh", "-c", f'ulimit -t {WORK + rounds // 100}; exec "$@"', "sh"]
    command: list[str | Path] = [*limited, program, job, str(rounds), str(seed), str(patience)]
    last_resort = DEADLOCK + rounds
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=last_resort)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return json.loads(done.stdout)
