"""debian/ agrees with the code, without building anything."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pedos_protocol
import pytest
from pedos_cli.answers import DONE, INTERRUPTED, PIPE_CLOSED
from pedos_cli.qvm_device import ACTIONS, actions_of
from pedos_dom0.local.bringup import TOOLS
from pedos_protocol.device_classes import class_named
from pedos_protocol.errors import EXIT_STATUS

from .debian_files import (
    BINARY_PACKAGES,
    DEBIAN,
    PROJECT,
    PYTHON_PACKAGES,
    load_programs,
    paragraphs,
    pyproject,
    related,
)

programs = load_programs()

# Which Debian package has what is imported.
DEBIAN_NAMES = {
    "attr": "python3-attr",
    "attrs": "python3-attr",
    "cffi": "python3-cffi-backend",
    "jeepney": "python3-jeepney",
    "PyQt6": "python3-pyqt6",
    "PySide6": "python3-pyside6.qtwidgets",
    "pyudev": "python3-pyudev",
    "trio": "python3-trio",
}
# Imported where it is, and said to be missing where it is not: by the module that is named.
OPTIONAL = {("policy_engine.py", "pedos_dom0")}
# Debian's Essential packages among those that contain what we run: no package declares a dependency
# on them.
ESSENTIAL = {"util-linux"}
SOUND = PROJECT / "native/sound"
CALL = PROJECT / "native/call"
FOLDERS = {
    name: PROJECT / str(path)
    for name, path in pyproject()["tool"]["setuptools"]["package-dir"].items()  # type: ignore[index]
}


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def imports(tree: ast.AST, *, in_functions: bool = True) -> Iterator[str]:
    """Top-level names of what a module imports when it runs."""
    for node in ast.iter_child_nodes(tree):
        if is_type_checking(node):
            continue
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not in_functions:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield str(node.module).split(".")[0]
        yield from imports(node, in_functions=in_functions)


def modules(package: str) -> Iterator[Path]:
    """The modules of a Debian package that are installed."""
    for name, folder in FOLDERS.items():
        if programs.DEBIAN_PACKAGES[name] == package:
            yield from (path for path in folder.rglob("*.py") if path.name != "_build.py")


def test_control_has_the_source_and_the_packages() -> None:
    source, *binaries = paragraphs()
    assert source["Source"] == "pedos-devices"
    assert tuple(each["Package"] for each in binaries) == BINARY_PACKAGES
    assert all(each["Description"].count("\n") > 2 for each in binaries)


def test_the_manual_has_the_examples_of_every_action_and_each_exit_status() -> None:
    parser = programs.parser_in("pedos_cli.qvm_device")
    examples, statuses = programs.manual_sections(parser, "pedos_cli.qvm_device")
    assert examples["heading"] == "examples"
    for action in ACTIONS:
        device_class = "block" if action in actions_of(class_named("block")) else "mic"
        assert f"qvm-device {device_class} {action} " in examples["content"]
    told = {int(line.split()[0]) for line in statuses["content"].splitlines()}
    assert told == {DONE, INTERRUPTED, PIPE_CLOSED, *EXIT_STATUS.values()}
    assert "exit status" not in str(programs.manual_sections(parser, "pedos_dom0.__main__"))


def test_one_version_everywhere() -> None:
    first = (DEBIAN / "changelog").read_text().split("\n", 1)[0]
    version = pyproject()["project"]["version"]  # type: ignore[index]
    assert re.fullmatch(rf"pedos-devices \({re.escape(version)}\) trixie; urgency=\w+", first)
    assert version == pedos_protocol.VERSION
    for program in (SOUND, CALL):
        assert f"\nVERSION ?= {version}\n" in (program / "Makefile").read_text()


def test_the_manual_of_pedos_sound_has_the_options_that_its_help_has() -> None:
    [told] = re.findall(r'HELP\[\] =\n(.*?)";\n', (SOUND / "options.c").read_text(), re.DOTALL)
    page = (SOUND / "pedos-sound.1").read_text().replace("\\-", "-")
    assert set(re.findall(r"--[a-z]+", told)) - {"--user"} == set(re.findall(r"--[a-z]+", page)) - {
        "--user"
    }


def test_the_manual_of_qvm_call_has_the_options_that_its_help_has() -> None:
    [told] = re.findall(r'HELP\[\] =\n(.*?)";\n', (CALL / "options.c").read_text(), re.DOTALL)
    page = (CALL / "qvm-call.1").read_text().replace("\\-", "-")
    assert set(re.findall(r"--[a-z-]+", told)) == set(re.findall(r"--[a-z-]+", page))
    known = re.findall(r'^    \{"([a-z-]+)", ', (CALL / "options.c").read_text(), re.MULTILINE)
    assert {f"--{name}" for name in known} <= set(re.findall(r"--[a-z-]+", told))


@pytest.mark.parametrize("package", PYTHON_PACKAGES)
def test_a_package_depends_on_all_that_its_code_imports(package: str) -> None:
    wanted = {}
    for path in modules(package):
        for name in imports(ast.parse(path.read_text())):
            debian = programs.DEBIAN_PACKAGES.get(name) or DEBIAN_NAMES.get(name)
            if name in sys.stdlib_module_names or debian == package:
                continue
            if (path.name, name) not in OPTIONAL:
                wanted[debian or f"the Debian package of {name}"] = path.name
    assert wanted.keys() - related(package) == set(), wanted


def test_the_c_extension_finds_its_runtime() -> None:
    # No import says so: the extension itself loads _cffi_backend.
    assert "python3-cffi-backend" in related("pedos-common")


def test_optional_imports_are_suggested() -> None:
    assert "pedos-dom0" in related("pedos-common", "Suggests")


def test_a_template_gets_no_code_of_dom0() -> None:
    reached, todo = set[str](), ["pedos-agent"]
    while todo:
        package = todo.pop()
        reached.add(package)
        if package in BINARY_PACKAGES:
            fields = ("Pre-Depends", "Depends", "Recommends")
            todo += set().union(*(related(package, field) for field in fields)) - reached
    assert "pedos-dom0" not in reached
    names = {
        name for path in modules("pedos-agent") for name in imports(ast.parse(path.read_text()))
    }
    assert "pedos_dom0" not in names


def test_a_template_gets_no_disk_servers() -> None:
    # On Xen the kernels carry blocks. nbdkit brings, among others, a BitTorrent library.
    assert not related("pedos-agent") & {"nbdkit", "libnbd-bin", "fuse3"}


def test_a_vm_without_sound_gets_no_sound_server() -> None:
    fields = ("Depends", "Recommends")
    brought = set().union(*(related(each, field) for each in PYTHON_PACKAGES for field in fields))
    assert not brought & {"pedos-sound", "pipewire-pulse", "pulseaudio"}
    assert {"pipewire-pulse", "pulseaudio"} <= related("pedos-sound", "Recommends")
    for package in ("pedos-agent", "pedos-dom0"):
        assert "pedos-sound" in related(package, "Suggests")


def test_local_modes_programs_come_with_dom0() -> None:
    brought = related("pedos-dom0") | related("pedos-dom0", "Recommends")
    assert set(TOOLS.values()) - ESSENTIAL <= brought


@pytest.mark.parametrize("name", ["pedos_agent", "pedos_vchan", "pedos_host", "pedos_protocol"])
def test_an_agent_that_outlives_its_files_has_imported_all_it_needs(name: str) -> None:
    # An upgrade leaves it running. What it imported later would be of another version.
    for path in FOLDERS[name].rglob("*.py"):
        tree = ast.parse(path.read_text())
        late = sorted(imports(tree)) != sorted(imports(tree, in_functions=False))
        assert not late, f"{path.name} imports within a function"


def test_each_program_is_in_one_package() -> None:
    held = [name for package in PYTHON_PACKAGES for name in programs.programs_of(package)]
    scripts = pyproject()["project"]["scripts"]  # type: ignore[index]
    assert sorted(held) == sorted(scripts)


def test_each_python_package_is_installed_once() -> None:
    installed = {
        Path(line).name: package
        for package in PYTHON_PACKAGES
        for line in (DEBIAN / f"{package}.install").read_text().split()
        if "dist-packages" in line
    }
    assert installed == programs.DEBIAN_PACKAGES
    assert FOLDERS.keys() == installed.keys()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_shell_completes_every_program_of_the_command_line(shell: str) -> None:
    held = {**programs.programs_of("pedos-common"), **programs.programs_of("pedos-widget")}
    commands = {name for name in held if name.startswith("qvm-")}
    assert programs.completed_programs(shell) == {*commands, "qvm-call"}


def test_shells_find_the_completion_of_the_program_that_is_not_python() -> None:
    links = (DEBIAN / "pedos-common.links").read_text().split()
    of_first = [place.format(name=programs.FIRST) for place in programs.LINKED.values()]
    of_call = [place.format(name="qvm-call") for place in programs.LINKED.values()]
    assert dict(zip(links[::2], links[1::2], strict=True)) == dict(
        zip(of_first, of_call, strict=True)
    )


def test_the_default_policy_is_an_administrators_to_change() -> None:
    # debhelper makes conffiles of what is below /etc.
    assert "policy.d/*.policy etc/pedos/policy.d" in (DEBIAN / "pedos-dom0.install").read_text()
    assert "etc/pedos/vms.d" in (DEBIAN / "pedos-dom0.dirs").read_text()
