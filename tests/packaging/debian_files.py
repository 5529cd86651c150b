"""Reads debian/ for the tests: control's paragraphs, what each package holds, the unit files."""

from __future__ import annotations

import importlib.util
import re
import sys
import tomllib
from pathlib import Path
from types import ModuleType

PROJECT = Path(__file__).resolve().parents[2]
DEBIAN = PROJECT / "debian"
#: Those with Python in them, and all.
PYTHON_PACKAGES = ("pedos-common", "pedos-agent", "pedos-dom0", "pedos-widget")
BINARY_PACKAGES = (
    "pedos-common", "pedos-agent", "pedos-qrexec", "pedos-dom0", "pedos-sound", "pedos-widget",
)  # fmt: skip
UNITS = {
    "pedos-agent": DEBIAN / "pedos-agent.service",
    "pedos-dom0": DEBIAN / "pedos-dom0.service",
    "pedos-dom0-agent": DEBIAN / "pedos-dom0.pedos-dom0-agent.service",
}


#: A keeper of each user, which the first call starts.
KEEPERS = {
    "pedos-run": DEBIAN / "pedos-agent.pedos-run@.service",
    "pedos-run.socket": DEBIAN / "pedos-agent.pedos-run@.socket",
}
#: The units that are no daemon.
ONE_SHOTS = {"pedos-dom0-sleep": DEBIAN / "pedos-dom0.pedos-dom0-sleep.service"}
#: Those of users' sessions.
USERS = {"pedos-sound": DEBIAN / "pedos-sound.user.service"}


def load_programs() -> ModuleType:
    """debian/programs.py, which is no module of any package."""
    spec = importlib.util.spec_from_file_location("debian_programs", DEBIAN / "programs.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # No folder of bytecode beside it: debian/ goes into the package's sources as it is.
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        spec.loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = before
    return module


def paragraphs() -> list[dict[str, str]]:
    """The paragraphs of debian/control, source first; ValueError for a line that is none."""
    found: list[dict[str, str]] = []
    for text in re.split(r"\n\n+", (DEBIAN / "control").read_text().strip()):
        fields: dict[str, str] = {}
        last = ""
        for line in text.split("\n"):
            if line.startswith("#"):
                continue
            if line.startswith(" ") and last:
                fields[last] += "\n" + line[1:]
                continue
            last, colon, value = line.partition(":")
            if not colon or last in fields:
                raise ValueError(f"debian/control: {line!r}")
            fields[last] = value.strip()
        found.append(fields)
    return found


def related(package: str, field: str = "Depends") -> set[str]:
    """Names in a relation field, alternatives too, without versions and substitutions."""
    [paragraph] = [each for each in paragraphs() if each.get("Package") == package]
    words = re.split(r"[,|\n]", paragraph.get(field, ""))
    names = {re.sub(r"\(.*\)", "", word).strip() for word in words}
    return {name for name in names if name and not name.startswith("${")}


def pyproject() -> dict[str, object]:
    """pyproject.toml."""
    return tomllib.loads((PROJECT / "pyproject.toml").read_text())


def settings(unit: str) -> dict[str, list[str]]:
    """Key -> values of a unit file, continued lines joined; the sections do not share keys."""
    text = {**UNITS, **ONE_SHOTS, **USERS, **KEEPERS}[unit].read_text().replace("\\\n", " ")
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line and line[0] not in "#[":
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(" ".join(value.split()))
    return found
