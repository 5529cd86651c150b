"""What is said when a library is not there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from pedos_widget.lacking import what_to_do

from tests.patience import PATIENCE


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            ModuleNotFoundError("No module named 'PyQt6'", name="PyQt6"),
            "No module named 'PyQt6': install python3-pyside6.qtwidgets, or python3-pyqt6",
        ),
        (
            ModuleNotFoundError("No module named 'jeepney'", name="jeepney"),
            "No module named 'jeepney': install python3-jeepney",
        ),
        (
            ImportError("libEGL.so.1: cannot open shared object file", name="PySide6.QtGui"),
            "libEGL.so.1: cannot open shared object file: install python3-pyside6.qtwidgets, or "
            "python3-pyqt6 again, with what it depends on",
        ),
        (
            ImportError("cannot import name 'menu'", name="pedos_widget"),
            "cannot import name 'menu': this installation is damaged; install pedos-widget again",
        ),
        (
            ImportError("no name"),
            "no name: this installation is damaged; install pedos-widget again",
        ),
    ],
)
def test_what_to_install_depends_on_what_is_lacking(error: ImportError, said: str) -> None:
    assert what_to_do(error) == said


BROKEN = """
import sys
sys.modules["PyQt6"] = None  # as if it were not installed
try:
    import pedos_widget.qt
except ImportError as error:
    print(error)
"""


def test_a_binding_that_is_there_and_does_not_load_is_what_is_told_of(tmp_path: Path) -> None:
    package = tmp_path / "PySide6"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('libEGL.so.1: no such file')")
    path = ":".join([str(tmp_path), *sys.path])
    said = subprocess.run(
        [sys.executable, "-c", BROKEN], env={"PYTHONPATH": path}, capture_output=True, text=True,
        timeout=PATIENCE, check=True,
    )  # fmt: skip
    assert said.stdout == "libEGL.so.1: no such file\n"
