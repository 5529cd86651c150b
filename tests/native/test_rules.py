"""The rules of the C code, and that a test is there for each barrier, look and bound in it.

`python -m tests.native.mutants` takes out all of them, one at a time; here are those that take
little time.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from . import mutants
from .mutants_guard import MUTANTS as OF_THE_GUARD
from .mutants_table import MUTANTS, Mutant

PROGRAMS = ["ring_rules", "channel_rules", "guard_rules", "ring_orders"]
FAST = [m for m in MUTANTS if m.test == "orders"] + [
    m for m in MUTANTS if m.test == "rules" and m.why in ("row 4", "row 5")
]
FAST += [m for m in OF_THE_GUARD if "again" in m.why]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> mutants.Bench:
    return mutants.Bench(tmp_path_factory.mktemp("mutants"))


@pytest.mark.parametrize("which", ["rules", "rules channel", "guard"])
def test_ring_channel_and_guard_keep_their_rules(bench: mutants.Bench, which: str) -> None:
    assert bench.passes_unchanged(which)


def test_every_acquire_and_release_is_strong_enough(bench: mutants.Bench) -> None:
    assert bench.passes_unchanged("orders")


@pytest.mark.parametrize("name", [f"{which}.c" for which in PROGRAMS])
def test_the_programs_compile_without_a_warning(name: str, tmp_path: Path) -> None:
    flags = ["-std=gnu11", "-D_GNU_SOURCE", "-O1", "-Wall", "-Wextra", "-Werror"]
    source = Path(__file__).with_name(name)
    mutants.compile_c(*flags, f"-I{mutants.CSRC}", "-c", source, "-o", tmp_path / "out.o")


@pytest.mark.parametrize("mutant", FAST, ids=lambda mutant: mutant.name)
def test_without_it_a_test_fails(bench: mutants.Bench, mutant: Mutant) -> None:
    assert not bench.survives(FAST.index(mutant), mutant)


def test_every_mutant_has_its_place_in_the_code() -> None:
    for mutant in mutants.every():
        mutants.changed(mutant)


def test_no_atomic_access_and_no_condition_of_the_ring_is_left_out() -> None:
    assert mutants.unaccounted() == []
