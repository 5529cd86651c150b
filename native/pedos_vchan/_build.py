"""Builds the C extension `pedos_vchan._native` (cffi in API mode, CPython's stable ABI).

It declares nothing that is declared elsewhere: _native.pyi names the functions and constants that
Python uses, and the headers of csrc have each function's prototype.
"""

import re
from pathlib import Path

from cffi import FFI

HERE = Path(__file__).parent
CSRC = HERE.parent / "csrc"

# The fields that Python sees; all others belong to C.
STRUCTURES = """
struct pv_channel;
struct pv_store;
struct pv_running { int64_t seen, lost; unsigned silent, limit; ...; };
struct pv_check;
struct pv_pump {
    uint64_t to_ring, to_fd; int why, error, unalone; struct pv_check *check; uint8_t alone; ...;
};
struct pv_call;
struct pv_crew;
struct pv_crew_news { uint64_t call; int event, number; };
struct pv_call_progress { ...; };
struct pv_call_result {
    int kind, why, error; uint32_t status, text_length; uint8_t text[...]; const char *breach; ...;
};
"""

# These declare what Python uses; the other headers are for the C files among themselves.
PUBLIC = (
    "call_crew",
    "call_fd",
    "call_frames",
    "call_keeper",
    "call_pump",
    "channel",
    "pump",
    "running",
    "service_start",
    "shm",
    "usbip",
    "xen",
    "xen_load",
)

# cffi's generated functions leave some parameters unused; our own files are compiled without this.
PREAMBLE = "\n".join(
    [
        '#pragma GCC diagnostic ignored "-Wunused-parameter"',
        '#pragma GCC diagnostic ignored "-Wmissing-field-initializers"',
        *(f'#include "{name}.h"' for name in PUBLIC),
    ]
)

XEN = ("xen", "xen_guard", "xen_load", "xen_presence", "xen_store")
CALL = (
    "call_crew",
    "call_fd",
    "call_frames",
    "call_keeper",
    "call_pump",
    "call_streams",
    "call_talk",
    "service_start",
)
RING = ("ring", "halt_poll", "channel", "shm")
PARTS = (*RING, "own_files", "pump", "usbip", "running", *CALL, *XEN)
SOURCES = [f"native/csrc/{name}.c" for name in PARTS]
HEADERS = [f"native/csrc/{path.name}" for path in sorted(CSRC.glob("*.h"))]
FLAGS = ["-std=gnu11", "-D_GNU_SOURCE", "-O2", "-Wall", "-Wextra"]


def declarations() -> str:
    """The declarations of csrc for cffi."""
    used = (HERE / "_native.pyi").read_text()
    headers = "".join((CSRC / f"{name}.h").read_text() for name in ("ring", *PUBLIC))
    constants = [f"#define {name} ..." for name in re.findall(r"^    (PV_\w+): int$", used, re.M)]
    functions = [
        prototype(name, headers) for name in re.findall(r"^    def (pv_\w+)\(", used, re.M)
    ]
    return "\n".join([STRUCTURES, *constants, *functions])


def prototype(name: str, headers: str) -> str:
    """The only one at the beginning of a line there; ValueError if there are none or several."""
    found = re.findall(rf"^\w[\w *]*\b{name}\([^()]*\);", headers, re.M)
    if len(found) != 1:
        raise ValueError(f"{name} has {len(found)} prototypes in the headers")
    return str(found[0])


ffibuilder = FFI()
ffibuilder.cdef(declarations())
ffibuilder.set_source(
    "pedos_vchan._native",
    PREAMBLE,
    sources=SOURCES,
    depends=HEADERS,
    include_dirs=["native/csrc"],
    extra_compile_args=FLAGS,
)
