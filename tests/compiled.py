"""Programs of C that tests run, each compiled once.

What a compiler made stays in build/compiled, under a name that all it was made from determines:
the compiler, its options, and the text that is left of the sources after their #includes. Each
source has many mutants, and none of them changes between two runs of the tests.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
KEPT = ROOT / "build" / "compiled"
#: A run makes about a hundred, of some MB at most; what was not used for longest goes first.
KEPT_MAX = 200
OBJECTS = (".o", ".a", ".so")
#: Options of which the preprocessor has no use; clang's says so.
FOR_THE_LINKER = ("-l", "-L", "-Wl,", "-Werror", "-pthread", "-rdynamic", "-shared")


def compile_c(command: Sequence[str | Path]) -> None:
    """Runs such a compiler, or takes what it has made before. It gets sources, objects, options
    that stand alone, and `-o PROGRAM`. CalledProcessError if it fails, with what it says.

    Not for shared libraries that others are linked with, nor where only warnings matter.
    """
    words = [str(word) for word in command]
    at = words.index("-o")
    out = Path(words[at + 1])
    kept = KEPT / _name_of(words[:at] + words[at + 2 :], out.parent)
    try:
        shutil.copy(kept, out)
        os.utime(kept)
    except FileNotFoundError:
        _run(words)
        _keep(out, kept)


@functools.cache
def sanitized(name: str) -> Path:
    """Where the program of native/NAME is, built with sanitizers. It is kept, as make sees what is
    new."""
    folder = ROOT / "build" / f"{name}-sanitized"
    folder.mkdir(parents=True, exist_ok=True)
    # One worker at a time, or one would write what another has begun to run.
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        command = ["make", "--silent", "-C", str(ROOT / "native" / name), f"OUT={folder}"]
        subprocess.run([*command, "SANITIZE=address,undefined", "CFLAGS=-O1 -g"], check=True)
    finally:
        os.close(lock)
    return folder


def _run(words: Sequence[str]) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise subprocess.CalledProcessError(
            done.returncode, " ".join(words) + f"\n{done.stderr}", done.stdout, done.stderr
        )
    return done.stdout


def _name_of(words: Sequence[str], folder: Path) -> str:
    """The name for what these words make. `folder` is a test's own, and another in each run."""
    made_from = hashlib.sha256(_version_of(words[0]).encode())
    for word in words[1:]:
        if word.endswith(OBJECTS):
            made_from.update(Path(word).read_bytes())
        elif not word.startswith("-I") and not word.endswith(".c"):
            made_from.update(word.encode() + b"\0")
    if any(word.endswith(".c") for word in words):
        matter = [each for each in words if each != "-c" and not each.endswith(OBJECTS)]
        text = _run([*(each for each in matter if not each.startswith(FOR_THE_LINKER)), "-E"])
        made_from.update(text.replace(str(folder), "FOLDER").encode())
    return made_from.hexdigest()


@functools.cache
def _version_of(compiler: str) -> str:
    """With the number of the Debian package: another one may bring another library for it."""
    return _run([compiler, "--version"])


def _keep(made: Path, kept: Path) -> None:
    KEPT.mkdir(parents=True, exist_ok=True)
    # Whole or not at all, as others look for it meanwhile.
    with tempfile.NamedTemporaryFile(dir=KEPT, prefix=".", delete=False) as partial:
        pass
    shutil.copy(made, partial.name)
    Path(partial.name).rename(kept)
    by_age = sorted(KEPT.iterdir(), key=_last_used, reverse=True)
    for path in by_age[KEPT_MAX:]:
        path.unlink(missing_ok=True)


def _last_used(path: Path) -> float:
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_mtime
    return 0.0
