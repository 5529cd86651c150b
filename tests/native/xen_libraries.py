"""Builds the stand-in Xen as libraries under the names of the real ones.

A program that has them loaded, or finds them first, gives them to Debian's unmodified libxenvchan
and to our xen*.c alike.
"""

from __future__ import annotations

import ctypes
import subprocess
from typing import TYPE_CHECKING, Any

import trio

from tests.interop import program as interop

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

INTEROP = interop.HERE
HERE = INTEROP.parent / "native"
CSRC = interop.CSRC
FLAGS = interop.FLAGS
PARTS = sorted(path.stem for path in CSRC.glob("xen*.c"))

# The name that is asked for, and the versions that libxenvchan wants to see in it.
STANDS_FOR = {
    "libxenevtchn.so.1": "VERS_1.0",
    "libxengnttab.so.1": "VERS_1.0",
    "libxencall.so.1": "VERS_1.0",
    "libxenstore.so.4": "VERS_4.0",
}


def build(folder: Path) -> Path:
    """A folder with the libraries."""
    library = folder / "libstandin.so"
    shared = ["gcc", *FLAGS, "-fPIC", "-shared"]
    subprocess.run(
        [*shared, f"-I{INTEROP}", HERE / "xen_standin.c", "-pthread", "-o", library], check=True
    )
    empty = folder / "empty.c"
    empty.write_text("")
    for name, version in STANDS_FOR.items():
        script = folder / f"{name}.versions"
        script.write_text(f"{version} {{ }};\n")
        links = [f"-Wl,-soname,{name}", f"-Wl,--version-script={script}", "-Wl,--no-as-needed"]
        where = [f"-L{folder}", "-lstandin", "-Wl,-rpath,$ORIGIN"]
        subprocess.run([*shared, empty, *links, *where, "-o", folder / name], check=True)
    return folder


def load(folder: Path) -> ctypes.CDLL:
    """Puts them before the real ones in this process, and gives the stand-in."""
    for name in STANDS_FOR:
        ctypes.CDLL(str(folder / name), mode=ctypes.RTLD_GLOBAL)
    return ctypes.CDLL(str(folder / "libstandin.so"))


def in_domain(standin: ctypes.CDLL) -> Callable[..., Awaitable[Any]]:
    """What takes the place of `xen._in_thread`: the stand-in keeps all domains in one process, so
    each call is made for the domain that it names first."""

    async def call_there(call: Any, *arguments: Any) -> Any:
        await trio.lowlevel.checkpoint()
        if isinstance(arguments[0], int):
            standin.standin_enter(arguments[0])
        return call(*arguments)

    return call_there


def build_interop(folder: Path) -> Path:
    """The interop program with our xen*.c in the place of its own way to attach."""
    source = (INTEROP / "interop.c").read_text()
    there = "/local/domain/7/data/vchan/3"
    assert source.count(f'"{there}"') == 1
    changed = folder / "interop.c"
    changed.write_text(source.replace(there, f"{there}/1"))
    program = folder / "interop"
    ours = [CSRC / f"{name}.c" for name in ("ring", "halt_poll", "channel", *PARTS)]
    libraries = [folder / name for name in STANDS_FOR]
    # The stand-in's names have no versions: enough for the loader, not for the linker.
    command = ["gcc", *FLAGS, f"-I{CSRC}", f"-I{INTEROP}", changed, HERE / "xen_attach.c", *ours]
    command += [
        "-Wl,--allow-shlib-undefined",
        "-Wl,--no-as-needed",
        *libraries,
        folder / "libstandin.so",
        f"-Wl,-rpath,{folder}",
    ]
    subprocess.run([*command, "-lxenvchan", "-pthread", "-o", program], check=True)
    return program
