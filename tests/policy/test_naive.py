"""A naive reading of the language, the engine, and the reference's cases agree."""

from __future__ import annotations

import random

import pytest

from . import fuzz_policy, naive, random_cases
from .outcomes import expected
from .test_conformance import cases

CASES = 2000  # by each seed; `make fuzz` and .ci/run go on with others


@pytest.mark.parametrize("seed", range(2))
def test_the_engine_and_the_naive_reading_agree_on_cases_by_chance(seed: int) -> None:
    rnd = random.Random(seed)
    for _ in range(CASES):
        fuzz_policy.check_case(random_cases.case(rnd))


def test_the_naive_reading_agrees_with_every_case_of_the_reference() -> None:
    """So it is a witness: where the engine differs from it, one of both has to be looked at."""
    head, *rest = cases()
    vms = head["system_info"]["domains"]
    for case in rest:
        asked = (case[key] for key in ("policy", "service", "arg", "source", "target"))
        got = dict(naive.outcome(*asked, vms))
        wanted = expected(case)
        if "line" not in wanted:
            got.pop("line", None)
        assert got == wanted, case
