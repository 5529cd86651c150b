"""What a click opens: the menu, or a window where there is no tray."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from pedos_widget import app
from pedos_widget.bus_session import BusError
from pedos_widget.qt import QtCore, QtGui, QtWidgets
from pytestqt.qtbot import QtBot

from tests.widget.recording_controller import RecordingController, device_row

DEVICE = device_row("sda")


class Opened:
    """A widget that is not connected to anything, and what it showed."""

    def __init__(self, qtbot: QtBot, *, is_window: bool) -> None:
        self.widget = app.Widget(is_window=is_window)
        qtbot.addWidget(self.widget.menu)
        qtbot.addWidget(self.widget.window)

    def shown(self) -> list[str]:
        parts = {"menu": self.widget.menu, "window": self.widget.window}
        return [name for name, part in parts.items() if part.isVisible()]


@pytest.fixture
def opened(qtbot: QtBot, monkeypatch: pytest.MonkeyPatch) -> Any:
    made: list[Opened] = []

    def make(*, is_window: bool = False) -> Opened:
        monkeypatch.setattr(app, "Controller", lambda: RecordingController(DEVICE))
        made.append(Opened(qtbot, is_window=is_window))
        return made[0]

    yield make
    made[0].widget.menu.close()


def test_a_click_opens_the_menu(opened: Any) -> None:
    widget = opened()
    widget.widget.show()
    assert widget.shown() == ["menu"]


def test_with_the_option_it_opens_the_window(opened: Any) -> None:
    widget = opened(is_window=True)
    widget.widget.show()
    assert widget.shown() == ["window"]


def test_without_a_tray_the_window_opens_and_a_late_tray_has_the_menu(opened: Any) -> None:
    widget = opened()
    widget.widget._use_window()
    assert widget.shown() == ["window"]
    widget.widget.window.close()
    widget.widget.tray.icon = QtWidgets.QSystemTrayIcon(QtGui.QIcon(), widget.widget.tray)
    widget.widget.show()
    assert widget.shown() == ["menu"]


def test_the_menu_closes_when_the_screen_is_locked(opened: Any) -> None:
    widget = opened()
    widget.widget.show()
    widget.widget._locked(False)
    assert widget.shown() == ["menu"]
    widget.widget._locked(True)
    assert widget.shown() == []


def test_the_last_entries_are_settings_policy_the_window_and_quit(opened: Any) -> None:
    widget = opened()
    widget.widget.show()
    *_, settings, policy, window, leave = widget.widget.menu.entries()
    assert [each.shown for each in (settings, policy, window, leave)] == [
        "VM settings...", "Policy...", "Show in a window", "Quit",
    ]  # fmt: skip
    assert settings.menu() is not None
    window.trigger()
    assert "window" in widget.shown()


def test_the_window_has_them_as_buttons(opened: Any) -> None:
    widget = opened()
    buttons = widget.widget.window.findChildren(QtWidgets.QPushButton)
    assert {each.text() for each in buttons} >= {
        "VM settings...", "Policy...", "Quit", "Attach",
    }  # fmt: skip


def test_the_program_can_be_left_where_there_is_no_tray(
    opened: Any, qtbot: QtBot, monkeypatch: pytest.MonkeyPatch
) -> None:
    left: list[bool] = []
    monkeypatch.setattr(QtCore.QCoreApplication, "quit", lambda: left.append(True))
    widget = opened()
    widget.widget._use_window()
    buttons: list[Any] = widget.widget.window.findChildren(QtWidgets.QPushButton)
    leave = next(each for each in buttons if each.text() == "Quit")
    assert leave.isVisible()
    qtbot.mouseClick(leave, QtCore.Qt.MouseButton.LeftButton)
    assert left == [True]


class BusOfAnother:
    """Of a session in which another widget has the name, and answers or not."""

    def __init__(self, error: BusError | None) -> None:
        self._error = error

    async def request_name(self, _name: str) -> bool:
        await trio.lowlevel.checkpoint()
        return False

    async def call(self, *_what: object, **_how: object) -> tuple[()]:
        await trio.lowlevel.checkpoint()
        if self._error is not None:
            raise self._error
        return ()


@pytest.mark.parametrize("show", [False, True])
async def test_who_asked_to_see_the_devices_is_told_when_the_first_one_hangs(show: bool) -> None:
    bus: Any = BusOfAnother(None)
    assert await app.status_of_second(bus, show=show) == (0 if show else 3)
    bus = BusOfAnother(BusError("no answer came within 10 s"))
    assert await app.status_of_second(bus, show=show) == (1 if show else 3)
