"""The window of a VM's settings, without a screen: what is seen, and what keys and clicks do."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import trio
import trio.testing
from pedos_protocol.errors import CallError
from pedos_protocol.messages import AssignedNow, AttachedTo, to_wire
from pedos_widget.qt import QtCore, QtWidgets
from pedos_widget.settings import window
from pedos_widget.settings.model import State
from pedos_widget.settings.window import SettingsWindow
from pytestqt.qtbot import QtBot

from tests.widget.settings_service import STICK, Service, assigned, listed

NAME = f"sys-usb:1-2:{STICK}"
HOSTILE = "<img src=x> &amp \u202eevil"


@pytest.fixture
def service() -> Service:
    made = Service()
    made.devices = [
        listed("sys-usb:1-2"),
        listed("sys-usb:1-3", identity="046d:c52b:x:u030101", description="Receiver"),
        listed("dom0:00_1b.0", "pci", identity="8086:2668:x:p040300", description="Audio"),
        listed("sys-usb:sda", "block", identity="0781:5567:4C53", description="Cruzer"),
    ]
    made.stored = {"usb": [assigned(NAME, matches=("1-2",))]}
    made.now = AssignedNow(matches=("1-3",), verdict="allow", runs=True)
    return made


class Desk:
    """An open window, and the tasks behind it."""

    def __init__(self, service: Service, nursery: trio.Nursery) -> None:
        self.service = service
        self.window = SettingsWindow(service, "work", nursery.start_soon)  # type: ignore[arg-type]
        self.is_closed = False
        self.window.closed.connect(lambda: setattr(self, "is_closed", True))
        self.window.show()

    async def settle(self) -> None:
        """Until nothing is on its way."""
        await trio.testing.wait_all_tasks_blocked()
        QtWidgets.QApplication.processEvents()

    async def changed(self) -> None:
        self.service.change()
        await self.settle()

    def cells(self) -> list[list[str]]:
        table = self.window.table
        return [
            [table.item(row, column).text() for column in range(table.columnCount())]
            for row in range(table.rowCount())
        ]

    def states(self) -> dict[str, str]:
        return {cells[0].split(",")[0]: cells[-1] for cells in self.cells()}

    def choose(self, name: str) -> None:
        names = [cells[0].split(",")[0] for cells in self.cells()]
        self.window.table.selectRow(names.index(name))

    def lines(self) -> list[str]:
        return self.window.editor.lines.toPlainText().splitlines()

    async def pick(self, combo: QtWidgets.QComboBox, text: str) -> None:
        """As a person does, who opens the list and takes an entry."""
        (index,) = (each for each in range(combo.count()) if combo.itemText(each).startswith(text))
        combo.setCurrentIndex(index)
        combo.activated.emit(index)
        await self.settle()

    async def add(self, text: str) -> None:
        adding = self.window.adding
        adding.search.setText(text)
        adding.search.textEdited.emit(text)
        adding.search.returnPressed.emit()
        await self.settle()

    async def press(self, button: QtWidgets.QPushButton) -> None:
        assert button.isEnabled()
        button.click()
        await self.settle()


@pytest.fixture
async def desk(
    service: Service, qtbot: QtBot, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Desk]:
    monkeypatch.setattr(window, "PAUSE_S", 0)
    made = Desk(service, nursery)
    await made.settle()
    yield made
    if not made.is_closed:
        made.window.give_up()
    await trio.testing.wait_all_tasks_blocked()


async def test_what_is_assigned_is_listed_and_said(desk: Desk) -> None:
    assert desk.cells() == [
        [
            f"{NAME}, SanDisk Cruzer, USB device", "This device at this port", "auto-attach", "-",
            "saved",
        ],
    ]  # fmt: skip
    assert desk.window.heading.text() == "Devices of work, which runs"
    assert not desk.window.save_button.isEnabled()
    desk.choose(NAME)
    assert desk.lines() == ["present"]
    assert desk.window.editor.match.currentText() == "This device at this port"
    assert desk.window.editor.mode.currentText().startswith("auto-attach: it is attached when")
    assert desk.window.editor.options == {}


async def test_what_is_not_known_yet_is_not_said_to_be_nothing(
    service: Service, nursery: trio.Nursery, qtbot: QtBot
) -> None:
    service.devices, service.stored = [], {}
    made = Desk(service, nursery)
    assert made.window.adding.note.text() == ""
    await made.settle()
    assert made.window.adding.note.text() == "No device is there that is not in the list above."
    made.window.give_up()
    await trio.testing.wait_all_tasks_blocked()


async def test_a_device_is_searched_added_tried_and_saved(desk: Desk) -> None:
    await desk.add("receiver")
    assert desk.states()["sys-usb:1-3:046d:c52b:x:u030101"] == "new, not saved"
    assert "sys-usb:1-3 is present, and would be attached to work at once" in desk.lines()
    await desk.press(desk.window.save_button)
    assert set(desk.states().values()) == {"saved"}
    assert desk.window.status.text() == "Everything is saved."
    assert [each.device for each in desk.service.stored["usb"]] == ["1-2", "1-3"]
    assert not desk.window.save_button.isEnabled()


async def test_nothing_is_saved_before_it_is_known_what_it_comes_to(desk: Desk) -> None:
    service = desk.service
    call, gate = service.call, trio.Event()

    async def slow(method, params, *, timeout_s):  # type: ignore[no-untyped-def]
        if method == "device.assign":
            await gate.wait()
        return await call(method, params, timeout_s=timeout_s)

    service.call = slow  # type: ignore[method-assign]
    await desk.add("receiver")
    assert not desk.window.save_button.isEnabled()
    assert desk.lines()[-1] == "What saving it would come to is being asked."
    desk.window.save()  # by the key
    gate.set()
    await desk.settle()
    assert desk.window.save_button.isEnabled()
    assert service.asked("device.assign", dry_run=False) == []


async def test_the_options_are_those_of_the_class(desk: Desk) -> None:
    await desk.add("sda")
    options = desk.window.editor.options
    assert list(options) == ["read-only", "frontend-dev", "devtype"]
    assert options["devtype"].itemText(0) == "not set (disk)"
    await desk.pick(options["read-only"], "yes")
    await desk.pick(options["frontend-dev"], "xvdj")
    assert desk.service.asked("device.assign")[-1]["options"] == {
        "read-only": "yes", "frontend-dev": "xvdj",
    }  # fmt: skip
    await desk.pick(options["frontend-dev"], "not set")
    assert desk.service.asked("device.assign")[-1]["options"] == {"read-only": "yes"}
    await desk.add("00_1b.0")
    assert list(desk.window.editor.options) == ["no-strict-reset", "permissive", "give-back"]
    modes = desk.window.editor.mode
    assert [modes.itemText(each) for each in range(modes.count())] == [
        "required: work does not start without it"
    ]


async def test_a_pci_device_says_that_it_is_for_the_next_start(desk: Desk) -> None:
    await desk.add("00_1b.0")
    assert desk.lines()[-1] == "It takes effect at the next start of work."


async def test_what_fails_says_why_and_the_rest_is_saved(desk: Desk) -> None:
    desk.service.refuse["device.assign 1-3"] = CallError(
        "denied", "assign sys-usb:1-3 -> work", {"rule": "30-user.policy:4", "text": "a rule"}
    )
    await desk.add("receiver")
    await desk.add("00_1b.0")
    await desk.press(desk.window.save_button)
    assert desk.states()["sys-usb:1-3:046d:c52b:x:u030101"] == "not saved: failed"
    assert desk.states()["dom0:00_1b.0:8086:2668:x:p040300"] == "saved"
    assert desk.window.status.text() == "1 change is not saved."
    desk.choose("sys-usb:1-3:046d:c52b:x:u030101")
    assert desk.lines()[0] == "assign sys-usb:1-3 -> work (rule: 30-user.policy:4 a rule)"


async def test_a_service_that_goes_away_loses_nothing(desk: Desk) -> None:
    await desk.add("receiver")
    await desk.add("00_1b.0")
    desk.service.lose["device.assign 1-3"] = True
    await desk.press(desk.window.save_button)
    assert desk.states()["sys-usb:1-3:046d:c52b:x:u030101"] == "perhaps saved"
    assert desk.states()["dom0:00_1b.0:8086:2668:x:p040300"] == "new, not saved"
    desk.service.view.status = "not connected: it closed the connection"
    await desk.changed()
    assert "not connected: it closed the connection" in desk.window.heading.text()
    desk.service.lose.clear()
    desk.service.view.connected, desk.service.view.status = True, ""
    await desk.changed()
    assert desk.states()["sys-usb:1-3:046d:c52b:x:u030101"] == "saved"
    await desk.press(desk.window.save_button)
    assert set(desk.states().values()) == {"saved"}


async def test_what_is_absent_is_shown_and_can_be_removed_by_the_key(
    desk: Desk, qtbot: QtBot
) -> None:
    desk.service.stored["usb"].append(assigned("sys-usb:1-9"))
    await desk.changed()
    desk.choose("sys-usb:1-9")
    assert desk.lines() == ["not present"]
    qtbot.keyClick(desk.window.table, QtCore.Qt.Key.Key_Delete)
    await desk.settle()
    assert desk.states()["sys-usb:1-9"] == "to be removed"
    assert not desk.window.editor.remove.isEnabled() and desk.window.editor.undo.isEnabled()
    await desk.press(desk.window.save_button)
    assert "sys-usb:1-9" not in desk.states()


async def test_what_stays_attached_is_said_when_it_is_removed(desk: Desk) -> None:
    desk.service.devices[0] = listed("sys-usb:1-2", attachments=(AttachedTo("work"),))
    await desk.changed()
    desk.choose(NAME)
    await desk.press(desk.window.editor.remove)
    assert desk.lines() == ["sys-usb:1-2 stays attached to work until it is detached"]
    await desk.press(desk.window.editor.undo)
    assert desk.states() == {NAME: "saved"}


async def test_what_counts_can_be_changed_and_takes_the_place_of_the_old_one(desk: Desk) -> None:
    desk.choose(NAME)
    await desk.pick(desk.window.editor.match, "Any device at this port")
    assert desk.states() == {"sys-usb:1-2": "changed, not saved"}
    await desk.pick(desk.window.editor.match, "This device at any port")
    await desk.press(desk.window.save_button)
    assert [(each.device, each.identity) for each in desk.service.stored["usb"]] == [(None, STICK)]


async def test_two_rows_about_the_same_are_refused_with_a_word(desk: Desk) -> None:
    desk.service.stored["usb"].append(assigned(f"sys-usb:*:{STICK}"))
    await desk.changed()
    desk.choose(NAME)
    await desk.pick(desk.window.editor.match, "This device at any port")
    assert desk.window.status.text() == f"sys-usb:*:{STICK} is in the list already."
    assert desk.window.editor.match.currentText() == "This device at this port"
    assert set(desk.states().values()) == {"saved"}


async def test_a_device_that_changed_before_it_is_added_is_refused_with_a_word(
    desk: Desk,
) -> None:
    desk.service.devices[1] = listed("sys-usb:1-3", identity="dead:beef:x:u030101")
    await desk.add("receiver")  # the list is still the old one
    assert desk.window.status.text() == "sys-usb:1-3 is another device by now."
    assert desk.states() == {NAME: "saved"}


async def test_nothing_is_edited_while_it_is_saved_and_a_close_waits_for_that(
    desk: Desk,
) -> None:
    await desk.add("receiver")
    desk.service.held = trio.Event()
    await desk.press(desk.window.save_button)
    assert desk.states()["sys-usb:1-3:046d:c52b:x:u030101"] == "saving"
    assert not desk.window.adding.isEnabled() and not desk.window.editor.remove.isEnabled()
    desk.window.close()
    assert not desk.is_closed and "closes when that is done" in desk.window.status.text()
    desk.service.held.set()
    await desk.settle()
    assert desk.is_closed


@pytest.mark.parametrize(
    ("button", "closes", "saved"),
    [("Save", True, True), ("Discard", True, False), ("Cancel", False, False)],
)
async def test_a_close_with_changes_asks_first(
    desk: Desk, button: str, closes: bool, saved: bool
) -> None:
    await desk.add("receiver")
    desk.window.close()
    box = desk.window._question
    assert box is not None and not desk.is_closed
    assert box.textFormat() == QtCore.Qt.TextFormat.PlainText
    box.button(getattr(QtWidgets.QMessageBox.StandardButton, button)).click()
    await desk.settle()
    assert desk.is_closed is closes
    assert len(desk.service.stored["usb"]) == (2 if saved else 1)


async def test_a_close_that_cannot_save_leaves_the_window_with_the_reason(desk: Desk) -> None:
    await desk.add("receiver")
    desk.service.refuse["device.assign 1-3"] = CallError("busy", "xvdj is taken")
    desk.window.close()
    assert desk.window._question is not None
    desk.window._question.button(QtWidgets.QMessageBox.StandardButton.Save).click()
    await desk.settle()
    assert not desk.is_closed and desk.window.isVisible()
    assert desk.window.status.text() == "1 change is not saved."


async def test_the_names_of_devices_are_never_markup(desk: Desk) -> None:
    device = to_wire(desk.service.devices[0]) | {"description": HOSTILE}
    desk.service.answers["device.list"] = {"devices": [device]}
    await desk.changed()
    text = desk.cells()[0][0]
    assert "<img src=x> &amp" in text and "\u202e" not in text
    labels = desk.window.findChildren(QtWidgets.QLabel)
    plain = QtCore.Qt.TextFormat.PlainText
    assert labels and {each.textFormat() for each in labels} == {plain}
    for number in range(desk.window.table.rowCount()):
        assert desk.window.table.item(number, 0).toolTip() == ""  # tooltips read markup


async def test_every_part_has_a_name_for_screen_readers(desk: Desk) -> None:
    await desk.add("sda")
    kinds = (
        QtWidgets.QComboBox, QtWidgets.QLineEdit, QtWidgets.QListWidget, QtWidgets.QTableWidget,
        QtWidgets.QPlainTextEdit,
    )  # fmt: skip
    parts = [each for kind in kinds for each in desk.window.findChildren(kind)]
    assert len(parts) >= 9
    assert [each for each in parts if not each.accessibleName()] == []
    order, each = [], desk.window.table
    while (each := each.nextInFocusChain()) is not desk.window.table:
        order.append(each)
    assert desk.window.save_button in order and desk.window.adding.search in order


async def test_a_vm_that_goes_away_is_said_to_be_gone(desk: Desk) -> None:
    del desk.service.vms["work"]
    await desk.changed()
    assert desk.window.heading.text() == "Devices of work, which does not exist any more"
    assert desk.window.settings.rows[0].state is State.SAVED


async def test_errors_of_the_policy_are_said_as_everywhere(desk: Desk) -> None:
    desk.service.view.status = "the policy has errors"
    await desk.changed()
    assert desk.window.heading.text().splitlines()[1:] == ["the policy has errors"]
    desk.service.view.status = ""
    await desk.changed()
    assert len(desk.window.heading.text().splitlines()) == 1


async def test_many_devices_are_bounded_and_the_rest_is_counted(desk: Desk) -> None:
    desk.service.devices = [
        listed(f"sys-usb:2-{number}", identity=f"0781:5567:{number}:u080650")
        for number in range(250)
    ]
    await desk.changed()
    adding = desk.window.adding
    assert adding.list.count() == 200 and adding.note.text() == "50 more devices match."
    adding.search.setText("2-249")
    adding.search.textEdited.emit("2-249")
    assert adding.list.count() == 1 and adding.add.isEnabled()
    adding.search.textEdited.emit("")


async def test_a_program_that_ends_does_not_wait_for_an_answer(
    service: Service, qtbot: QtBot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(window, "PAUSE_S", 0)
    async with trio.open_nursery() as nursery:
        desk = Desk(service, nursery)
        await desk.settle()
        await desk.add("receiver")
        service.held = trio.Event()
        await desk.press(desk.window.save_button)
        nursery.cancel_scope.cancel()
    QtWidgets.QApplication.processEvents()
    assert desk.is_closed and desk.window._question is None


async def test_a_window_may_be_dropped_as_soon_as_it_is_closed(
    service: Service, qtbot: QtBot, nursery: trio.Nursery
) -> None:
    kept = {"it": SettingsWindow(service, "work", nursery.start_soon)}  # type: ignore[arg-type]
    destroyed = []
    kept["it"].destroyed.connect(lambda: destroyed.append(True))
    kept["it"].closed.connect(lambda: kept.clear())
    kept["it"].show()
    await trio.testing.wait_all_tasks_blocked()
    kept["it"].close()
    assert kept
    await trio.testing.wait_all_tasks_blocked()
    QtWidgets.QApplication.processEvents()
    QtWidgets.QApplication.sendPostedEvents(None, QtCore.QEvent.Type.DeferredDelete.value)
    assert not kept and destroyed
    service.change()  # and nobody is called any more


async def test_a_window_that_is_closed_is_told_of_no_change(desk: Desk) -> None:
    assert len(desk.service.changed) == 1
    desk.window.close()
    assert desk.service.changed == []


async def test_the_buttons_are_seen_on_a_small_screen(desk: Desk) -> None:
    shown = desk.window
    shown.resize(shown.width(), 0)
    assert shown.height() < 400
    for button in (shown.save_button, shown.close_button):
        assert shown.rect().contains(button.geometry())
