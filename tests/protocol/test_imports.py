"""The rules of who may import what, derived from the imports themselves."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Sequence
from graphlib import CycleError, TopologicalSorter
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
    "pedos_protocol": {"attr"},
    "pedos_host": {"pedos_protocol", "trio"},
    "pedos_vchan": {"pedos_protocol", "pedos_host", "trio", "cffi"},
    "pedos_dom0": {"pedos_protocol", "pedos_host", "pedos_vchan", "trio", "attrs"},
    "pedos_agent": {"pedos_protocol", "pedos_host", "pedos_vchan", "trio", "attrs"},
    "pedos_keeper": {"pedos_protocol", "pedos_host"},
    "pedos_cli": {"pedos_protocol"},
    "pedos_call": {"pedos_protocol"},
    "pedos_widget": {"pedos_protocol", "pedos_host", "pedos_vchan", "pedos_cli", "trio"},
}
BESIDES = {
    # The policy's tools use the engine itself, where it is installed: in dom0, and on demand.
    "policy_engine.py": {"pedos_dom0"},
    # Each of these is the one place that knows of a library, and of what its versions differ in.
    "qt.py": {"PySide6", "PyQt6"},
    "bus.py": {"jeepney"},
    "bus_session.py": {"jeepney"},
    "daemon.py": {"jeepney"},
}


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
    files = {module: PACKAGE / f"{module}.py" for module in MODULES}
    users = {module for module, file in files.items() if "attr" in imports_of(file)}
    users |= {module for module, file in files.items() if "from .frozen" in file.read_text()}
    assert users == {
        "agent_messages",
        "assignment_messages",
        "audit_messages",
        "call_list_messages",
        "call_messages",
        "class_messages",
        "fields",
        "frozen",
        "info_messages",
        "listing_messages",
        "machine_messages",
        "messages",
        "mute_messages",
        "policy_messages",
        "schema",
        "sleep_messages",
        "vm_messages",
    }


@pytest.mark.parametrize("module", ON_THE_COMMANDS_PATH)
def test_what_a_command_imports_brings_nothing_slow(module: str) -> None:
    assert not imports_of(PACKAGE / f"{module}.py") & SLOW


def test_the_commands_client_brings_nothing_slow() -> None:
    import pedos_cli

    client = Path(str(pedos_cli.__file__)).parent / "client.py"
    assert not imports_of(client) & (SLOW | {"trio", "msgpack"})


# ARCHITECTURE.md, "dom0's service": each of these imports from its own and from those before it,
# and nothing else, also where an import is for the type checker alone.
LAYERS = (
    "__init__",
    "tasks",
    "policy",
    "audit",
    "device_classes",
    "tables",
    "errors",
    "drivers",
    "vms",
    "state",
    "access",
    "attachments",
    "calls",
    "requests",
    "connections",
    "service",
    "__main__",
)
# The machine of local mode stands beside the service: it may import what is there, and nothing
# there imports it.
BESIDE = "local"


def modules_of(package: str) -> dict[str, Path]:
    """By dotted name; a package's own is that of its `__init__`."""
    folder = Path(str(importlib.import_module(package).__file__)).parent
    modules = {}
    for path in sorted(folder.rglob("*.py")):
        parts = (package, *path.relative_to(folder).with_suffix("").parts)
        modules[".".join(parts).removesuffix(".__init__")] = path
    return modules


ALL_MODULES = {name: path for package in MAY_IMPORT for name, path in modules_of(package).items()}


def modules_imported_by(module: str) -> set[str]:
    """Which of our modules a module names in its imports, at whatever depth and for whatever end.
    The packages that one lies in are imported with it and not named."""
    path = ALL_MODULES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.rsplit(".", node.level - 1)[0] if node.level else ""
            source = ".".join(filter(None, (above, node.module)))
            for name in (f"{source}.{alias.name}" for alias in node.names):
                found.add(name if name in ALL_MODULES else source)
    return (found & ALL_MODULES.keys()) - {module}


def part_of(module: str) -> str:
    """The part of its package that a module is in."""
    return module.split(".")[1] if "." in module else "__init__"


def upward_imports(package: str, parts: Sequence[str], part: str) -> set[str]:
    """What the modules of a part import of their package that stands in no earlier part than it,
    nor in it."""
    below = parts[: parts.index(part) + 1]
    return {
        f"{module} -> {imported}"
        for module in modules_of(package)
        if part_of(module) == part
        for imported in modules_imported_by(module)
        if imported.startswith(package) and part_of(imported) not in below
    }


def test_every_part_of_dom0s_service_has_its_layer() -> None:
    parts = {part_of(module) for module in modules_of("pedos_dom0")}
    assert parts == {*LAYERS, BESIDE}


@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer_of_dom0s_service_imports_downward_only(layer: str) -> None:
    assert upward_imports("pedos_dom0", LAYERS, layer) == set()


def test_no_modules_import_each_other() -> None:
    graph = {module: modules_imported_by(module) for module in ALL_MODULES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as circle:
        pytest.fail(" imports ".join(reversed(circle.args[1])))


def loaded_by(module: str) -> set[str]:
    code = f"import {module}, sys; print(*sys.modules)"
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    return set(ran.stdout.split())


def test_importing_all_of_the_protocol_loads_neither_trio_nor_cffi() -> None:
    loaded = loaded_by("pedos_protocol.messages, pedos_protocol.connection")
    assert not loaded & {"trio", "cffi", "_cffi_backend", "pedos_host", "pedos_vchan"}


def test_an_agent_loads_no_messages_but_its_own() -> None:
    """A domain starts one at every boot, and each class costs as much as a small module."""
    loaded = {name for name in loaded_by("pedos_agent.__main__") if name.endswith("messages")}
    assert loaded == {"pedos_protocol.agent_messages", "pedos_protocol.call_messages"}


def test_local_modes_machine_loads_no_messages_but_its_own() -> None:
    """It starts before all else: who types `pedos-local up` waits for it."""
    loaded = loaded_by("pedos_dom0.local.verbs")
    assert {name for name in loaded if name.endswith("messages")} == {
        "pedos_protocol.machine_messages",
        "pedos_protocol.vm_messages",
    }
    assert not {name for name in loaded if name.startswith("pedos_dom0.tables")}


def test_a_keeper_loads_no_event_loop() -> None:
    """It is started by the first call, which waits for it; it has a thread for each."""
    assert not loaded_by("pedos_keeper.__main__") & {"trio", "attr", "asyncio", "pedos_vchan"}


def test_importing_the_commands_client_does_not_load_what_is_slow() -> None:
    before = loaded_by("sys")  # an editable installation loads a good deal by itself
    loaded = loaded_by("pedos_cli.client") - before
    assert not loaded & {"trio", "cffi", "attr", "dataclasses", "socket", "selectors", "logging"}
