"""What has to be read can be read, whatever colours the desktop has."""

from __future__ import annotations

import pytest
from pedos_widget.menu.devices_menu import Menu
from pedos_widget.menu.style import greyed
from pedos_widget.pane import Pane, PaneRow
from pedos_widget.qt import QtGui, QtWidgets
from pytestqt.qtbot import QtBot

from tests.widget.recording_controller import RecordingController, device_row

LEGIBLE = 4.5  # the contrast that guidelines on accessibility ask for
Group, Role = QtGui.QPalette.ColorGroup, QtGui.QPalette.ColorRole


def light_of(colour: QtGui.QColor) -> float:
    """How bright it is to the eye, between 0 and 1."""
    parts = (colour.redF(), colour.greenF(), colour.blueF())
    linear = [
        part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: QtGui.QColor, other: QtGui.QColor) -> float:
    dark, light = sorted((light_of(one), light_of(other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.fixture(params=[(239, 239, 239), (45, 45, 48)], ids=["light", "dark"])
def palette(request: pytest.FixtureRequest, qapp: QtWidgets.QApplication) -> QtGui.QPalette:
    return QtGui.QPalette(QtGui.QColor(*request.param))


def test_a_reason_in_a_greyed_entry_of_the_menu_is_legible(
    qtbot: QtBot, palette: QtGui.QPalette
) -> None:
    row = device_row("sda", enabled=False, text="sda, in use: mounted")
    menu = Menu(RecordingController(row))
    qtbot.addWidget(menu)
    menu.setPalette(palette)
    menu.aboutToShow.emit()
    option = QtWidgets.QStyleOptionMenuItem()
    menu.initStyleOption(option, menu._rows[row.ref].entry)
    ground = palette.color(Group.Active, Role.Base)
    drawn = option.palette.color(Group.Disabled, Role.Text)
    assert contrast(drawn, ground) >= LEGIBLE
    text = palette.color(Group.Active, Role.Text)
    assert contrast(drawn, ground) < contrast(text, ground) / 1.5  # and it is seen to be greyed


def test_a_reason_in_a_greyed_row_of_the_window_is_legible(
    qtbot: QtBot, palette: QtGui.QPalette
) -> None:
    pane = Pane("VMs")
    qtbot.addWidget(pane)
    pane.setPalette(palette)
    pane.show_rows([PaneRow("a", "a reason", enabled=False), PaneRow("b", "a choice")])
    drawn = pane.item(0).foreground().color()
    assert drawn == greyed(palette)
    assert contrast(drawn, palette.color(Group.Active, Role.Base)) >= LEGIBLE
