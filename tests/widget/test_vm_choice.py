"""The submenu that asks whose settings are meant."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pedos_widget.menu.vm_choice import VmChoice
from pedos_widget.qt import QtCore, QtWidgets
from pytestqt.qtbot import QtBot

from tests.widget.pointing import QTest, click, entry_of, place_of

Key = QtCore.Qt.Key


class Asked:
    """An open choice, and what it did."""

    def __init__(self, qtbot: QtBot) -> None:
        self.did: list[str] = []
        self.choice = VmChoice(
            None,
            on_input=lambda: None,
            on_pointer=lambda _place: None,
            ask=lambda: self.did.append("asked"),
            choose=self.did.append,
        )
        qtbot.addWidget(self.choice)
        self.choice.popup(QtCore.QPoint(20, 20))
        qtbot.waitExposed(self.choice)

    def shown(self) -> list[str]:
        return [each.shown for each in self.choice.entries() if each.isVisible()]


@pytest.fixture
def asked(qtbot: QtBot) -> Iterator[Asked]:
    asked = Asked(qtbot)
    yield asked
    asked.choice.close()


def test_it_asks_when_it_opens_and_shows_what_it_is_told(asked: Asked) -> None:
    assert asked.did == ["asked"]
    assert asked.shown() == ["Whose settings?", "Asking which VMs there are..."]
    asked.choice.show_vms(["personal", "work"])
    assert asked.shown() == ["Whose settings?", "personal", "work"]


@pytest.mark.skipif(
    QtCore.qVersion() == "6.8.2",
    reason="without a screen this Qt closes any menu without a parent at a press; 6.8.3 does not",
)
def test_one_that_is_clicked_is_chosen(asked: Asked) -> None:
    asked.choice.show_vms(["personal", "work"])
    click(asked.choice, place_of(asked.choice, entry_of(asked.choice, "work")))
    assert asked.did == ["asked", "work"]


def test_it_is_searched_by_typing_and_chosen_from_by_keys(asked: Asked) -> None:
    asked.choice.show_vms([f"vm{number}" for number in range(50)])
    QTest.keyClicks(asked.choice, "M42")
    assert asked.shown() == ["Search: M42", "vm42"]
    QTest.keyClick(asked.choice, Key.Key_Down)
    QTest.keyClick(asked.choice, Key.Key_Return)
    assert asked.did == ["asked", "vm42"]


def test_why_it_does_not_know_is_said(asked: Asked) -> None:
    asked.choice.fail("The service does not answer: <b>no</b>")
    assert asked.shown()[1:] == ["The service does not answer: <b>no</b>"]
    assert not any(each.isEnabled() for each in asked.choice.entries())


def test_what_is_looked_at_does_not_change_and_what_is_closed_is_not_filled(asked: Asked) -> None:
    asked.choice.show_vms(["personal"])
    asked.choice.show_vms(["work"])
    asked.choice.fail("late")
    assert asked.shown()[1:] == ["personal"]
    asked.choice.close()
    asked.choice.popup(QtCore.QPoint(20, 20))
    assert asked.shown()[1:] == ["Asking which VMs there are..."]
    asked.choice.close()
    asked.choice.show_vms(["work"])
    assert asked.choice.entries()[1].shown == "Asking which VMs there are..."


def test_one_that_opened_to_the_left_stays_at_the_menu_that_it_belongs_to(qtbot: QtBot) -> None:
    menu = QtWidgets.QMenu()
    menu.addAction("Settings")
    qtbot.addWidget(menu)
    menu.popup(QtCore.QPoint(300, 20))
    choice = VmChoice(
        menu, on_input=lambda: None, on_pointer=lambda _place: None, ask=lambda: None,
        choose=lambda _vm: None,
    )  # fmt: skip
    for place, keeps in ((QtCore.QPoint(10, 20), "right"), (QtCore.QPoint(400, 20), "left")):
        choice.popup(place)
        qtbot.waitExposed(choice)
        choice.resize(300, choice.height())
        before = getattr(choice.geometry(), keeps)()
        choice.show_vms(["work"])
        assert choice.width() < 300
        assert getattr(choice.geometry(), keeps)() == before
        choice.close()
    menu.close()
