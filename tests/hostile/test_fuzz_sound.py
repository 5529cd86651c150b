"""Coverage-guided fuzzing of what pedos-sound reads finds nothing, and would find a check that is
missing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from . import build
from .test_fuzz import fuzz

if TYPE_CHECKING:
    from pathlib import Path

RUNS = 30_000  # about a second
RUNS_TO_FIND = 2_000_000  # a bound for the mutants

compiler = build.clang()
pytestmark = pytest.mark.skipif(
    compiler is None, reason="needs clang with libFuzzer (clang, libclang-rt-dev)"
)


def test_nothing_that_an_agent_a_vm_or_a_device_says_breaks_a_promise(tmp_path: Path) -> None:
    assert compiler is not None
    done = fuzz(build.sound_fuzzer(tmp_path, compiler), RUNS, build.SOUND_LENGTH)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        pytest.param(
            "frames.c", "if (count < FRAME_HEADER + length)", "if (0)", id="bytes that never came"
        ),
        pytest.param("frames.c", " && counter == 0", " && counter != 7", id="a counter of nothing"),
        pytest.param(
            "link.c", "(size_t)(cursor->end - here) < count", "0", id="a field beyond the end"
        ),
        pytest.param("link.c", " && cursor.at == cursor.end", "", id="bytes left over"),
        pytest.param("link.c", "if (value > 1)", "if (0)", id="a flag of any value"),
        pytest.param("text.c", "*code < LEAST[length] || ", "*code < LEAST[0] || ", id="long"),
        pytest.param(
            "text.c", "if (used + (is_kept ? length : 1) > limit)", "if (used >= limit)",
            id="a character over the bound",
        ),
    ],
)  # fmt: skip
def test_a_missing_check_is_found(tmp_path: Path, file: str, old: str, new: str) -> None:
    assert compiler is not None
    source = (build.SOUND / file).read_text()
    assert source.count(old) == 1, "the code has changed: this test must follow"
    (tmp_path / file).write_text(source.replace(old, new))
    done = fuzz(build.sound_fuzzer(tmp_path, compiler), RUNS_TO_FIND, build.SOUND_LENGTH)
    assert done.returncode != 0
    assert "SUMMARY" in done.stderr
