"""Coverage-guided fuzzing of the shared page and of frames finds nothing, and would find a check
that is missing.

A few seconds here; `python -m tests.hostile.build SECONDS` goes on for longer.
"""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest
from pedos_protocol.codec import CONTAINERS_MAX, DEPTH_MAX, FRAME_MAX, ITEMS_MAX

from . import build

if TYPE_CHECKING:
    from pathlib import Path

RUNS = 60_000  # about two seconds
RUNS_TO_FIND = 400_000  # a bound for the mutants; they are found within some thousands

IN_BOUND = "prod - in->own > in->size || "
IN_BACK = " || prod - in->own < in->peer - in->own"
OUT_BOUND = "if (out->own - cons > out->own - out->peer)"
KEPT = "        ring->broken = code;\n"
READ_ONCE = "        in->peer = prod;\n"

compiler = build.clang()
pytestmark = pytest.mark.skipif(
    compiler is None, reason="needs clang with libFuzzer (clang, libclang-rt-dev)"
)


def run(program: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    artifacts = f"-artifact_prefix={program.parent}/"
    return subprocess.run(
        [program, artifacts, *arguments], capture_output=True, text=True, check=False, timeout=120
    )


def fuzz(
    program: Path, runs: int, length: int = build.PAGE_LENGTH
) -> subprocess.CompletedProcess[str]:
    return run(program, f"-runs={runs}", "-seed=1", f"-max_len={length}")


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    assert compiler is not None
    return build.unchanged_parts(tmp_path_factory.mktemp("parts"), compiler)


def test_no_script_of_a_peer_breaks_a_promise(tmp_path: Path, parts: list[Path]) -> None:
    assert compiler is not None
    done = fuzz(build.fuzzer(tmp_path, compiler, parts), RUNS)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param(IN_BOUND, "", id="more bytes than fit"),
        pytest.param(IN_BACK, "", id="bytes taken back"),
        pytest.param(OUT_BOUND, "if (0)", id="room from nowhere"),
        pytest.param(
            OUT_BOUND, "if (out->own - cons > out->size)", id="room that was taken before"
        ),
        pytest.param(
            READ_ONCE,
            "        in->peer = __atomic_load_n(in->watched, __ATOMIC_ACQUIRE);\n",
            id="an index that is read twice",
        ),
        pytest.param(KEPT, "        (void)code;\n", id="a failure that passes"),
    ],
)
def test_a_missing_check_is_found(tmp_path: Path, parts: list[Path], old: str, new: str) -> None:
    assert compiler is not None
    source = (build.CSRC / "ring.c").read_text()
    assert source.count(old) == 1, "the code has changed: this test must follow"
    (tmp_path / "ring.c").write_text(source.replace(old, new))
    done = fuzz(build.fuzzer(tmp_path, compiler, parts), RUNS_TO_FIND)
    assert done.returncode != 0
    assert "SUMMARY" in done.stderr


@pytest.fixture
def unleaked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python itself does not give back all that it has at its end."""
    monkeypatch.setenv("ASAN_OPTIONS", "detect_leaks=0")


def lists(count: int) -> bytes:
    """A payload of so many lists, itself included: more than 2048, and no list too long."""
    full, rest = divmod(count - 1, ITEMS_MAX)
    sizes = [ITEMS_MAX] * full + [rest] * (rest > 0)
    inner = [b"\xdc" + size.to_bytes(2) + b"\x90" * (size - 1) + b"\xc0" for size in sizes]
    return bytes([0x90 + len(sizes)]) + b"".join(inner)


def at_the_bounds(folder: Path) -> list[Path]:
    """Files with payloads that stand at a bound of frames, and one step beyond it."""
    payloads = [
        *(b"\x91" * (depth - 1) + b"\x90" for depth in (DEPTH_MAX, DEPTH_MAX + 1)),
        *(b"\xdc" + n.to_bytes(2) + b"\xc0" * n for n in (ITEMS_MAX, ITEMS_MAX + 1)),
        *(lists(count) for count in (CONTAINERS_MAX, CONTAINERS_MAX + 1)),
        *(b"\x91\xc5" + n.to_bytes(2) + b"x" * n for n in (FRAME_MAX - 4, FRAME_MAX - 3)),
    ]
    files = [folder / f"bound-{number}" for number in range(len(payloads))]
    for file, payload in zip(files, payloads, strict=True):
        file.write_bytes(payload)
    return files


@pytest.fixture(scope="module")
def wire_parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    assert compiler is not None
    return build.unchanged_wire_parts(tmp_path_factory.mktemp("wire"), compiler)


@pytest.mark.usefixtures("unleaked")
def test_no_payload_of_a_peer_breaks_a_promise(tmp_path: Path, wire_parts: dict[str, Path]) -> None:
    assert compiler is not None
    program = build.wire_fuzzer(tmp_path, compiler, wire_parts)
    for done in (fuzz(program, RUNS, build.FRAME_LENGTH), run(program, *at_the_bounds(tmp_path))):
        assert done.returncode == 0, done.stderr


@pytest.mark.usefixtures("unleaked")
@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        pytest.param(
            "read.c",
            "if (size > (size_t)(reader->end - reader->at))",
            "if (size > FRAME_MAX)",
            id="bytes that never came",
        ),
        pytest.param("read.c", "if (depth == DEPTH_MAX)", "if (depth < 0)", id="any depth"),
        pytest.param(
            "read.c", "!is_text(*reader->at)", "is_text(*reader->at) > 1", id="keys of any kind"
        ),
        pytest.param(
            "events.c",
            "count == 4 && PyDict_CheckExact(items[3])",
            "count == 4",
            id="parameters of any kind",
        ),
        pytest.param(
            "connection.c",
            "memmove(bytes, bytes + machine->taken, (size_t)before);",
            "(void)bytes;",
            id="a rest that stays behind what was taken",
        ),
    ],
)
def test_a_check_that_is_missing_in_frames_is_found(
    file: str, old: str, new: str, tmp_path: Path, wire_parts: dict[str, Path]
) -> None:
    assert compiler is not None
    source = (build.WIRE / file).read_text()
    assert source.count(old) == 1, "the code has changed: this test must follow"
    (tmp_path / file).write_text(source.replace(old, new))
    assert fuzz(build.wire_fuzzer(tmp_path, compiler, wire_parts), RUNS_TO_FIND).returncode != 0


@pytest.mark.usefixtures("unleaked")
def test_bounds_of_frames_that_are_off_by_one_are_found(
    tmp_path: Path, wire_parts: dict[str, Path]
) -> None:
    assert compiler is not None
    source = (build.WIRE / "read.c").read_text()
    for bound in ("depth == DEPTH_MAX", "count > ITEMS_MAX", "containers > CONTAINERS_MAX"):
        assert source.count(bound) == 1, "the code has changed: this test must follow"
        source = source.replace(bound, f"{bound} + 1")
    (tmp_path / "read.c").write_text(source)
    program = build.wire_fuzzer(tmp_path, compiler, wire_parts)
    _, too_deep, _, too_long, _, too_many, *_ = at_the_bounds(tmp_path)
    for payload in (too_deep, too_long, too_many):
        assert "broken promise: what was heard can be said" in run(program, payload).stderr
