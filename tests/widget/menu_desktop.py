"""An open menu of some devices, and a hand on it."""

from __future__ import annotations

from typing import Any

from pedos_widget.menu.devices_menu import Menu
from pedos_widget.menu.vm_menu import VmMenu
from pedos_widget.qt import QtCore, QtWidgets
from pytestqt.qtbot import QtBot

from tests.patience import PATIENCE
from tests.widget.pointing import QTest, approach, entry_of
from tests.widget.recording_controller import RecordingController, device_row

WAIT_MS = PATIENCE * 1000
DEVICES = [device_row(f"sd{letter}") for letter in "abcdefgh"]


class Desktop:
    """An open menu of some devices, and what it was told to do."""

    def __init__(self, qtbot: QtBot) -> None:
        self.qtbot = qtbot
        self.controller = RecordingController(*DEVICES, device_row("mic0", "mic"))
        self.menu = Menu(self.controller)
        qtbot.addWidget(self.menu)

    def open(self) -> Menu:
        self.menu.popup_at(QtCore.QPoint(20, 20))
        self.qtbot.waitExposed(self.menu)
        return self.menu

    def submenu(self, beginning: str) -> VmMenu:
        return next(row.vms for row in self.menu._pool if row.entry is self.entry(beginning))

    def entry(self, beginning: str) -> Any:
        return entry_of(self.menu, f"sys-usb:{beginning}")

    def hover(self, beginning: str) -> VmMenu:
        submenu = self.submenu(beginning)
        approach(self.menu, self.entry(beginning))
        self.until(submenu.isVisible)
        return submenu

    def key(self, key: Any) -> None:
        QTest.keyClick(self.top(), key)

    def type(self, text: str) -> None:
        QTest.keyClicks(self.top(), text)

    def top(self) -> Any:
        return QtWidgets.QApplication.activePopupWidget()

    def shown(self) -> list[str]:
        return [each.shown.strip() for each in self.menu.entries() if each.isVisible()]

    def until(self, condition: Any) -> None:
        self.qtbot.waitUntil(condition, timeout=WAIT_MS)

    def changed(self, *rows: Any, **changes: Any) -> None:
        """Show other devices, and wait for the menu to take them in."""
        self.controller.show(*rows, **changes)
        self.until(lambda: not self.menu._redraw.isActive())
