"""Nothing of the widget starts a loop of Qt's inside the one that runs: trio would stand still."""

from __future__ import annotations

import ast
from pathlib import Path

import pedos_widget
import pytest

PACKAGE = Path(pedos_widget.__file__).parent
STARTS_A_LOOP = {
    "exec", "exec_", "getOpenFileName", "getSaveFileName", "getText", "getItem", "getInt",
    "question", "warning", "critical", "information", "about",
}  # fmt: skip
#: Of QMessageBox, QInputDialog and QFileDialog; a logger has methods of the same names.
DIALOGS = {"QMessageBox", "QInputDialog", "QFileDialog"}
#: The one loop of the program.
ALLOWED = {"guest.py"}


def loops_in(source: str) -> list[str]:
    """The calls in a module that would run a loop until a person has answered."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        name, called_on = node.func.attr, ast.unparse(node.func.value)
        is_dialog = called_on.rpartition(".")[2] in DIALOGS
        if name in {"exec", "exec_"} or (name in STARTS_A_LOOP and is_dialog):
            found.append(ast.unparse(node.func))
    return found


@pytest.mark.parametrize(
    "module", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_a_module_waits_for_no_person(module: Path) -> None:
    if module.name not in ALLOWED:
        assert loops_in(module.read_text()) == []


def test_the_ways_to_wait_are_found() -> None:
    source = (
        "menu.exec(p)\nQtWidgets.QMessageBox.question(None)\nlogger.warning('x')\ndialog.open()"
    )
    assert loops_in(source) == ["menu.exec", "QtWidgets.QMessageBox.question"]
