"""The menu of devices: what a click, a key and a change do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from pedos_widget.menu.devices_menu import IDLE_MS, REDRAW_MAX_MS, SETTLE_MS, Menu
from pedos_widget.menu.vm_menu import VmMenu
from pedos_widget.model.view import Action
from pedos_widget.qt import QtCore, QtGui, QtWidgets
from pytestqt.qtbot import QtBot

from tests.patience import PATIENCE
from tests.widget.pointing import QTest, approach, click, entry_of, move, place_of, point_at
from tests.widget.recording_controller import VMS, RecordingController, device_row, vm_row

WAIT_MS = PATIENCE * 1000
TRIES = 30  # to move the pointer without a pause of the machine
Key = QtCore.Qt.Key
Modifier = QtCore.Qt.KeyboardModifier
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


@pytest.fixture
def desktop(qtbot: QtBot) -> Iterator[Desktop]:
    desktop = Desktop(qtbot)
    yield desktop
    desktop.menu.close()


def test_block_devices_come_first_then_microphones_then_usb_devices(desktop: Desktop) -> None:
    menu = desktop.open()
    assert desktop.controller.openings == 1
    titles = [each.text() for each in menu.actions() if each.isSeparator() and each.text()]
    assert titles == ["Block devices", "Microphones", "USB devices"]
    assert desktop.shown()[-2:] == ["sys-usb:mic0 Stick", "None."]


def test_hovering_opens_the_vms_of_a_device_and_a_click_attaches_it(desktop: Desktop) -> None:
    desktop.open()
    submenu = desktop.hover("sdc")
    click(submenu, place_of(submenu, entry_of(submenu, "work")))
    assert desktop.controller.done == [("attach", DEVICES[2].ref, "work")]
    assert desktop.controller.calls[0] == ("look", DEVICES[2].ref, None)
    assert not desktop.menu.isVisible()


def test_the_vm_that_has_the_device_ejects_it(desktop: Desktop) -> None:
    eject = vm_row("work", Action.EJECT, text="work (attached)", bold=True)
    desktop.controller.show(device_row("sda", bold=True, vms=(vm_row("personal"), eject)))
    desktop.open()
    assert desktop.entry("sda").font().bold()
    submenu = desktop.hover("sda")
    assert entry_of(submenu, "work").font().bold()
    click(submenu, place_of(submenu, entry_of(submenu, "work")))
    assert desktop.controller.done == [("detach", DEVICES[0].ref, "work")]


@pytest.mark.parametrize(
    ("step_ms", "steps"), [(2, 20), (20, 20), (60, 20), (5, 200)],
    ids=["fast", "usual", "slow", "over every pixel"],
)  # fmt: skip
def test_the_way_to_a_vm_across_other_devices_attaches_the_first_device(
    desktop: Desktop, step_ms: int, steps: int
) -> None:
    desktop.controller.show(
        *(replace(row, vms=tuple(vm_row(f"vm{n}") for n in range(12))) for row in DEVICES)
    )
    for _ in range(TRIES):
        menu = desktop.open()
        submenu = desktop.hover("sda")
        start = place_of(menu, desktop.entry("sda"), from_left=0.3)
        end = place_of(submenu, entry_of(submenu, "vm6"), from_left=0.2)
        point_at(menu, start)
        if move(menu, start, end, step_ms=step_ms, steps=steps) < SETTLE_MS * 0.8:
            break
        menu.close()  # the machine rested on the way, which is to open another device
    assert submenu.isVisible()
    click(submenu, end)
    assert desktop.controller.done == [("attach", DEVICES[0].ref, "vm6")]


def test_after_a_straight_way_down_the_device_under_the_pointer_is_open(desktop: Desktop) -> None:
    menu = desktop.open()
    desktop.hover("sda")
    start, end = (place_of(menu, desktop.entry(name)) for name in ("sda", "sdf"))
    move(menu, start, end, step_ms=10)
    desktop.until(lambda: menu.activeAction() is desktop.entry("sdf"))
    desktop.until(desktop.submenu("sdf").isVisible)
    assert not desktop.submenu("sda").isVisible()


def test_keys_alone_attach_a_device(desktop: Desktop) -> None:
    desktop.open()
    desktop.key(Key.Key_Down)
    desktop.key(Key.Key_Down)
    desktop.key(Key.Key_Right)
    submenu = desktop.submenu("sdb")
    desktop.until(submenu.isVisible)
    desktop.key(Key.Key_Down)
    desktop.key(Key.Key_Return)
    assert desktop.controller.done == [("attach", DEVICES[1].ref, "personal")]


def test_the_way_up_passes_the_heading_by(desktop: Desktop) -> None:
    menu = desktop.open()
    desktop.key(Key.Key_Down)
    assert menu.activeAction() is desktop.entry("sda")
    desktop.key(Key.Key_Up)
    assert menu.activeAction() is entry_of(menu, "None.")


def test_typing_shows_what_fits_and_escape_clears_before_it_closes(desktop: Desktop) -> None:
    menu = desktop.open()
    assert desktop.shown()[0] == "Type to search"
    desktop.type("SDc st")
    assert desktop.shown() == ["Search: SDc st", "sys-usb:sdc Stick"]
    titles = [each.text() for each in menu.actions() if each.isSeparator() and each.isVisible()]
    assert titles == ["Block devices"]
    desktop.key(Key.Key_Backspace)
    assert desktop.shown()[0] == "Search: SDc s"
    desktop.type("xyz")
    assert desktop.shown() == ["Search: SDc sxyz - there is none"]
    desktop.key(Key.Key_Escape)
    assert menu.isVisible()
    assert len(desktop.shown()) == 11
    desktop.key(Key.Key_Escape)
    assert not menu.isVisible()


def test_a_query_is_gone_when_the_menu_opens_the_next_time(desktop: Desktop) -> None:
    desktop.open()
    desktop.type("sdc")
    desktop.menu.close()
    desktop.open()
    assert len(desktop.shown()) == 11


def test_a_device_that_was_searched_for_is_attached_by_keys(desktop: Desktop) -> None:
    desktop.open()
    desktop.type("sdg")
    desktop.key(Key.Key_Down)
    desktop.key(Key.Key_Right)
    desktop.until(desktop.submenu("sdg").isVisible)
    desktop.type("wo")
    desktop.key(Key.Key_Down)
    desktop.key(Key.Key_Return)
    assert desktop.controller.done == [("attach", DEVICES[6].ref, "work")]


def test_a_submenu_begins_with_its_device(desktop: Desktop) -> None:
    desktop.open()
    submenu = desktop.hover("sdc")
    heading = submenu.entries()[0]
    assert heading.shown == "sys-usb:sdc Stick"
    assert not heading.isEnabled()


def test_a_device_that_goes_is_greyed_and_moves_no_other(desktop: Desktop) -> None:
    menu = desktop.open()
    submenu = desktop.hover("sdc")
    places = {row.ref: menu.actionGeometry(desktop.entry(row.ref.device)) for row in DEVICES}
    size = menu.size()
    desktop.changed(*DEVICES[:2], *DEVICES[3:])
    assert not desktop.entry("sdc").isEnabled()
    assert desktop.entry("sdc").shown == "sys-usb:sdc Stick - not there any more"
    assert {
        row.ref: menu.actionGeometry(desktop.entry(row.ref.device)) for row in DEVICES
    } == places
    assert menu.size().width() == size.width()
    assert submenu.entries()[0].shown == "sys-usb:sdc Stick - not there any more"
    click(submenu, place_of(submenu, entry_of(submenu, "work")))
    assert desktop.controller.done == []


def test_a_device_that_is_back_can_be_attached_again(desktop: Desktop) -> None:
    desktop.open()
    desktop.changed(*DEVICES[1:])
    desktop.changed(*DEVICES)
    submenu = desktop.hover("sda")
    click(submenu, place_of(submenu, entry_of(submenu, "work")))
    assert desktop.controller.done == [("attach", DEVICES[0].ref, "work")]


def test_another_device_in_its_place_is_another_entry(desktop: Desktop) -> None:
    """What was shown is what is acted upon, so the entry of the one never becomes the other's."""
    other = device_row("sda", ref=replace(DEVICES[0].ref, identity="another-stick"))
    desktop.open()
    entry = desktop.entry("sda")
    desktop.changed(other, *DEVICES[1:])
    assert not entry.isEnabled()
    assert desktop.shown()[-1] == "sys-usb:sda Stick"


