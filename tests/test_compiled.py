"""A program of C is compiled once, and anew when anything that it is made from has changed."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests import compiled

SOURCE = '#include "number.h"\nint main(void) { return NUMBER; }\n'


class Compiler:
    """gcc, which counts what it compiles."""

    def __init__(self, folder: Path, version: str = "1") -> None:
        self._log = folder / "log"
        self._log.touch()
        self.path = folder / f"cc-{version}"
        self.path.write_text(
            "#!/bin/sh\n"
            'case " $* " in\n'
            f'*" --version "*) echo {version}; exit ;;\n'
            '*" -E "*) ;;\n'
            f'*) echo "$*" >> {self._log} ;;\n'
            'esac\nexec gcc "$@"\n'
        )
        self.path.chmod(0o700)

    @property
    def count(self) -> int:
        return len(self._log.read_text().splitlines())


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Compiler:
    monkeypatch.setattr(compiled, "KEPT", tmp_path / "kept")
    return Compiler(tmp_path)


def status_of(compiler: Compiler, folder: Path, number: int, *options: str) -> int:
    """What a program says that includes the number."""
    folder.mkdir(exist_ok=True)
    (folder / "number.h").write_text(f"#define NUMBER {number}\n")
    (folder / "main.c").write_text(SOURCE)
    program = folder / "program"
    compiled.compile_c(
        [compiler.path, *options, f"-I{folder}", folder / "main.c", "-o", program, "-lm"]
    )
    return subprocess.run([program], check=False).returncode


def test_it_is_compiled_once_wherever_it_stands(compiler: Compiler, tmp_path: Path) -> None:
    assert [status_of(compiler, tmp_path / name, 3) for name in "aab"] == [3, 3, 3]
    assert compiler.count == 1


def test_another_header_option_or_compiler_makes_another(
    compiler: Compiler, tmp_path: Path
) -> None:
    assert status_of(compiler, tmp_path / "a", 3) == 3
    assert status_of(compiler, tmp_path / "a", 4) == 4
    assert status_of(compiler, tmp_path / "a", 4, "-O1") == 4
    assert status_of(Compiler(tmp_path, "2"), tmp_path / "a", 4) == 4
    assert compiler.count == 4


def test_another_object_makes_another(compiler: Compiler, tmp_path: Path) -> None:
    (tmp_path / "main.c").write_text("int part(void); int main(void) { return part(); }\n")
    for number in (5, 6, 5):
        (tmp_path / "part.c").write_text(f"int part(void) {{ return {number}; }}\n")
        made = [tmp_path / "part.o", tmp_path / "program"]
        compiled.compile_c([compiler.path, "-c", tmp_path / "part.c", "-o", made[0]])
        compiled.compile_c([compiler.path, tmp_path / "main.c", made[0], "-o", made[1]])
        assert subprocess.run([made[1]], check=False).returncode == number
    assert compiler.count == 4


def test_a_failure_is_told_each_time(compiler: Compiler, tmp_path: Path) -> None:
    (tmp_path / "main.c").write_text("int main(void) { return part(); }\n")
    for _ in range(2):
        with pytest.raises(subprocess.CalledProcessError, match="implicit declaration"):
            compiled.compile_c(
                [compiler.path, "-Werror", "-Wall", tmp_path / "main.c", "-o", tmp_path / "program"]
            )
    assert not compiled.KEPT.exists()


def test_what_was_not_used_for_longest_goes(
    compiler: Compiler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled, "KEPT_MAX", 2)
    for number in (1, 2, 1, 3):
        status_of(compiler, tmp_path / "a", number)
        for kept in compiled.KEPT.iterdir():  # a minute passes
            os.utime(kept, (kept.stat().st_mtime - 60,) * 2)
    assert (compiler.count, len(list(compiled.KEPT.iterdir()))) == (3, 2)
    status_of(compiler, tmp_path / "a", 1)
    assert compiler.count == 3
    status_of(compiler, tmp_path / "a", 2)
    assert compiler.count == 4
