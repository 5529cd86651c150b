"""The pointer in open menus, as a window system moves it: what has the grab gets its events."""

from __future__ import annotations

import time
from typing import Any

from pedos_widget.menu.steady import Entry, SteadyMenu
from pedos_widget.qt import QtCore
from pytestqt.qt_compat import qt_api

QTest = qt_api.QtTest.QTest
LEFT = QtCore.Qt.MouseButton.LeftButton
NO_KEY = QtCore.Qt.KeyboardModifier.NoModifier
STEPS = 20


def entry_of(menu: SteadyMenu, beginning: str) -> Entry:
    """The one entry whose text begins like this."""
    (found,) = (each for each in menu.entries() if each.shown.strip().startswith(beginning))
    return found


def place_of(menu: SteadyMenu, entry: Entry, *, from_left: float = 0.5) -> QtCore.QPoint:
    """A point of an entry, on the screen."""
    rect = menu.actionGeometry(entry)
    return menu.mapToGlobal(
        QtCore.QPoint(rect.left() + int(rect.width() * from_left), rect.center().y())
    )


def point_at(menu: SteadyMenu, place: QtCore.QPoint) -> None:
    """Put the pointer there."""
    QTest.mouseMove(menu, menu.mapFromGlobal(place))


def approach(menu: SteadyMenu, entry: Entry) -> None:
    """Bring the pointer to an entry from outside: an open menu ignores one that hardly moves."""
    place = place_of(menu, entry)
    for offset in (-400, -8, -4, 0):
        point_at(menu, place + QtCore.QPoint(offset, 0))


def move(
    menu: SteadyMenu, start: QtCore.QPoint, end: QtCore.QPoint, *, step_ms: int, steps: int = STEPS
) -> float:
    """Move the pointer in a straight line, at this speed. Returns the longest pause in ms: a busy
    machine may have stopped on the way."""
    longest = 0.0
    for step in range(1, steps + 1):
        share = step / steps
        before = time.monotonic()
        place = QtCore.QPoint(
            round(start.x() + (end.x() - start.x()) * share),
            round(start.y() + (end.y() - start.y()) * share),
        )
        point_at(menu, place)
        QTest.qWait(step_ms)  # the speed is what the menu judges by
        longest = max(longest, time.monotonic() - before)
    return longest * 1000


def click(menu: SteadyMenu, place: QtCore.QPoint) -> None:
    """Click there."""
    window: Any = menu.windowHandle()
    QTest.mouseClick(window, LEFT, NO_KEY, menu.mapFromGlobal(place))
