"""Pure C of native/sound as a library for tests: compiled, with what its header declares."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

from cffi import FFI

from tests.compiled import compile_c

SOUND = Path(__file__).parents[2] / "native" / "sound"
FLAGS = ["-std=c11", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
_STRUCTURE = re.compile(r"^struct \w+ \{[^}]*_Atomic[^}]*\};$", re.MULTILINE)
_INLINE = re.compile(r"^static inline [^;]*?\n\{\n.*?^\}$", re.MULTILINE | re.DOTALL)
_DEFINE = re.compile(r"^#define (\w+) (.+)$", re.MULTILINE)


def constants(header: str) -> dict[str, float]:
    """The numbers that a header defines, as C has them; a macro of another kind is left out."""
    known: dict[str, float] = {}
    for name, text in _DEFINE.findall((SOUND / header).read_text()):
        expression = re.sub(r"\b(\d+)u\b", r"\1", re.sub(r"/\*.*", "", text)).replace("/", "//")
        try:
            known[name] = eval(expression, {}, dict(known))
        except (NameError, SyntaxError):
            continue
    return known


def library(folder: Path, name: str, *others: str) -> tuple[FFI, SimpleNamespace]:
    """native/sound/NAME.c, built in the folder with `others` that it uses; the library has its
    functions and constants."""
    built = folder / f"{name}.so"
    sources = [SOUND / f"{each}.c" for each in (name, *others)]
    compile_c(["gcc", *FLAGS, "-o", built, *sources, "-lm"])
    ffi = FFI()
    # A structure with atomic members is opaque to cffi; inline functions are not in the library.
    header = _INLINE.sub("", _STRUCTURE.sub("", (SOUND / f"{name}.h").read_text()))
    ffi.cdef("\n".join(line for line in header.splitlines() if not line.startswith("#")))
    opened = ffi.dlopen(str(built))
    functions = {each: getattr(opened, each) for each in dir(opened)}
    return ffi, SimpleNamespace(**functions, **constants(f"{name}.h"))
