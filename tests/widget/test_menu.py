"""The menu of devices: what a click and a key do, and what it shows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from pedos_widget.menu.devices_menu import IDLE_MS, SETTLE_MS, Menu
from pedos_widget.menu.style import MenuStyle
from pedos_widget.model.view import Action
from pedos_widget.qt import QtCore, QtGui, QtWidgets
from pytestqt.qtbot import QtBot

from tests.widget.menu_desktop import DEVICES, WAIT_MS, Desktop
from tests.widget.pointing import approach, click, entry_of, move, place_of, point_at
from tests.widget.recording_controller import VMS, RecordingController, device_row, vm_row

TRIES = 30  # to move the pointer without a pause of the machine
Key = QtCore.Qt.Key
Modifier = QtCore.Qt.KeyboardModifier


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


def test_a_search_in_a_long_menu_shows_what_it_finds_whole(desktop: Desktop) -> None:
    """No arrow of a menu that scrolls lies over the last of few rows, and many still scroll."""
    desktop.controller.show(*(device_row(f"sda{number}") for number in range(1, 101)))
    menu = desktop.open()
    assert has_arrows(menu)
    for _ in range(5):
        turn_wheel(menu, menu.geometry().center())
    desktop.type("sda9")
    assert len(desktop.shown()) == 12  # the search; sda9, and sda90 to sda99
    assert menu.rect().contains(menu.actionGeometry(desktop.entry("sda99")))
    assert menu.actionGeometry(menu.entries()[0]).top() >= 0
    assert not has_arrows(menu)
    desktop.key(Key.Key_Escape)
    assert has_arrows(menu)
    before = menu.actionGeometry(desktop.entry("sda20 ")).top()
    turn_wheel(menu, menu.geometry().center())
    assert menu.actionGeometry(desktop.entry("sda20 ")).top() < before


def has_arrows(menu: Menu) -> bool:
    """Whether the menu draws an arrow to scroll it by, at its beginning or its end."""
    drawn: list[Any] = []

    class Noting(MenuStyle):
        def drawControl(  # noqa: N802 - Qt's name
            self, element: Any, option: Any, painter: Any, widget: Any = None
        ) -> None:
            drawn.append(element)

    style = Noting()
    menu.setStyle(style)
    menu.grab()
    menu.setStyle(None)
    return QtWidgets.QStyle.ControlElement.CE_MenuScroller in drawn


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
    row = menu.mapToGlobal(menu.actionGeometry(under).topLeft())
    assert abs(under.menu().y() - row.y()) <= 2  # they stand beside it


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


def test_what_was_done_in_another_way_is_said(desktop: Desktop) -> None:
    desktop.controller.tell(DEVICES[0].ref, "work", "attach", "done", "Policy sent it to vault.")
    desktop.controller.tell(DEVICES[1].ref, "work", "attach", "done")
    desktop.open()
    assert desktop.entry("sda").shown == "sys-usb:sda Stick - done: Policy sent it to vault."
    assert desktop.entry("sdb").shown == "sys-usb:sdb Stick"


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
