"""Where and how the measured processes run: pinned, ended with the benchmark, and compiled."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
CSRC = ROOT / "native" / "csrc"

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


# As the run began: within `pinned` there is one.
_USABLE = sorted(os.sched_getaffinity(0))


def cores() -> tuple[int, int]:
    """The two processors that benchmarks use; the same one twice on a machine with one."""
    return _USABLE[0], _USABLE[1 % len(_USABLE)]


@contextlib.contextmanager
def pinned() -> Iterator[int]:
    """Keeps this process and all that it starts on one core; yields its number."""
    before, core = os.sched_getaffinity(0), cores()[0]
    os.sched_setaffinity(0, {core})
    try:
        yield core
    finally:
        os.sched_setaffinity(0, before)


def die_with_parent() -> None:
    """For a forked child: it is killed when the benchmark ends, however that ends."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def guarded(argv: Sequence[str | Path]) -> list[str]:
    """The command, so that it is killed when the thread that started it ends."""
    return ["setpriv", "--pdeathsig", "KILL", "--", *map(str, argv)]


def output_of(argv: Sequence[str | Path], **options: object) -> str:
    """The standard output of a program that must succeed."""
    ended = subprocess.run(
        guarded(argv),
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        **options,  # type: ignore[call-overload]
    )
    return str(ended.stdout)


@contextlib.contextmanager
def compiled(source: str, *, more: Sequence[str | Path] = ()) -> Iterator[Path]:
    """The program of `source` (a file here), compiled as the ring is; `more` goes to cc."""
    with tempfile.TemporaryDirectory(prefix="pedos-bench-") as folder:
        program = Path(folder) / Path(source).stem
        flags = ["-std=gnu11", "-D_GNU_SOURCE", "-O2", "-Wall", "-Wextra", "-I", CSRC]
        subprocess.run(["cc", *flags, "-o", program, HERE / source, *more], check=True)
        yield program


def python_of_peers() -> Path:
    """The interpreter that has grpcio and dbus-fast."""
    python = ROOT / ".venv-bench" / "bin" / "python"
    if not python.exists() or shutil.which("dbus-daemon") is None:
        raise RuntimeError("the peers are not installed; run: tools/setup bench")
    return python


def processor_seconds(pid: int) -> float:
    """The processor time of a process so far, of all its threads."""
    return time.clock_gettime(~pid << 3 | 2)  # as clock_getcpuclockid(3) makes it on Linux


def stat_fields(pid: int | str) -> list[str]:
    """The fields of /proc/PID/stat from the third on, the state. OSError."""
    # The second is the name of a program, which may have spaces and parentheses.
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def kernel_seconds(pid: int) -> float:
    """What of `processor_seconds` was spent in the kernel, in steps of a clock tick."""
    return int(stat_fields(pid)[12]) / os.sysconf("SC_CLK_TCK")


def status_kib(pid: int | str, field: str) -> int:
    """A field of /proc/PID/status that is in KiB: VmRSS, RssAnon, RssShmem."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0])
    raise LookupError(f"/proc/{pid}/status has no {field}")
