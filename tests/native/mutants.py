"""The purpose of each barrier, look and bound of the ring: without it, a test must fail.

    python -m tests.native.mutants [WORD...]     all mutants, or those whose name has such a word

A mutant is one change to one file. It is built aside, and the tests that are named with it run
against it; a mutant that they all pass has survived, and the program fails. The notify protocol's
own steps (arm, look again, full fences) are in tests/interleave/mutants.py and run here as well.
`UNTOUCHED` lists parts that can be removed without harm, with the reason; every atomic access and
every condition of ring.c is in one of the three tables, and that is checked, too. Of xen*.c only
the guard has mutants.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from tests import compiled
from tests.interleave import search
from tests.interleave.mutants import MUTANTS as STEPS

from .mutants_call import MUTANTS as OF_CALLS
from .mutants_channel import MUTANTS as OF_THE_CHANNEL
from .mutants_guard import MUTANTS as OF_THE_GUARD
from .mutants_table import MUTANTS, UNTOUCHED, Mutant
from .mutants_usbip import MUTANTS as OF_USBIP

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CSRC = ROOT / "native" / "csrc"
PACKAGE = ROOT / "native" / "pedos_vchan"
# What takes a millisecond to run takes half the time to compile like this.
FLAGS = ["-std=gnu11", "-D_GNU_SOURCE", "-O0", "-w"]
CHECKED = ["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover"]
PARTS = sorted(path.stem for path in CSRC.glob("*.c"))
OF_A_CHANNEL = ("ring", "halt_poll", "channel")

# A mutant may well hang; its tests take two seconds if all is well.
LIMIT = 30  # seconds


class DoesNotBuildError(Exception):
    """A mutant that does not compile proves nothing."""


def compile_c(*arguments: str | Path) -> None:
    """Runs gcc; ``DoesNotBuildError`` with what it says when it fails."""
    try:
        compiled.compile_c(["gcc", *arguments])
    except subprocess.CalledProcessError as error:
        raise DoesNotBuildError(error.stderr) from None


def _passes(command: list[str | Path], environment: dict[str, str] | None = None) -> bool:
    quiet = subprocess.DEVNULL
    with subprocess.Popen(
        command, stdout=quiet, stderr=quiet, env=environment, cwd=ROOT, start_new_session=True
    ) as process:
        try:
            return process.wait(LIMIT) == 0
        except subprocess.TimeoutExpired:
            return False
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # also what it has started itself


def rules(csrc: Path, folder: Path, which: str) -> bool:
    """ring_rules.c or channel_rules.c: rule by rule, against a page that is written by hand."""
    name = f"{which or 'ring'}_rules"
    program = folder / name
    sources = [HERE / f"{name}.c", *(csrc / f"{part}.c" for part in OF_A_CHANNEL)]
    compile_c(*CHECKED, *(_compiled(source, csrc, folder) for source in sources), "-o", program)
    return _passes([program])


def _compiled(source: Path, csrc: Path, folder: Path) -> Path:
    """Its object file, made once for all mutants that leave it and the headers as they are."""
    headers = [*sorted(csrc.glob("*.h")), *sorted(HERE.glob("*.h"))]
    content = b"".join(path.read_bytes() for path in [source, *headers])
    target = folder.parent / f"{source.stem}-{hashlib.sha256(content).hexdigest()}.o"
    if not target.exists():
        mine = folder / target.name
        compile_c(*FLAGS, *CHECKED, f"-I{csrc}", "-c", source, "-o", mine)
        mine.replace(target)
    return target


def orders(csrc: Path, folder: Path, _: str) -> bool:
    """ring_orders.c: acquire and release, in a model of memory."""
    program = folder / "ring_orders"
    compile_c(*FLAGS, f"-I{csrc}", HERE / "ring_orders.c", "-o", program)
    return _passes([program])


def guard(csrc: Path, folder: Path, _: str) -> bool:
    """guard_rules.c, which has xen_guard.c within it."""
    program = folder / "guard_rules"
    others = [
        _compiled(csrc / f"{name}.c", csrc, folder) for name in ("xen_presence", *OF_A_CHANNEL)
    ]
    sources = [HERE / "guard_rules.c", *others]
    compile_c(*FLAGS, *CHECKED, f"-I{csrc}", *sources, "-pthread", "-o", program)
    return _passes([program])


def explore(csrc: Path, _: Path, job: str) -> bool:
    """The explorer of interleavings."""
    return _passes([search.build(csrc), *job.split()])


class Extension:
    """Builds copies of the Python package around changed C files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._python = sys.executable
        script = (
            "import sys; from pedos_vchan._build import ffibuilder; "
            "ffibuilder.emit_c_code(sys.argv[1])"
        )
        emit: list[str | Path] = [self._python, "-c", script, folder / "_native.c"]
        subprocess.run(emit, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
        include = subprocess.run(
            [self._python, "-c", "import sysconfig; print(sysconfig.get_path('include'))"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        glue: list[str | Path] = [
            "-O0",
            "-fPIC",
            f"-I{CSRC}",
            f"-I{include}",
            "-c",
            folder / "_native.c",
        ]
        compile_c(*FLAGS, "-O1", *glue, "-o", folder / "glue.o")

    def pytest(self, csrc: Path, folder: Path, which: str) -> bool:
        """The named test files (of tests/native), with the extension from csrc."""
        package = folder / "pedos_vchan"
        shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
        parts = [csrc / f"{name}.c" for name in PARTS]
        target = package / "_native.abi3.so"
        glue = self._folder / "glue.o"
        compile_c(*FLAGS, "-O1", "-fPIC", "-shared", f"-I{csrc}", *parts, glue, "-o", target)
        tests = [HERE / f"test_{name}.py" for name in which.split()]
        environment = {**os.environ, "PYTHONPATH": str(folder)}
        environment.pop("PYTEST_ADDOPTS", None)
        return _passes([self._python, "-m", "pytest", "-x", *tests], environment)


class Bench:
    """Applies mutants and tries the tests on them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._extension: Extension | None = None
        self._count = 0

    def _try(self, csrc: Path, folder: Path, test: str) -> bool:
        kind, _, rest = test.partition(" ")
        if kind == "pytest":
            if self._extension is None:
                self._extension = Extension(self._folder)
            return self._extension.pytest(csrc, folder, rest)
        kinds = {"rules": rules, "guard": guard, "orders": orders, "explore": explore}
        return kinds[kind](csrc, folder, rest)

    def _place(self, name: str) -> tuple[Path, Path]:
        folder = self._folder / name
        csrc = folder / "csrc"
        folder.mkdir()
        shutil.copytree(CSRC, csrc)
        return folder, csrc

    def passes_unchanged(self, test: str) -> bool:
        """Whether the test passes on the code as it is; anything else would prove nothing."""
        self._count += 1
        folder, csrc = self._place(f"unchanged{self._count}")
        return self._try(csrc, folder, test)

    def survives(self, number: int, mutant: Mutant) -> bool:
        """Whether the mutant passes the test that is to catch it."""
        folder, csrc = self._place(f"mutant{number}")
        path = csrc / mutant.file
        path.write_text(changed(mutant))
        try:
            return self._try(csrc, folder, mutant.test)
        finally:
            shutil.rmtree(folder)


def changed(mutant: Mutant) -> str:
    """The mutant's file after the change; ``ValueError`` when its text is not there just once."""
    source = (CSRC / mutant.file).read_text()
    if source.count(mutant.old) != 1:
        raise ValueError(f"{mutant.name}: the code has changed, and the table must follow")
    return source.replace(mutant.old, mutant.new)


def every() -> list[Mutant]:
    """Ours, and those of the notify protocol."""
    steps = [
        Mutant(f"{step.name} ", step.file, step.old, step.new, "row 7", f"explore {step.job}")
        for step in STEPS
    ]
    return MUTANTS + OF_THE_CHANNEL + OF_THE_GUARD + OF_USBIP + OF_CALLS + steps


def unaccounted() -> list[str]:
    """Lines of ring.c with an atomic access or a condition that no table mentions."""
    source = (CSRC / "ring.c").read_text()
    covered: set[int] = set()
    for old in [m.old for m in every() if m.file == "ring.c"] + [text for text, _ in UNTOUCHED]:
        if source.count(old) != 1:
            raise ValueError(f"not in ring.c just once, and the table must follow: {old}")
        first = source[: source.index(old)].count("\n")
        covered.update(range(first, first + old.rstrip("\n").count("\n") + 1))
    return [
        f"ring.c:{number + 1}: {line.strip()}"
        for number, line in enumerate(source.splitlines())
        if ("__atomic_" in line or "if (" in line) and number not in covered
    ]


def main(words: list[str]) -> None:
    chosen = [m for m in every() if not words or any(word in m.name for word in words)]
    failures = unaccounted()
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        for test in sorted({mutant.test for mutant in chosen}):
            if not bench.passes_unchanged(test):
                sys.exit(f"{test}: fails on the code as it is")
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            outcomes = list(pool.map(bench.survives, range(len(chosen)), chosen))
    for mutant, survived in zip(chosen, outcomes, strict=True):
        print(f"{'SURVIVED' if survived else 'caught':8}  {mutant.name.strip()}  ({mutant.why})")
        if survived:
            failures.append(f"{mutant.name.strip()} survived {mutant.test}")
    print(f"{len(chosen)} mutants, {sum(outcomes)} survived, {time.monotonic() - start:.0f} s")
    if failures:
        sys.exit("\n".join(failures))


if __name__ == "__main__":
    main(sys.argv[1:])
