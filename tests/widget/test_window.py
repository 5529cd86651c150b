"""The window of devices: the same rows as the menu's, in two lists."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from pedos_widget.menu.style import MenuStyle, greyed
from pedos_widget.model.view import Action
from pedos_widget.qt import QtCore, QtGui, QtWidgets
from pedos_widget.window import DeviceWindow
from pytestqt.qt_compat import qt_api
from pytestqt.qtbot import QtBot

from tests.patience import PATIENCE
from tests.widget.recording_controller import VMS, RecordingController, device_row, vm_row

Key = QtCore.Qt.Key
DEVICES = [device_row(f"sd{letter}") for letter in "abc"]
DENIED = vm_row("vault", Action.NONE, text="vault (denied)", enabled=False, detail="by rule 7")


class Screen:
    def __init__(self, qtbot: QtBot) -> None:
        self.qtbot = qtbot
        self.controller = RecordingController(*DEVICES, device_row("mic0", "mic"))
        self.window = DeviceWindow(self.controller)
        qtbot.addWidget(self.window)
        self.window.show_device()
        qtbot.waitExposed(self.window)

    def texts(self, pane: Any) -> list[str]:
        return [pane.item(index).text() for index in range(pane.count())]

    def changed(self, *rows: Any, **changes: Any) -> None:
        self.controller.show(*rows, **changes)
        self.settle()

    def settle(self) -> None:
        self.qtbot.waitUntil(lambda: not self.window._redraw.isActive(), timeout=PATIENCE * 1000)

    def key(self, widget: Any, key: Any) -> None:
        qt_api.QtTest.QTest.keyClick(widget, key)


@pytest.fixture
def screen(qtbot: QtBot) -> Iterator[Screen]:
    screen = Screen(qtbot)
    yield screen
    screen.window.close()


def test_it_shows_the_classes_and_their_devices(screen: Screen) -> None:
    assert screen.texts(screen.window.devices) == [
        "Block devices", "sys-usb:sda Stick", "sys-usb:sdb Stick", "sys-usb:sdc Stick",
        "Microphones", "sys-usb:mic0 Stick", "USB devices", "    None.",
    ]  # fmt: skip
    assert screen.texts(screen.window.vms) == []
    assert not screen.window.act.isEnabled()


def test_a_chosen_device_and_vm_are_attached_by_the_button(screen: Screen) -> None:
    screen.window.devices.setCurrentRow(2)
    assert screen.controller.calls == [("look", DEVICES[1].ref, None)]
    assert screen.texts(screen.window.vms) == ["personal", "untrusted", "work"]
    screen.window.vms.setCurrentRow(2)
    assert screen.controller.done == []
    screen.window.act.click()
    assert screen.controller.done == [("attach", DEVICES[1].ref, "work")]


def test_keys_alone_attach_a_device(screen: Screen) -> None:
    screen.window.search.setText("sdc")
    screen.key(screen.window.search, Key.Key_Return)
    screen.key(screen.window.devices, Key.Key_Down)
    screen.key(screen.window.devices, Key.Key_Return)
    screen.key(screen.window.vms, Key.Key_Down)
    screen.key(screen.window.vms, Key.Key_Return)
    assert screen.controller.done == [("attach", DEVICES[2].ref, "personal")]


def test_the_vm_that_has_it_ejects_it(screen: Screen) -> None:
    eject = vm_row("work", Action.EJECT, text="work (attached)", bold=True)
    screen.changed(device_row("sda", vms=(eject,), bold=True))
    screen.window.devices.setCurrentRow(1)
    assert screen.window.devices.item(1).font().bold()
    screen.window.vms.setCurrentRow(0)
    assert screen.window.act.text() == "Eject"
    screen.window.act.click()
    assert screen.controller.done == [("detach", DEVICES[0].ref, "work")]


def test_the_second_half_of_a_double_click_does_not_eject_what_the_first_attached(
    screen: Screen,
) -> None:
    screen.window.devices.setCurrentRow(1)
    screen.window.vms.setCurrentRow(2)
    screen.window.act.click()
    eject = vm_row("work", Action.EJECT, text="work (attached)", bold=True)
    screen.changed(device_row("sda", vms=(*VMS[:2], vm_row("work", Action.NONE)), bold=True))
    screen.changed(device_row("sda", vms=(*VMS[:2], eject), bold=True))
    assert screen.window.act.text() == "Eject"
    assert not screen.window.act.isEnabled()
    screen.window._act()
    assert screen.controller.done == [("attach", DEVICES[0].ref, "work")]
    screen.window._settling.stop()
    screen.window._settling.timeout.emit()
    screen.window.act.click()
    assert screen.controller.done[1:] == [("detach", DEVICES[0].ref, "work")]


def test_a_click_does_not_eject_what_another_program_has_just_attached(screen: Screen) -> None:
    screen.window.devices.setCurrentRow(1)
    screen.window.vms.setCurrentRow(2)
    eject = vm_row("work", Action.EJECT, text="work (attached)", bold=True)
    screen.controller.show(device_row("sda", vms=(*VMS[:2], eject), bold=True))
    screen.window.act.click()  # before the change is shown
    assert screen.controller.done == []


def test_a_return_held_down_acts_once(screen: Screen) -> None:
    screen.window.devices.setCurrentRow(1)
    screen.window.vms.setCurrentRow(2)
    kind, modifier = QtCore.QEvent.Type.KeyPress, QtCore.Qt.KeyboardModifier.NoModifier
    for is_repeated in (False, True, True):
        event = QtGui.QKeyEvent(kind, Key.Key_Return, modifier, "\r", is_repeated)
        QtWidgets.QApplication.sendEvent(screen.window.vms, event)
    assert screen.controller.done == [("attach", DEVICES[0].ref, "work")]


def test_a_greyed_vm_can_be_chosen_to_read_why_and_not_attached(screen: Screen) -> None:
    screen.changed(device_row("sda", vms=(DENIED, *VMS)))
    screen.window.devices.setCurrentRow(1)
    screen.key(screen.window.vms, Key.Key_Down)
    item = screen.window.vms.currentItem()
    assert item.text() == "vault (denied)"
    assert item.foreground().color() == greyed(screen.window.palette())
    assert screen.window.detail.text() == "by rule 7"
    assert not screen.window.act.isEnabled()
    screen.key(screen.window.vms, Key.Key_Return)
    assert screen.controller.done == []


def test_what_is_chosen_stays_chosen_while_others_come_and_go(screen: Screen) -> None:
    screen.window.devices.setCurrentRow(2)
    screen.window.vms.setCurrentRow(2)
    screen.changed(device_row("sd0"), DEVICES[1], device_row("sdz"))
    screen.window.act.click()
    assert screen.controller.done == [("attach", DEVICES[1].ref, "work")]


def test_nothing_is_chosen_when_the_chosen_device_has_gone(screen: Screen) -> None:
    screen.window.devices.setCurrentRow(2)
    screen.window.vms.setCurrentRow(2)
    screen.changed(DEVICES[0], DEVICES[2])
    assert screen.window.devices.currentRow() == -1
    assert screen.window.subject.text() == "Choose a device."
    screen.window.act.click()
    screen.window._act()
    assert screen.controller.done == []


def test_another_device_in_its_place_is_not_chosen(screen: Screen) -> None:
    screen.window.devices.setCurrentRow(1)
    other = device_row("sda", ref=DEVICES[1].ref)
    screen.changed(other)
    assert screen.window.devices.currentRow() == -1


def test_a_device_is_looked_at_once_and_again_when_the_service_is_back(screen: Screen) -> None:
    screen.window.devices.setCurrentRow(1)
    for _ in range(3):
        screen.changed(*DEVICES)
    assert screen.controller.calls == [("look", DEVICES[0].ref, None)]
    screen.changed(*DEVICES, connected=False, status="Not connected.")
    assert screen.window.status.text() == "Not connected."
    screen.changed(*DEVICES)
    assert screen.controller.calls == [("look", DEVICES[0].ref, None)] * 2


def test_what_became_of_it_stands_in_the_row_and_beside_the_vms(screen: Screen) -> None:
    screen.window.devices.setCurrentRow(1)
    screen.window.vms.setCurrentRow(2)
    screen.controller.tell(DEVICES[0].ref, "work", "attach", "working")
    screen.settle()
    assert not screen.window.act.isEnabled()
    screen.controller.tell(DEVICES[0].ref, "work", "attach", "denied", "rule 7 says so")
    screen.settle()
    said = "sys-usb:sda Stick - denied: not attached to work: rule 7 says so"
    assert screen.window.devices.item(1).text() == said
    assert screen.window.subject.text() == said
    assert screen.window.act.isEnabled()


def test_a_long_reason_leaves_in_the_row_what_has_failed(screen: Screen) -> None:
    screen.window.devices.setCurrentRow(1)
    reason = "because " * 20 + "so"
    screen.controller.tell(DEVICES[0].ref, "work", "attach", "failed", reason)
    screen.settle()
    row = screen.window.devices.item(1).text()
    assert row.startswith("sys-usb:sda Stick - not attached to work: because ")
    assert len(row) < 110
    assert screen.window.subject.text().endswith(reason)


def test_a_hostile_name_is_plain_text(screen: Screen) -> None:
    name = "<b>x</b> <img src=x>\u202e\nnext"
    screen.changed(device_row("sda", text=name, spoken=name, detail=name, vms=VMS))
    screen.window.devices.setCurrentRow(1)
    item = screen.window.devices.item(1)
    assert item.text() == "<b>x</b> <img src=x>__next"
    assert "<img" not in item.toolTip()
    assert screen.window.subject.textFormat() == QtCore.Qt.TextFormat.PlainText
    assert screen.window.subject.text() == item.text()


def test_it_opens_with_the_device_that_was_asked_about(screen: Screen) -> None:
    screen.window.search.setText("mic")
    screen.window.show_device(DEVICES[2].ref)
    assert screen.window.devices.current_key() == DEVICES[2].ref
    assert screen.window.search.text() == ""


def test_escape_clears_the_search_and_then_closes(screen: Screen) -> None:
    screen.window.search.setText("sda")
    assert screen.texts(screen.window.devices) == ["Block devices", "sys-usb:sda Stick"]
    screen.key(screen.window, Key.Key_Escape)
    assert screen.window.isVisible()
    screen.key(screen.window, Key.Key_Escape)
    assert not screen.window.isVisible()


def test_greyed_rows_follow_the_colours_of_the_desktop(screen: Screen) -> None:
    screen.changed(device_row("sda", enabled=False))
    palette = QtGui.QPalette(screen.window.palette())
    before = greyed(palette)
    dark = QtGui.QColor(10, 20, 30)
    palette.setColor(QtGui.QPalette.ColorGroup.Active, QtGui.QPalette.ColorRole.Base, dark)
    screen.window.setPalette(palette)
    assert screen.window.devices.item(1).foreground().color() == greyed(palette) != before
    assert isinstance(screen.window, QtWidgets.QWidget)


class ActsOnOneClick(QtWidgets.QProxyStyle):
    """As the style of some desktops."""

    def styleHint(self, hint: Any, *others: Any) -> int:  # noqa: N802 - Qt's name
        if hint == QtWidgets.QStyle.StyleHint.SH_ItemView_ActivateItemOnSingleClick:
            return 1
        return super().styleHint(hint, *others)


def test_one_click_attaches_nothing_whatever_the_desktop_does_with_one(screen: Screen) -> None:
    vms, style, desktops = screen.window.vms, MenuStyle(), ActsOnOneClick()
    assert isinstance(vms.style(), MenuStyle)
    style.setBaseStyle(desktops)
    vms.setStyle(style)
    screen.window.devices.choose(DEVICES[0].ref)
    place = vms.visualItemRect(vms.item(1)).center()
    screen.qtbot.mouseClick(vms.viewport(), QtCore.Qt.MouseButton.LeftButton, pos=place)
    assert vms.currentRow() == 1
    assert screen.controller.done == []
    vms.setStyle(None)
