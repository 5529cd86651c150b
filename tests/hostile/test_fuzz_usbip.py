"""Coverage-guided fuzzing of USB/IP streams: what reaches a careless kernel harms it in no case,
and some missing checks are found. (tests/native/mutants_usbip.py takes out all of them.)"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from . import build
from .test_fuzz import fuzz

if TYPE_CHECKING:
    from pathlib import Path

RUNS = 20_000  # about a second
RUNS_TO_FIND = 1_000_000  # a bound for the mutants; they are found within some ten thousand

compiler = build.clang()
pytestmark = pytest.mark.skipif(
    compiler is None, reason="needs clang with libFuzzer (clang, libclang-rt-dev)"
)


def test_nothing_that_the_other_vm_sends_harms_the_kernel(tmp_path: Path) -> None:
    assert compiler is not None
    done = fuzz(build.usbip_fuzzer(tmp_path, compiler), RUNS, build.USBIP_LENGTH)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("if (length > PV_USBIP_TRANSFER_MAX)", "if (0)", id="a length"),
        pytest.param(" & FLAGS_PASSED);", ");", id="flags"),
        pytest.param(
            "if (end > stream->buffer)", "if (end > stream->buffer + 1ull)", id="a packet outside"
        ),
    ],
)
def test_a_missing_check_is_found(tmp_path: Path, old: str, new: str) -> None:
    assert compiler is not None
    source = (build.CSRC / "usbip.c").read_text()
    assert source.count(old) == 1, "the code has changed: this test must follow"
    (tmp_path / "usbip.c").write_text(source.replace(old, new))
    done = fuzz(build.usbip_fuzzer(tmp_path, compiler), RUNS_TO_FIND, build.USBIP_LENGTH)
    assert done.returncode != 0
    assert "SUMMARY" in done.stderr
