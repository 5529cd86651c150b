"""The agent's modules import downward only, and without circles: derived from the imports."""

from __future__ import annotations

import ast
import functools
from graphlib import TopologicalSorter
from pathlib import Path

import pedos_agent
import pytest
from pedos_agent.device_classes.registered import CLASSES

PACKAGE = Path(str(pedos_agent.__file__)).parent
# From the bottom to the top.
LAYERS = [
    "settings",
    "system",
    "inventory",
    "device_classes",
    "attachments",
    "calls",
    "connections",
    "agent",
    "__main__",
]
FOLDERS = {each.name for each in CLASSES}
REGISTERED = "device_classes.registered"


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


MODULES = {module_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


@functools.cache
def imports_of(module: str) -> set[str]:
    """The agent's own modules that a module imports, at whatever depth."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module} has a relative import, which is not read here"
            parts = str(node.module).split(".")
            if parts[0] == pedos_agent.__name__:
                base = ".".join(parts[1:])
                names = (f"{base}.{each.name}".lstrip(".") for each in node.names)
                found |= {name if name in MODULES else base for name in names}
    return found


def folder_of(module: str) -> str | None:
    """The class in whose folder a module stands."""
    first, _, rest = module.partition(".")
    name = rest.partition(".")[0]
    return name if first == "device_classes" and name in FOLDERS else None


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_downward(module: str) -> None:
    layer = module.split(".")[0]
    if layer == "__init__":
        return
    allowed = LAYERS[: LAYERS.index(layer) + 1]
    assert {name for name in imports_of(module) if name.split(".")[0] not in allowed} == set()


def test_there_are_no_circles() -> None:
    TopologicalSorter({module: imports_of(module) for module in MODULES}).prepare()


@pytest.mark.parametrize("module", MODULES)
def test_a_class_is_known_to_its_own_folder_and_the_table_alone(module: str) -> None:
    if module == REGISTERED:
        return
    known = {folder for name in imports_of(module) if (folder := folder_of(name)) is not None}
    assert known <= {folder_of(module)}


def test_each_class_has_a_folder_and_each_folder_a_class() -> None:
    folders = {path.name for path in (PACKAGE / "device_classes").iterdir() if path.is_dir()}
    assert folders - {"__pycache__"} == FOLDERS
