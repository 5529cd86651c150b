"""Coverage-guided fuzzing of a call's pump: whatever the other VM writes, and the programs do, it
ends in order. (tests/native/mutants_call.py takes out each check.)"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from . import build
from .test_fuzz import fuzz

if TYPE_CHECKING:
    from pathlib import Path

RUNS = 10_000  # a few seconds
RUNS_TO_FIND = 400_000  # a bound for the mutants; they are found within some thousand

compiler = build.clang()
pytestmark = pytest.mark.skipif(
    compiler is None, reason="needs clang with libFuzzer (clang, libclang-rt-dev)"
)


def test_whatever_the_other_vm_sends_a_call_ends_in_order(tmp_path: Path) -> None:
    assert compiler is not None
    done = fuzz(build.call_fuzzer(tmp_path, compiler), RUNS, build.CALL_LENGTH)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        pytest.param(
            "call_frames.c", "*length > form->most)", "0)", id="a length that no frame has"
        ),
        pytest.param(
            "call_talk.c",
            "    if (progress->states[PV_CALL_CALLER] == PV_CALL_ENDED)\n        return 0;\n",
            "",
            id="a second end",
        ),
    ],
)
def test_what_is_missing_is_found(tmp_path: Path, file: str, old: str, new: str) -> None:
    assert compiler is not None
    source = (build.CSRC / file).read_text()
    assert source.count(old) == 1, "the code has changed: this test must follow"
    (tmp_path / file).write_text(source.replace(old, new))
    done = fuzz(build.call_fuzzer(tmp_path, compiler), RUNS_TO_FIND, build.CALL_LENGTH)
    assert done.returncode != 0
    assert "SUMMARY" in done.stderr
