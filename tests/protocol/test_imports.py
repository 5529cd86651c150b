"""The rules of who may import what, read out of the code itself."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pedos_protocol
import pytest

PACKAGE = Path(pedos_protocol.__file__).parent
MODULES = sorted(path.stem for path in PACKAGE.glob("*.py"))
ON_THE_COMMANDS_PATH = [
    "device_classes",
    "names",
    "codec",
    "events",
    "connection",
    "errors",
    "__init__",
]
IMPORTERS = ("__import__", "import_module")
SLOW = {"attr", "attrs", "typing", "dataclasses", "enum", "re", "socket", "logging", "json"}


def is_type_checking(node: ast.stmt) -> bool:
    return (
        isinstance(node, ast.If)
        and isinstance(node.test, ast.Name)
        and node.test.id == "TYPE_CHECKING"
    )


def imports_of(path: Path) -> set[str]:
    """The top-level packages that a module imports when it runs, at whatever depth."""
    found = set()
    todo: list[ast.AST] = [ast.parse(path.read_text())]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(str(node.module).split(".")[0])
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(IMPORTERS):
            found.add(ast.unparse(node))
        todo += [
            child
            for child in ast.iter_child_nodes(node)
            if not (isinstance(child, ast.stmt) and is_type_checking(child))
        ]
    return found


@pytest.mark.parametrize("module", MODULES)
def test_the_protocol_does_no_input_or_output(module: str) -> None:
    assert not imports_of(PACKAGE / f"{module}.py") & {"os", "posix", "socket"}


# ARCHITECTURE.md, "Components": what each may import beside the standard library and itself.
MAY_IMPORT = {
    "pedos_protocol": {"msgpack", "attr"},
    "pedos_vchan": {"pedos_protocol", "trio", "cffi"},
    "pedos_dom0": {"pedos_protocol", "pedos_vchan", "trio", "attrs"},
    "pedos_agent": {"pedos_protocol", "pedos_vchan", "trio", "attrs"},
    "pedos_cli": {"pedos_protocol"},
}
# The policy's tools use the engine itself, where it is installed: in dom0, and when they are asked.
BESIDES = {"policy_engine.py": {"pedos_dom0"}}


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_a_component_imports_only_what_the_architecture_lets_it(package: str) -> None:
    folder = Path(str(importlib.import_module(package).__file__)).parent
    allowed = set(sys.stdlib_module_names) | {package} | MAY_IMPORT[package]
    modules = sorted(folder.rglob("*.py"))
    assert modules
    strangers = {
        path.name: imports_of(path) - allowed - BESIDES.get(path.name, set()) for path in modules
    }
    assert {name: found for name, found in strangers.items() if found} == {}


def test_attrs_is_imported_by_messages_alone() -> None:
    users = {module for module in MODULES if "attr" in imports_of(PACKAGE / f"{module}.py")}
    assert users == {
        "agent_messages",
        "fields",
        "machine_messages",
        "messages",
        "policy_messages",
        "schema",
    }


@pytest.mark.parametrize("module", ON_THE_COMMANDS_PATH)
def test_what_a_command_imports_brings_nothing_slow(module: str) -> None:
    assert not imports_of(PACKAGE / f"{module}.py") & SLOW


def test_the_commands_client_brings_nothing_slow() -> None:
    import pedos_cli

    client = Path(str(pedos_cli.__file__)).parent / "client.py"
    assert not imports_of(client) & (SLOW | {"trio", "msgpack"})


def loaded_by(module: str) -> set[str]:
    code = f"import {module}, sys; print(*sys.modules)"
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    return set(ran.stdout.split())


def test_importing_all_of_the_protocol_loads_neither_trio_nor_cffi() -> None:
    loaded = loaded_by("pedos_protocol.messages, pedos_protocol.connection")
    assert not loaded & {"trio", "cffi", "_cffi_backend", "pedos_vchan"}


def test_an_agent_loads_no_messages_but_its_own() -> None:
    """A domain starts one at every boot, and each class costs as much as a small module."""
    loaded = {name for name in loaded_by("pedos_agent.__main__") if name.endswith("messages")}
    assert loaded == {"pedos_protocol.agent_messages"}


def test_importing_the_commands_client_does_not_load_what_is_slow() -> None:
    before = loaded_by("sys")  # an editable installation loads a good deal by itself
    loaded = loaded_by("pedos_cli.client") - before
    assert not loaded & {"trio", "cffi", "attr", "dataclasses", "socket", "selectors", "logging"}