def test_a_new_device_comes_at_the_end_and_in_its_place_the_next_time(desktop: Desktop) -> None:
    desktop.open()
    before = desktop.shown()
    new = device_row("sdc0", text="sys-usb:new one")
    desktop.changed(new, *DEVICES, device_row("mic0", "mic"))
    assert desktop.shown() == [*before, "sys-usb:new one"]
    desktop.menu.close()
    desktop.open()
    assert desktop.shown()[1] == "sys-usb:new one"
    assert len(desktop.shown()) == len(before) + 1


def test_why_a_class_has_no_devices_stays_true_while_the_menu_is_open(desktop: Desktop) -> None:
    desktop.open()
    mic = device_row("mic0", "mic")
    desktop.changed(*DEVICES, mic, device_row("1-2", "usb"))
    assert "None." not in desktop.shown()
    assert "Some have come since this menu was opened." in desktop.shown()
    desktop.changed(*DEVICES, mic)
    assert "None." in desktop.shown()


def test_what_is_new_and_finds_no_room_is_said(desktop: Desktop) -> None:
    many = [device_row(f"sda{number}") for number in range(1, 101)]
    desktop.controller.show(*many)
    desktop.open()
    desktop.changed(*many, *DEVICES[:2])
    assert desktop.shown()[0] == "2 new devices: open this menu again"
    desktop.menu.close()
    desktop.open()
    assert desktop.shown()[0] == "Type to search"
    assert len(desktop.menu._rows) == 102


