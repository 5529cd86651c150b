"""The C parts by themselves: they compile without a warning and survive two real threads."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.compiled import compile_c

CSRC = Path(__file__).parents[2] / "native" / "csrc"
SOAK = Path(__file__).with_name("ring_soak.c")
FLAGS = ["-std=gnu11", "-D_GNU_SOURCE", "-O2", "-Wall", "-Wextra", "-Werror"]


@pytest.fixture(scope="module")
def soak(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The two-thread program, with every access to memory checked."""
    program = tmp_path_factory.mktemp("soak") / "ring_soak"
    sources = [CSRC / f"{name}.c" for name in ("ring", "halt_poll", "channel", "shm")]
    check = ["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover"]
    compile_c(["gcc", *FLAGS, *check, f"-I{CSRC}", SOAK, *sources, "-pthread", "-o", program])
    return program


@pytest.mark.parametrize("name", sorted(path.name for path in CSRC.glob("*.c")))
def test_it_compiles_without_a_warning(name: str, tmp_path: Path) -> None:
    command = ["gcc", *FLAGS, "-c", CSRC / name, "-o", tmp_path / "out.o"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "arguments",
    [
        "mixed 200 12 10",
        "mixed 100 16 16",
        "close 1000 11 10",
        "ping 8000 10 11",
        "fill 4000 11 10",
    ],
)
def test_no_byte_and_no_wake_up_is_lost_between_two_threads(soak: Path, arguments: str) -> None:
    command = [soak, *arguments.split()]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
