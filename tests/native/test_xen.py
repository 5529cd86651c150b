"""The Xen attachment, over a stand-in for Xen and with Debian's unmodified libxenvchan.

What needs a real Xen is shown on the bench: see tests/xen.
"""

from __future__ import annotations

import ast
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.interop import program as interop

from . import xen_libraries

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PATIENCE = 5000  # ms; nothing takes a hundredth of it, but a machine can be busy
LIMIT = 65  # seconds; a case gives up after 60

reason = interop.missing()
with_library = pytest.mark.skipif(bool(reason), reason=reason)


def cases() -> list[str]:
    """The names in xen_cases.py, which must not be imported here: it changes its process."""
    tree = ast.parse((HERE / "xen_cases.py").read_text())
    helpers = {"in_domain", "channels", "streams", "notices", "shortest_look", "run"}
    names = {node.name for node in tree.body if isinstance(node, ast.AsyncFunctionDef)}
    return sorted(names - helpers)


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return xen_libraries.build(tmp_path_factory.mktemp("xen"))


@pytest.fixture(scope="module")
def program(libraries: Path) -> Path:
    return xen_libraries.build_interop(libraries)


@with_library
@pytest.mark.parametrize(
    ("job", "rounds"), [("orders", 1), ("churn", 2000), ("ends", 1000), ("crossed", 10)]
)
def test_what_the_library_set_up_works_with_the_library_at_the_other_end(
    program: Path, job: str, rounds: int
) -> None:
    interop.run(program, job, rounds, seed=1, patience=PATIENCE)


@pytest.fixture(scope="module")
def forks(libraries: Path) -> Iterator[subprocess.Popen[str]]:
    """Runs each case that it is told in a fork of its own."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.native.xen_cases", libraries],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            os.killpg(process.pid, signal.SIGKILL)  # also a case that hangs


@with_library
@pytest.mark.parametrize("case", cases())
def test_case(forks: subprocess.Popen[str], case: str) -> None:
    assert forks.stdin is not None and forks.stdout is not None
    forks.stdin.write(f"{case}\n")
    assert select.select([forks.stdout], [], [], LIMIT)[0], f"no end in {LIMIT} s"
    status, said = json.loads(forks.stdout.readline())
    assert status == 0, said


def test_without_the_libraries_it_says_which_package_is_missing(tmp_path: Path) -> None:
    source = tmp_path / "without.c"
    source.write_text(
        """
        #include <dlfcn.h>
        #include <stdio.h>
        static void *no_library(const char *name, int flags) { (void)name, (void)flags; return 0; }
        #define dlopen no_library
        #include "xen.h"
        #include "xen_load.c"
        int main(void)
        {
            const char *problem = NULL;
            struct pv_channel *channel = NULL;
            struct pv_store *store = NULL;
            int load = pv_xen_load(&problem);

            printf("%d %d %d %d: %s", load, pv_xen_serve(1, 2, 3, 16, 16, &channel),
                   pv_xen_join(1, 2, 3, &channel), pv_store_open(&store), problem);
            return 0;
        }
        """
    )
    others = [part for part in xen_libraries.PARTS if part != "xen_load"]
    parts = ("ring", "halt_poll", "channel", *others)
    ours = [xen_libraries.CSRC / f"{name}.c" for name in parts]
    built = tmp_path / "without"
    flags = [*xen_libraries.FLAGS, f"-I{xen_libraries.CSRC}", "-pthread"]
    subprocess.run(["gcc", *flags, source, *ours, "-o", built], check=True)
    said = subprocess.run([built], capture_output=True, text=True, check=True).stdout
    assert said.startswith("-38 -38 -38 -38: libxenvchan is not there"), said  # ENOSYS
    assert "install the Debian package libxenmisc of this release" in said
    assert "apt-cache search" in said


@pytest.mark.skipif(Path("/proc/xen/xenbus").exists(), reason="this is a domain of a Xen host")
def test_without_xen_it_says_so(tmp_path: Path) -> None:
    program = (
        "import trio, pedos_vchan.xen as xen\n"
        "try:\n    trio.run(xen.listen, 7, 3, 1)\n"
        "except OSError as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=LIMIT
    )
    assert "no Xen domain" in done.stdout or "is not there: install" in done.stdout
