"""A desk for questions of dom0, and a person in front of it."""

from __future__ import annotations

from typing import Any

import trio
import trio.testing
from pedos_protocol.errors import CallError
from pedos_widget.qt import QtCore, QtWidgets
from pedos_widget.questions.desk import ARMING_S, QuestionDesk
from pytestqt.qtbot import QtBot

from tests.asked_question import ASK
from tests.patience import PATIENCE

Key = QtCore.Qt.Key

CALL = {
    "request": "3f9c01ab77de",
    "source": "work",
    "service": "demo.Backup",
    "argument": "+photos",
    "candidates": ["vault"],
    "default": None,
    "timeout_s": 60,
}


class Table:
    """A desk with a clock that a test moves, in a window that has the keyboard, or not yet."""

    def __init__(self, qtbot: QtBot, nursery: trio.Nursery) -> None:
        self.qtbot = qtbot
        self.nursery = nursery
        self.now = 100.0
        self.desk = QuestionDesk(clock=lambda: self.now)
        self.dialog = self.desk.dialog
        qtbot.addWidget(self.dialog)
        self.ends: list[dict[str, Any] | str] = []

    async def ask(self, method: str = "prompt.ask", **fields: object) -> None:
        """Asks, and goes on while the question is open."""
        params = {**(ASK if method == "prompt.ask" else CALL), **fields}

        async def ask() -> None:
            try:
                self.ends.append(await self.desk.ask(method, params))
            except CallError as error:
                self.ends.append(error.code)

        self.nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()

    async def ended(self) -> list[dict[str, Any] | str]:
        await trio.testing.wait_all_tasks_blocked()
        return self.ends

    def activate(self) -> None:
        self.dialog.activateWindow()
        self.qtbot.waitUntil(self.dialog.isActiveWindow, timeout=PATIENCE * 1000)

    def deactivate(self) -> None:
        other = QtWidgets.QWidget()
        self.qtbot.addWidget(other)
        other.show()
        other.activateWindow()
        self.qtbot.waitUntil(lambda: not self.dialog.isActiveWindow(), timeout=PATIENCE * 1000)

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.desk.tick()

    def arm(self) -> None:
        self.activate()
        self.wait(ARMING_S)

    def press(self, *keys: Key, widget: QtWidgets.QWidget | None = None) -> None:
        for key in keys:
            target = widget or self.dialog.focusWidget() or self.dialog
            self.qtbot.keyClick(target, key)

    def choose(self, row: int) -> None:
        place = self.dialog.choices.visualItemRect(self.dialog.choices.item(row)).center()
        self.click(self.dialog.choices.viewport(), place)

    def click(self, widget: QtWidgets.QWidget, place: QtCore.QPoint | None = None) -> None:
        button = QtCore.Qt.MouseButton.LeftButton
        if place is None:
            self.qtbot.mouseClick(widget, button)
        else:
            self.qtbot.mouseClick(widget, button, pos=place)


def labels(dialog: QtWidgets.QDialog) -> list[str]:
    texts: list[QtWidgets.QLabel] = dialog.findChildren(QtWidgets.QLabel)
    return [each.text() for each in texts if each.isVisibleTo(dialog)]
