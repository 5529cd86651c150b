"""The icon in the tray: when it is made, what it says, what a click does."""

from __future__ import annotations

import ctypes

import pytest
from pedos_widget.qt import QtCore, QtWidgets
from pedos_widget.tray import MISSING_MS, POLL_MS, Tray
from pedos_widget.tray_arrival import CLIENT_MESSAGE, SENT, XCB, TrayArrival
from pytestqt.qtbot import QtBot

from tests.patience import PATIENCE
from tests.widget.idle import periodic_timers
from tests.widget.recording_controller import RecordingController, device_row

Reason = QtWidgets.QSystemTrayIcon.ActivationReason


class Panel:
    """A desktop that has a tray sooner or later, and what the icon did there."""

    def __init__(self, *, has_tray: bool) -> None:
        self.has_tray = has_tray
        self.controller = RecordingController(device_row("sda"))
        self.did: list[str] = []
        self.tray = Tray(
            self.controller,
            show=lambda: self.did.append("show"),
            leave=lambda: self.did.append("leave"),
            missing=lambda: self.did.append("missing"),
            is_available=lambda: self.has_tray,
        )


@pytest.fixture
def panel(qapp: QtWidgets.QApplication) -> Panel:
    return Panel(has_tray=True)


def test_a_click_shows_the_devices(panel: Panel) -> None:
    panel.tray.start()
    assert panel.tray.icon is not None
    assert not panel.tray.icon.icon().isNull()
    panel.tray.icon.activated.emit(Reason.Trigger)
    assert panel.did == ["show"]


def test_the_other_button_opens_a_menu_of_plain_words(panel: Panel) -> None:
    panel.tray.start()
    assert panel.tray.icon is not None
    panel.tray.icon.activated.emit(Reason.Context)
    assert panel.did == []
    actions = panel.tray.icon.contextMenu().actions()
    assert [each.text() for each in actions] == ["Show devices", "Quit"]
    for each in actions:
        each.trigger()
    assert panel.did == ["show", "leave"]


def test_the_icon_is_made_only_when_there_is_a_tray(qtbot: QtBot) -> None:
    panel = Panel(has_tray=False)
    panel.tray._poll.setInterval(1)
    panel.tray.start()
    assert panel.tray.icon is None
    panel.has_tray = True
    qtbot.waitUntil(lambda: panel.tray.icon is not None, timeout=PATIENCE * 1000)
    assert not panel.tray._poll.isActive()
    assert not panel.tray._until_missing.isActive()
    assert panel.did == []


def test_a_desktop_without_a_tray_is_said_once_and_nothing_looks_any_more(qtbot: QtBot) -> None:
    panel = Panel(has_tray=False)
    assert (panel.tray._poll.interval(), panel.tray._until_missing.interval()) == (
        POLL_MS,
        MISSING_MS,
    )
    panel.tray._poll.setInterval(1)
    panel.tray._until_missing.setInterval(1)
    panel.tray.start()
    qtbot.waitUntil(lambda: bool(panel.did), timeout=PATIENCE * 1000)
    assert panel.did == ["missing"]
    assert periodic_timers() == []


def test_the_tooltip_says_how_many_are_attached_or_that_nothing_is_connected(panel: Panel) -> None:
    panel.tray.start()
    icon = panel.tray.icon
    assert icon is not None
    assert icon.toolTip() == "Devices: none is attached"
    panel.controller.show(attached=1)
    assert icon.toolTip() == "Devices: 1 is attached"
    panel.controller.show(attached=3)
    assert icon.toolTip() == "Devices: 3 are attached"
    panel.controller.show(attached=3, connected=False, status="the service is down")
    assert icon.toolTip() == "Devices: not connected"


def test_it_leaves_the_tray_when_it_is_closed(panel: Panel) -> None:
    panel.tray.start()
    icon = panel.tray.icon
    assert icon is not None
    panel.tray.close()
    assert not icon.isVisible()
    assert panel.tray.icon is None
    assert isinstance(panel.tray, QtCore.QObject)


def test_a_tray_that_comes_late_has_the_icon_when_it_says_so(panel: Panel) -> None:
    panel.has_tray = False
    panel.tray.start()
    panel.tray._until_missing.timeout.emit()
    panel.tray.look()
    assert panel.tray.icon is None
    panel.has_tray = True
    panel.tray.look()
    assert panel.tray.icon is not None
    icon = panel.tray.icon
    panel.tray.look()  # it may say so again, and again
    assert panel.tray.icon is icon


def test_a_tray_that_says_that_it_has_come_has_no_icon_before_the_start(panel: Panel) -> None:
    panel.tray.look()
    assert panel.tray.icon is None
    panel.tray.start()
    panel.tray.close()
    panel.tray.look()
    assert panel.tray.icon is None


def x11_event(arrival: TrayArrival, first: int, kind: bytes = XCB) -> None:
    event = (ctypes.c_uint8 * 32)(first)
    assert arrival.nativeEventFilter(kind, ctypes.addressof(event))[0] is False  # it passes


def test_a_tray_of_x11_that_comes_late_has_the_icon_when_it_says_so(qtbot: QtBot) -> None:
    panel = Panel(has_tray=False)
    panel.tray.start()
    panel.tray._until_missing.timeout.emit()
    panel.has_tray = True
    x11_event(panel.tray._arrival, CLIENT_MESSAGE | SENT)
    assert panel.tray.icon is None  # Qt takes the message in first
    qtbot.waitUntil(lambda: panel.tray.icon is not None, timeout=PATIENCE * 1000)


def test_messages_of_one_turn_are_one_look_and_other_events_none(qtbot: QtBot) -> None:
    looks: list[bool] = []
    arrival = TrayArrival(lambda: looks.append(True))
    pointer_moved = 6
    x11_event(arrival, pointer_moved)
    x11_event(arrival, CLIENT_MESSAGE, b"windows_generic_MSG")
    assert not arrival._once.isActive()
    for _ in range(3):
        x11_event(arrival, CLIENT_MESSAGE | SENT)
    qtbot.waitUntil(lambda: bool(looks), timeout=PATIENCE * 1000)
    assert looks == [True]


def test_events_are_seen_only_while_there_is_no_tray(qapp: QtWidgets.QApplication) -> None:
    panel = Panel(has_tray=False)
    panel.tray.start()
    assert not panel.tray._arrival._is_followed
    panel.tray._until_missing.timeout.emit()
    assert panel.tray._arrival._is_followed
    panel.has_tray = True
    panel.tray.look()
    assert not panel.tray._arrival._is_followed
