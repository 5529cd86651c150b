"""Builds the programs of this folder; as a program, runs them for as long as one likes.

python -m tests.hostile.build [SECONDS]     fuzzes each of FUZZERS (600 s if not said)
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.compiled import compile_c

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CSRC = ROOT / "native" / "csrc"
WIRE = ROOT / "native" / "wire"
CALL = ROOT / "native" / "call"
SOUND = ROOT / "native" / "sound"
BUILD = ROOT / "build"
INCLUDE = f"-I{CSRC}"
FLAGS = ["-std=gnu11", "-D_GNU_SOURCE", "-O1", "-g", "-Wall", "-Wextra", "-Werror"]

SANITIZERS = {
    "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover"],
    # gcc's warns that it does not model fences. They are not what orders bytes here (acquire and
    # release are); tests/interleave is about them.
    "thread": ["-fsanitize=thread", "-Wno-tsan"],
}


FUZZING = [
    "-Wno-gnu-variable-sized-type-not-at-end",
    "-fsanitize=fuzzer,address,undefined",
    "-fno-sanitize-recover=all",
]


# Bytes of what libFuzzer makes up. Frames reach the bounds of a list's entries and of depth with
# that; for those that need more, test_fuzz.py runs payloads that stand right at each bound.
PAGE_LENGTH = 512
FRAME_LENGTH = 4096
USBIP_LENGTH = 1024
CALL_LENGTH = 1024
SOUND_LENGTH = 2048
PACKET_LENGTH = 2048


def peer(directory: Path) -> Path:
    """The hostile peer, as fast as it can be."""
    program = directory / "peer"
    compile_c(["gcc", *FLAGS, "-O2", HERE / "peer.c", "-o", program])
    return program


def victim(directory: Path, sanitizer: str) -> Path:
    """Our side under one of SANITIZERS."""
    program = directory / f"victim-{sanitizer}"
    sources = [
        CSRC / f"{name}.c" for name in ("ring", "halt_poll", "channel", "shm", "own_files", "pump")
    ]
    command: list[str | Path] = ["gcc", *FLAGS, INCLUDE, *SANITIZERS[sanitizer]]
    command += [HERE / "victim.c", *sources, "-pthread", "-o", program]
    compile_c(command)
    return program


CALL_PARTS = (
    "call_fd",
    "call_frames",
    "call_keeper",
    "call_pump",
    "call_streams",
    "call_talk",
)


def call_victim(directory: Path, sanitizer: str) -> Path:
    """Our end of a call under one of SANITIZERS, with a hostile process of its own."""
    program = directory / f"call-victim-{sanitizer}"
    parts = ("ring", "halt_poll", "channel", "shm", *CALL_PARTS)
    command: list[str | Path] = ["gcc", *FLAGS, INCLUDE, *SANITIZERS[sanitizer]]
    command += [HERE / "call_victim.c", *(CSRC / f"{name}.c" for name in parts)]
    compile_c([*command, "-pthread", "-o", program])
    return program


def clang() -> str | None:
    """A clang that brings libFuzzer, if there is one."""
    found = shutil.which("clang")
    if found is None:
        return None
    # Not --print-runtime-dir: Debian 13's names a folder that is not there.
    asked = [found, f"-print-file-name=libclang_rt.fuzzer-{os.uname().machine}.a"]
    answer = subprocess.run(asked, stdout=subprocess.PIPE, text=True, check=True).stdout
    return found if Path(answer.strip()).is_absolute() else None


def unchanged_parts(directory: Path, compiler: str) -> list[Path]:
    """What of libFuzzer's program no mutant changes, compiled for many of them."""
    parts = []
    for name in ("halt_poll", "channel"):
        parts.append(directory / f"{name}.o")
        command = [compiler, *FLAGS, *FUZZING, INCLUDE, "-c", CSRC / f"{name}.c", "-o", parts[-1]]
        compile_c(command)
    return parts


def fuzzer(directory: Path, compiler: str, parts: Sequence[Path] = ()) -> Path:
    """libFuzzer's program for the shared page; a ring.c that stands in directory comes first."""
    program = directory / "fuzz_page"
    parts = parts or unchanged_parts(directory, compiler)
    command: list[str | Path] = [compiler, *FLAGS, *FUZZING, f"-I{directory}", INCLUDE]
    compile_c([*command, HERE / "fuzz_page.c", *parts, "-o", program])
    return program


WIRE_PARTS = ("connection", "events", "forms", "packets", "read", "turn", "values", "write")


def _for_wire(compiler: str, directory: Path) -> list[str | Path]:
    """The compiler with all that it needs for frames; sources in directory come first."""
    includes = [
        f"-I{directory}",
        f"-I{WIRE}",
        "-isystem",
        str(sysconfig.get_config_var("INCLUDEPY")),
    ]
    defines = ["-DPy_LIMITED_API=0x030B0000", f'-DPROTOCOL="{ROOT / "protocol"}"']
    return [compiler, *FLAGS, *FUZZING, *defines, *includes]


