"""ARCHITECTURE.md, "The widget": which of its parts may import which."""

from __future__ import annotations

import pytest

from tests.protocol.test_imports import (
    ALL_MODULES,
    imports_of,
    modules_imported_by,
    modules_of,
    part_of,
    upward_imports,
)

# Each imports from its own part and from those before it, also where an import is for the type
# checker alone.
PARTS = (
    "__init__", "lacking", "i18n",
    "model", "calls", "attempts", "link", "pairs_file", "prompting", "controller",
    "qt", "guest", "tasks", "icons", "plain", "bus_session", "bus", "screen_lock",
    "quitting", "menu", "pane", "questions", "notifications", "settings", "policy_window",
    "tray_arrival", "tray", "window", "windows", "app", "qvm_settings", "__main__",
)  # fmt: skip
WITHOUT_QT = PARTS[: PARTS.index("qt")]


PRESENT = sorted({part_of(module) for module in modules_of("pedos_widget")}, key=PARTS.index)


@pytest.mark.parametrize("part", PRESENT)
def test_a_part_of_the_widget_imports_downward_only(part: str) -> None:
    assert upward_imports("pedos_widget", PARTS, part) == set()


def test_the_model_runs_without_an_event_loop() -> None:
    modules = [each for each in modules_of("pedos_widget") if part_of(each) == "model"]
    assert modules
    for module in modules:
        assert not imports_of(ALL_MODULES[module]) & {"trio", "socket", "os"}, module


def test_what_shows_nothing_knows_nothing_of_qt() -> None:
    for module in modules_of("pedos_widget"):
        if part_of(module) in WITHOUT_QT:
            assert "pedos_widget.qt" not in modules_imported_by(module), module
