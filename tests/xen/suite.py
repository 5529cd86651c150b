"""The Debian release of the bench, and what is built for it, in a build system of that release.

The project's packages and the bench's C programs are made with the release's own compiler, Python
and Xen libraries, whatever this machine runs: an extension for another Python is not found, and the
name of libxenvchan changes with each Xen. The build system is made once, and kept.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from .programs import NotPossibleError, run

if TYPE_CHECKING:
    from collections.abc import Iterable

HERE = Path(__file__).parent
ROOT = HERE.parents[1]

#: Debian 13 and 12; the first is what runs when nothing else is said.
SUITES = ("trixie", "bookworm")
SUITE = os.environ.get("PEDOS_XEN_SUITE") or SUITES[0]
CACHE = ROOT / "build" / "xen-cache" / SUITE

#: Beside what debian/control says: what dpkg-buildpackage takes for granted.
BUILD_PACKAGES = ("build-essential",)
#: What stands in a checkout and is no source.
NO_SOURCES = ("./.git", "./.venv*", "./build", "__pycache__", "*.so", "*.egg-info")

# In namespaces that end with the command, so nothing is left mounted, nor goes on. What is left of
# a root may then be removed: a /proc or /dev that is still mounted below it is this machine's own.
OWN = ("unshare", "--mount", "--propagation=private", "--pid", "--fork", "--kill-child")
ENTER = """mount -t proc proc "$1/proc"
exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 HOME=/root chroot "$@"
"""


def check_suite() -> None:
    """NotPossibleError if SUITE names none that the bench knows."""
    if SUITE not in SUITES:
        raise NotPossibleError(f"SUITE={SUITE}: the bench knows {' and '.join(SUITES)}")


def digest(parts: Iterable[bytes]) -> str:
    """A name for what is made of these."""
    total = hashlib.sha256()
    for part in parts:
        total.update(hashlib.sha256(part).digest())
    return total.hexdigest()[:16]


def fetched(name: str, ending: str, packages: Iterable[str], *options: str) -> Path:
    """A system with these packages, as a tarball or a folder; made when it is not there yet."""
    wanted = CACHE / f"{name}-{digest([' '.join([*packages, *options]).encode()])}{ending}"
    if wanted.exists():
        return wanted
    for old in CACHE.glob(f"{name}-*"):
        shutil.rmtree(old) if old.is_dir() else old.unlink()
    print(f"bench: fetching Debian packages of {SUITE} (kept for the next time)", flush=True)
    half = CACHE / f"{name}-half{ending}"
    run(
        *OWN,
        "mmdebstrap",
        "--variant=minbase",
        "--mode=root",
        f"--format={ending.removeprefix('.') or 'directory'}",
        "--dpkgopt=path-exclude=/usr/share/man/*",
        "--dpkgopt=path-exclude=/usr/share/locale/*",
        "--dpkgopt=path-exclude=/usr/share/doc/*",
        *options,
        f"--include={','.join(packages)}",
        SUITE,
        half,
        # The initramfs of the kernel's package is made by hand: a twentieth in size and time.
        env={**os.environ, "INITRD": "No"},
    )
    half.rename(wanted)
    return wanted


def build_system() -> Path:
    """Its root, with the checkout's sources as they are now in /src."""
    control = (ROOT / "debian/control").read_text()
    depends = re.search(r"^Build-Depends:((?:\n? .*)*)", control, re.MULTILINE)
    assert depends
    names = [part.split()[0].removesuffix(":any") for part in depends[1].split(",") if part.strip()]
    root = fetched("builder", "", (*BUILD_PACKAGES, *names))
    sources = root / "src"
    sources.mkdir(exist_ok=True)
    for old in sources.iterdir():
        if old.name != "build":  # what was made of them, with its stamp
            shutil.rmtree(old) if old.is_dir() else old.unlink()
    pack = ["tar", "-C", str(ROOT), "-c", *(f"--exclude={name}" for name in NO_SOURCES), "."]
    script = 'target=$1; shift; "$@" | tar -x -C "$target"'
    run("sh", "-c", script, "sh", sources, *pack)
    return root


def enter(root: Path, *command: str | Path) -> str:
    """Runs a program in a root; what it writes."""
    return run(*OWN, "sh", "-euc", ENTER, "sh", root, *command)


def build_packages(builder: Path) -> list[Path]:
    """The project's packages, less the widget, for which no domain has a desktop; only built when
    the sources have changed."""
    enter(builder, "/src/debian/build-packages")
    built = sorted((builder / "src/build/deb").glob("*.deb"))
    return [package for package in built if not package.name.startswith("pedos-widget_")]


def compile_program(builder: Path, name: str, libraries: Iterable[str], target: Path) -> None:
    """One of inside/*.c."""
    flags = ["-std=gnu11", "-D_GNU_SOURCE", "-O2", "-Wall", "-Wextra", "-Werror"]
    made = Path("/src/build") / name
    enter(builder, "gcc", *flags, f"/src/tests/xen/inside/{name}.c", *libraries, "-o", made)
    shutil.copy(builder / made.relative_to("/"), target)