def unchanged_wire_parts(directory: Path, compiler: str) -> dict[str, Path]:
    """The parts of libFuzzer's program for frames, compiled for many mutants, as each changes one
    of them."""
    sources = [HERE / "fuzz_wire.c", *(WIRE / f"{name}.c" for name in WIRE_PARTS)]
    parts = {source.stem: directory / f"{source.stem}.o" for source in sources}
    for source in sources:
        command = [*_for_wire(compiler, directory), "-c", source, "-o", parts[source.stem]]
        compile_c(command)
    return parts


def wire_fuzzer(directory: Path, compiler: str, parts: Mapping[str, Path] | None = None) -> Path:
    """libFuzzer's program for frames, with Python; sources in directory come first."""
    program = directory / "fuzz_wire"
    python = sysconfig.get_config_vars()
    library = f"python{python['LDVERSION']}"
    where = [f"-L{python['LIBDIR']}", f"-Wl,-rpath,{python['LIBDIR']}", f"-l{library}"]
    parts = parts or unchanged_wire_parts(directory, compiler)
    changed = {path.stem: path for path in directory.glob("*.c")}
    built = [changed.get(name, part) for name, part in parts.items()]
    compile_c([*_for_wire(compiler, directory), *built, "-o", program, *where])
    return program


def usbip_fuzzer(directory: Path, compiler: str) -> Path:
    """libFuzzer's program for USB/IP streams; a usbip.c that stands in directory comes first."""
    program = directory / "fuzz_usbip"
    command: list[str | Path] = [compiler, *FLAGS, *FUZZING, f"-I{directory}", INCLUDE]
    compile_c([*command, HERE / "fuzz_usbip.c", "-o", program])
    return program


def call_fuzzer(directory: Path, compiler: str) -> Path:
    """libFuzzer's program for the pump of a call; sources in directory come first."""
    program = directory / "fuzz_call"
    parts = [CSRC / f"{name}.c" for name in ("ring", "halt_poll", "channel")]
    command: list[str | Path] = [compiler, *FLAGS, *FUZZING, f"-I{directory}", INCLUDE]
    compile_c([*command, HERE / "fuzz_call.c", *parts, "-o", program])
    return program


def packet_fuzzer(directory: Path, compiler: str) -> Path:
    """libFuzzer's program for what qvm-call reads; a packet.c in directory comes first."""
    program = directory / "fuzz_packet"
    command: list[str | Path] = [compiler, *FLAGS, *FUZZING, f"-I{directory}", f"-I{CALL}"]
    compile_c([*command, HERE / "fuzz_packet.c", "-o", program])
    return program


def sound_fuzzer(directory: Path, compiler: str) -> Path:
    """libFuzzer's program for what pedos-sound reads; sources in directory come first."""
    program = directory / "fuzz_sound"
    command: list[str | Path] = [compiler, *FLAGS, *FUZZING, f"-I{directory}", f"-I{SOUND}"]
    compile_c([*command, HERE / "fuzz_sound.c", "-o", program])
    return program


def sound_answers(directory: Path) -> Path:
    """What says how pedos-sound reads bytes, under the sanitizers."""
    program = directory / "answers"
    sources = [SOUND / f"{name}.c" for name in ("text", "frames", "link")]
    command: list[str | Path] = ["gcc", *FLAGS, f"-I{SOUND}", *SANITIZERS["address"]]
    command.append(ROOT / "tests" / "sound" / "answers.c")
    compile_c([*command, *sources, "-o", program])
    return program


#: What each reads: the shared page, frames, USB/IP streams, frames of calls, messages of the call
#: socket, messages and frames of sound; and how long its inputs are.
FUZZERS = (
    (fuzzer, PAGE_LENGTH),
    (wire_fuzzer, FRAME_LENGTH),
    (usbip_fuzzer, USBIP_LENGTH),
    (call_fuzzer, CALL_LENGTH),
    (packet_fuzzer, PACKET_LENGTH),
    (sound_fuzzer, SOUND_LENGTH),
)


def main(seconds: str = "600") -> int:
    """Fuzzes each so long, on all processors; finds stay in build/corpus-*, crashes beside it."""
    compiler = clang()
    if compiler is None:
        print("no clang with libFuzzer here: install clang and libclang-rt-dev")
        return 1
    for build, length in FUZZERS:
        corpus = BUILD / f"corpus-{build.__name__}"
        corpus.mkdir(parents=True, exist_ok=True)
        limits = [f"-max_total_time={seconds}", f"-artifact_prefix={BUILD}/", f"-max_len={length}"]
        status = subprocess.run([build(BUILD, compiler), corpus, *limits], check=False).returncode
        if status != 0:
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