def test_hundreds_that_find_no_room_are_not_tried_one_by_one(
    desktop: Desktop, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = 0

    def try_one(entries: list[Any]) -> bool:
        nonlocal tried
        tried += 1
        return add(entries)

    many = [device_row(f"sda{number}") for number in range(1, 101)]
    desktop.controller.show(*many)
    menu = desktop.open()
    add = menu.add_if_it_fits
    monkeypatch.setattr(menu, "add_if_it_fits", try_one)
    desktop.changed(*many, *(device_row(f"new{number}") for number in range(300)))
    assert tried == 1
    assert desktop.shown()[0] == "300 new devices: open this menu again"


def turn_wheel(menu: Any, place: QtCore.QPoint) -> None:
    """One step down. Qt gives it to the menu that was opened last, wherever the pointer is."""
    top = QtWidgets.QApplication.activePopupWidget()
    event = QtGui.QWheelEvent(
        QtCore.QPointF(top.mapFromGlobal(place)), QtCore.QPointF(place), QtCore.QPoint(),
        QtCore.QPoint(0, -120), QtCore.Qt.MouseButton.NoButton, Modifier.NoModifier,
        QtCore.Qt.ScrollPhase.NoScrollPhase, False,
    )  # fmt: skip
    QtWidgets.QApplication.sendEvent(top, event)


def test_the_wheel_scrolls_the_menu_that_it_is_turned_over(desktop: Desktop) -> None:
    desktop.controller.show(*(device_row(f"sda{number}") for number in range(1, 101)))
    menu = desktop.open()
    submenu = desktop.hover("sda9 ")
    place = place_of(menu, desktop.entry("sda9 "))
    before = menu.actionGeometry(desktop.entry("sda20 ")).top()
    for _ in range(5):
        turn_wheel(menu, place)
    assert menu.actionGeometry(desktop.entry("sda20 ")).top() < before - 50
    assert not submenu.isVisible()
    # Where the pointer rests then is the device whose VMs are shown.
    under = menu.actionAt(menu.mapFromGlobal(place))
    desktop.until(lambda: menu.activeAction() is under)
    desktop.until(under.menu().isVisible)
    assert under is not desktop.entry("sda9 ")
    assert menu.actionAt(menu.mapFromGlobal(place)) is under  # and it has not been scrolled there


def test_the_vms_are_asked_for_before_the_submenu_opens(desktop: Desktop) -> None:
    desktop.controller.show(device_row("sda", vms=None), *DEVICES[1:])
    desktop.open()
    desktop.key(Key.Key_Down)
    assert desktop.controller.calls == [("look", DEVICES[0].ref, None)]
    desktop.key(Key.Key_Down)  # what is known already is asked when it is opened
    assert desktop.controller.calls == [("look", DEVICES[0].ref, None)]


def test_to_show_it_again_leaves_it_where_it_is(desktop: Desktop) -> None:
    menu = desktop.open()
    submenu = desktop.hover("sdc")
    place = menu.pos()
    menu.popup_at(QtCore.QPoint(300, 300))
    assert (menu.pos(), submenu.isVisible()) == (place, True)


def test_vms_that_are_not_known_yet_are_filled_in_when_they_are(desktop: Desktop) -> None:
    desktop.controller.show(device_row("sda", vms=None))
    desktop.open()
    submenu = desktop.hover("sda")
    assert submenu.entries()[1].shown == "Asking which VMs may have it..."
    desktop.changed(device_row("sda"))
    assert [each.shown for each in submenu.entries() if each.isVisible()] == [
        "sys-usb:sda Stick", "personal", "untrusted", "work",
    ]  # fmt: skip
    assert submenu.height() >= submenu.sizeHint().height()
    click(submenu, place_of(submenu, entry_of(submenu, "untrusted")))
    assert desktop.controller.done == [("attach", DEVICES[0].ref, "untrusted")]


def test_vms_keep_their_places_while_they_are_shown(desktop: Desktop) -> None:
    desktop.controller.show(device_row("sda"))
    desktop.open()
    submenu = desktop.hover("sda")
    place = submenu.actionGeometry(entry_of(submenu, "work"))
    desktop.changed(device_row("sda", vms=(vm_row("alpha"), *VMS[1:])))
    assert submenu.actionGeometry(entry_of(submenu, "work")) == place
    assert not entry_of(submenu, "personal (not running any more)").isEnabled()
    assert submenu.entries()[-1].shown == "alpha"
    click(submenu, place_of(submenu, submenu.entries()[-1]))
    assert desktop.controller.done == [("attach", DEVICES[0].ref, "alpha")]


def test_a_vm_that_comes_to_eject_under_the_pointer_does_nothing_for_a_moment(
    desktop: Desktop,
) -> None:
    desktop.controller.show(device_row("sda"))
    desktop.open()
    submenu = desktop.hover("sda")
    place = place_of(submenu, entry_of(submenu, "work"))
    has_it = vm_row("work", Action.EJECT, text="work (attached)")
    desktop.changed(device_row("sda", vms=(*VMS[:2], has_it)))
    assert entry_of(submenu, "work").shown == "work (attached)"
    assert entry_of(submenu, "personal").isEnabled()
    click(submenu, place)
    assert desktop.controller.done == []
    assert submenu.isVisible()
    submenu._hold.stop()
    submenu._hold.timeout.emit()  # as after HOLD_MS
    click(submenu, place)
    assert desktop.controller.done == [("detach", DEVICES[0].ref, "work")]


def test_to_attach_again_and_the_vm_itself_are_two_entries(desktop: Desktop) -> None:
    again = vm_row("work", text="Attach to work again", is_again=True)
    desktop.controller.show(device_row("sda", vms=(again, *VMS)))
    desktop.open()
    submenu = desktop.hover("sda")
    assert [each.shown for each in submenu.entries() if each.isVisible()][1:] == [
        "Attach to work again", "personal", "untrusted", "work",
    ]  # fmt: skip
    click(submenu, place_of(submenu, entry_of(submenu, "Attach")))
    assert desktop.controller.done == [("attach", DEVICES[0].ref, "work")]


def test_to_attach_again_is_not_possible_once_something_has_it(desktop: Desktop) -> None:
    again = vm_row("work", text="Attach to work again", is_again=True)
    desktop.controller.show(device_row("sda", vms=(again, *VMS)))
    desktop.open()
    submenu = desktop.hover("sda")
    desktop.changed(device_row("sda", vms=VMS))
    assert [each.shown for each in submenu.entries() if each.isVisible()][1:3] == [
        "Attach to work again (not possible now)", "personal",
    ]  # fmt: skip
    assert not entry_of(submenu, "Attach").isEnabled()
    desktop.changed(device_row("sda", vms=(again, *VMS)))
    assert entry_of(submenu, "Attach").shown == "Attach to work again"
    assert entry_of(submenu, "Attach").isEnabled()


def test_the_keyboard_reaches_what_is_greyed_and_does_not_choose_it(desktop: Desktop) -> None:
    denied = vm_row(
        "vault", Action.NONE, text="vault (policy denies it)", enabled=False, detail="rule 7"
    )
    desktop.controller.show(device_row("sda", vms=(denied, *VMS)))
    asked: list[object] = []
    desktop.menu.why = asked.append
    desktop.open()
    desktop.key(Key.Key_Down)
    desktop.key(Key.Key_Right)
    submenu = desktop.submenu("sda")
    desktop.until(submenu.isVisible)
    desktop.key(Key.Key_Down)
    assert submenu.activeAction() is entry_of(submenu, "vault")
    assert not submenu.grab().isNull()
    desktop.key(Key.Key_Return)
    assert submenu.isVisible()
    assert desktop.controller.done == []
    click(submenu, place_of(submenu, entry_of(submenu, "Why is 1 greyed?")))
    assert asked == [DEVICES[0].ref]


def test_what_became_of_a_click_is_in_the_row_until_it_was_seen(desktop: Desktop) -> None:
    ref = DEVICES[0].ref
    desktop.controller.tell(ref, "work", "attach", "working")
    desktop.open()
    assert desktop.entry("sda").shown == "sys-usb:sda Stick"  # the model has words for it
    submenu = desktop.hover("sda")
    assert not entry_of(submenu, "work").isEnabled()
    desktop.controller.tell(ref, "work", "attach", "failed", "it is mounted")
    desktop.changed(*DEVICES)
    assert desktop.entry("sda").shown == "sys-usb:sda Stick - not attached to work: it is mounted"
    assert submenu.entries()[0].shown == desktop.entry("sda").shown
    assert entry_of(submenu, "work").isEnabled()
    desktop.menu.close()
    desktop.open()
    assert desktop.entry("sda").shown == "sys-usb:sda Stick"


def test_what_was_done_in_another_way_is_said(desktop: Desktop) -> None:
    desktop.controller.tell(DEVICES[0].ref, "work", "attach", "done", "Policy sent it to vault.")
    desktop.controller.tell(DEVICES[1].ref, "work", "attach", "done")
    desktop.open()
    assert desktop.entry("sda").shown == "sys-usb:sda Stick - done: Policy sent it to vault."
    assert desktop.entry("sdb").shown == "sys-usb:sdb Stick"


def test_what_is_wrong_stands_at_the_top(desktop: Desktop) -> None:
    desktop.open()
    desktop.changed(connected=False, status="Not connected: the service is not running.")
    assert desktop.shown()[0] == "Not connected: the service is not running."
    assert all(not row.entry.isEnabled() for row in desktop.menu._rows.values())


def test_a_menu_that_opened_empty_is_filled_in_order(desktop: Desktop) -> None:
    desktop.controller.show(connected=False, status="Not connected.")
    menu = desktop.open()
    assert desktop.shown() == ["Not connected.", "None.", "None.", "None."]
    desktop.changed(*DEVICES)
    assert desktop.shown()[:2] == ["Type to search", "sys-usb:sda Stick"]
    assert menu.screen().availableGeometry().contains(menu.geometry())
    submenu = desktop.hover("sdh")
    click(submenu, place_of(submenu, entry_of(submenu, "work")))
    assert desktop.controller.done == [("attach", DEVICES[7].ref, "work")]


def test_many_changes_are_drawn_once(desktop: Desktop, monkeypatch: pytest.MonkeyPatch) -> None:
    desktop.open()
    drawn: list[int] = []
    heading = desktop.menu.say_heading
    monkeypatch.setattr(desktop.menu, "say_heading", lambda: (drawn.append(1), heading()))
    for _ in range(100):
        desktop.controller.show(*DEVICES)
    desktop.until(lambda: not desktop.menu._redraw.isActive())
    assert len(drawn) == 1


def test_changes_that_take_long_to_draw_leave_as_much_time_for_the_user(
    desktop: Desktop, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter([10.0, 10.25, 20.0, 29.0, 30.0, 30.0])
    monkeypatch.setattr("pedos_widget.menu.devices_menu.monotonic", lambda: next(times))
    menu = desktop.open()
    intervals = []
    for number in range(3):
        desktop.changed(*DEVICES[:number])
        intervals.append(menu._redraw.interval())
    assert intervals == [250, REDRAW_MAX_MS, 0]


def test_it_closes_after_a_minute_without_input(qtbot: QtBot) -> None:
    menu = Menu(RecordingController(*DEVICES))
    qtbot.addWidget(menu)
    menu.popup_at(QtCore.QPoint(20, 20))
    assert menu._idle.interval() == IDLE_MS == 60_000
    assert menu._idle.isActive()
    menu._idle.setInterval(1)
    qtbot.waitUntil(lambda: not menu.isVisible(), timeout=WAIT_MS)


def test_input_anywhere_in_it_puts_the_closing_off(
    desktop: Desktop, monkeypatch: pytest.MonkeyPatch
) -> None:
    desktop.open()
    submenu = desktop.hover("sda")
    desktop.menu._idle.stop()
    desktop.key(Key.Key_Down)
    assert desktop.menu._idle.isActive()
    desktop.menu._idle.stop()
    point_at(submenu, place_of(submenu, entry_of(submenu, "work")))
    assert desktop.menu._idle.isActive()


def test_closing_it_closes_the_submenu(desktop: Desktop) -> None:
    desktop.open()
    submenu = desktop.hover("sda")
    desktop.menu.close()
    assert not submenu.isVisible()


HOSTILE = [
    "<b>bold</b> <img src=file:///etc/passwd>",
    "R&D && &x",
    "abc\u202etxt.exe\u2066",
    "one\ntwo\r\x1b[31m\tthree",
    "x" * 3000,
]


@pytest.mark.parametrize("name", HOSTILE, ids=["tags", "ampersands", "rtl", "controls", "long"])
def test_a_hostile_name_is_one_plain_line(desktop: Desktop, name: str) -> None:
    vm = vm_row("work", text=name, detail=name)
    row = device_row("sda", text=name, spoken=name, detail=name, vms=(vm,), note=name)
    desktop.controller.show(row, *DEVICES[1:])
    menu = desktop.open()
    entry = menu._rows[row.ref].entry
    assert entry.shown.isprintable()
    assert entry.text().replace("&&", "&") == entry.shown
    assert "<b>" not in entry.toolTip()
    assert "<img" not in entry.toolTip()
    # As high and as wide as any other, and on the screen.
    other = menu.actionGeometry(desktop.entry("sdb"))
    assert menu.actionGeometry(entry).size() == other.size()
    assert menu.width() < menu.screen().availableGeometry().width() / 2 + 100
    submenu = menu._rows[row.ref].vms
    approach(menu, entry)
    desktop.until(submenu.isVisible)
    assert all(each.shown.isprintable() for each in submenu.entries())
    click(submenu, place_of(submenu, submenu.entries()[1]))
    assert desktop.controller.done == [("attach", row.ref, "work")]


def test_the_drawn_text_has_no_mnemonic_and_is_elided(desktop: Desktop) -> None:
    from pedos_widget.qt import QtWidgets

    desktop.controller.show(device_row("sda", text=f"R&D {'x' * 3000} end"))
    menu = desktop.open()
    option = QtWidgets.QStyleOptionMenuItem()
    (row,) = menu._rows.values()
    menu.initStyleOption(option, row.entry)
    assert option.text.startswith("R&&D xx")
    assert option.text.endswith("...")  # what is longer than any screen is cut before
    assert "…" in option.text
    metrics = QtGui.QFontMetrics(option.font)
    assert metrics.horizontalAdvance(option.text.replace("&&", "&")) <= menu.text_width


def test_a_screen_reader_hears_what_the_eye_sees_as_bold(desktop: Desktop) -> None:
    spoken = "Disk sda of sys-usb, attached to work"
    desktop.controller.show(device_row("sda", text="sda", spoken=spoken, bold=True))
    menu = desktop.open()
    (row,) = menu._rows.values()
    assert row.entry.text() == spoken
    assert row.vms.accessibleName() == spoken
    assert menu.accessibleName() == "Devices"
    accessible = getattr(QtGui, "QAccessible", None)
    if accessible is not None:  # PyQt6 has none
        said = accessible.queryAccessibleInterface(menu)
        names = [said.child(i).text(accessible.Text.Name) for i in range(said.childCount())]
        assert spoken in names


def things_in(menu: Menu) -> int:
    return len(menu.findChildren(QtCore.QObject))


def test_opening_it_often_leaves_nothing_behind(desktop: Desktop) -> None:
    desktop.open()
    desktop.menu.close()
    QTest.qWait(0)
    before = things_in(desktop.menu)
    for _ in range(50):
        desktop.menu.popup_at(QtCore.QPoint(20, 20))
        desktop.menu.close()
    desktop.until(lambda: things_in(desktop.menu) <= before)


def test_ten_thousand_changes_leave_nothing_behind(desktop: Desktop) -> None:
    """Closed or open, with devices that come and go."""
    few = [device_row(f"sda{number}") for number in range(1, 5)]
    for is_open in (False, True):
        if is_open:
            desktop.open()
        desktop.changed(*few, *DEVICES)
        desktop.changed(*DEVICES)
        before = things_in(desktop.menu)
        for number in range(10_000):
            desktop.controller.show(*(few if number % 2 else ()), *DEVICES)
            if number % 500 == 0:
                desktop.until(lambda: not desktop.menu._redraw.isActive())
        desktop.until(lambda: not desktop.menu._redraw.isActive())
        desktop.until(lambda before=before: things_in(desktop.menu) <= before)
