"""Coverage-guided fuzzing of what qvm-call reads of its agent finds nothing, and would find a check
that is missing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from pedos_protocol.call_link import HINT_MAX, ID_MAX, RULE_MAX, TEXT_MAX, Ended
from pedos_protocol.call_link import build as message

from . import build
from .test_fuzz import run

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

STARTED = 11  # of enum packet_type
RUNS = 30_000  # about a second
RUNS_TO_FIND = 400_000  # a bound for the mutants; they are found within some thousands

compiler = build.clang()
pytestmark = pytest.mark.skipif(
    compiler is None, reason="needs clang with libFuzzer (clang, libclang-rt-dev)"
)


def fuzz(folder: Path, runs: int) -> subprocess.CompletedProcess[str]:
    """Begins with messages that stand at a bound, and just beyond it."""
    assert compiler is not None
    texts = ("é" * (limit // 2) for limit in (TEXT_MAX, RULE_MAX, HINT_MAX, ID_MAX))
    longer = ID_MAX + 1
    seeds = {
        "longest": message(Ended("problem", 1, 125, *texts)),
        "longer": bytes([STARTED, longer, 0]) + b"a" * longer + bytes(2),
        "half": bytes([STARTED, 0, 0, 1, 0]) + "é".encode()[:1],
    }
    for name, content in seeds.items():
        (folder / name).write_bytes(content)
    program = build.packet_fuzzer(folder, compiler)
    limits = (f"-runs={runs}", "-seed=1", f"-max_len={build.PACKET_LENGTH}")
    return run(program, *limits, "-seed_inputs=" + ",".join(str(folder / name) for name in seeds))


def test_nothing_that_an_agent_says_breaks_a_promise(tmp_path: Path) -> None:
    done = fuzz(tmp_path, RUNS)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("(size_t)(cursor->end - here) < count", "0", id="a field beyond the end"),
        pytest.param(" && cursor.at == cursor.end", "", id="bytes left over"),
        pytest.param(
            "length > limit ? NULL : step(cursor, length);\n\n",
            "length > 4 * limit ? NULL : step(cursor, length);\n\n",
            id="a text over the bound",
        ),
        pytest.param("if (!kind || kind > PACKET_KINDS)", "if (!kind)", id="a kind of no word"),
        pytest.param("code < LEAST[length] || ", "code < LEAST[0] || ", id="a character too long"),
        pytest.param(
            "length > left || ", "length > 4 * left || ", id="a character that never came"
        ),
    ],
)
def test_a_missing_check_is_found(tmp_path: Path, old: str, new: str) -> None:
    source = (build.CALL / "packet.c").read_text()
    assert source.count(old) == 1, "the code has changed: this test must follow"
    (tmp_path / "packet.c").write_text(source.replace(old, new))
    done = fuzz(tmp_path, RUNS_TO_FIND)
    assert done.returncode != 0
    assert "SUMMARY" in done.stderr
