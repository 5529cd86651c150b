"""The threads that close what others have passed, under the sanitizers."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.compiled import compile_c
from tests.patience import PATIENCE

from . import build

if TYPE_CHECKING:
    from pathlib import Path

ROUNDS = 100


@pytest.mark.parametrize("sanitizer", build.SANITIZERS)
def test_everything_is_closed_and_no_line_is_left(tmp_path: Path, sanitizer: str) -> None:
    program = tmp_path / "closer_soak"
    flags = [*build.FLAGS, *build.SANITIZERS[sanitizer], f"-I{build.ROOT / 'native' / 'host'}"]
    source = build.HERE / "closer_soak.c"
    compile_c(["gcc", *flags, source, "-pthread", "-o", program])
    command = [program, str(ROUNDS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"rounds {ROUNDS}\n", "")
