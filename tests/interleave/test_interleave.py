"""No interleaving of the two ends of a channel loses a wake-up or a byte.

Every one of them, at these sizes; `python -m tests.interleave.search` does larger ones.
"""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from . import search
from .mutants import MUTANTS, Mutant

if TYPE_CHECKING:
    from pathlib import Path


def run(program: Path, job: str) -> tuple[int, str]:
    done = subprocess.run(
        [program, *job.split()], capture_output=True, text=True, check=False, timeout=60
    )
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def explore(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The explorer over the code as it is."""
    return search.build(tmp_path_factory.mktemp("explore"), warnings=True)


@pytest.mark.parametrize("job", search.SMALL)
def test_every_interleaving_ends_well(explore: Path, job: str) -> None:
    status, said = run(explore, job)
    assert (status, said.partition(" states, ")[2]) == (0, "all end well\n"), said


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_missing_step_is_found(tmp_path: Path, mutant: Mutant) -> None:
    source = (search.CSRC / mutant.file).read_text()
    assert source.count(mutant.old) == 1, "the code has changed: mutants.py must follow"
    (tmp_path / mutant.file).write_text(source.replace(mutant.old, mutant.new))
    status, said = run(search.build(tmp_path, briefly=True), mutant.job)
    assert (status, said.partition("\n")[0]) == (1, mutant.found)
