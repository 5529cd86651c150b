from __future__ import annotations

from . import fuzz_policy


def test_a_short_run_of_the_fuzzer_finds_nothing() -> None:
    for number in range(400):
        fuzz_policy.once(f"short/{number}")


def test_the_fuzzers_program_runs_for_as_long_as_it_is_told(capsys: object) -> None:
    assert fuzz_policy.main(["0.1", "--seed", "1"]) == 0
