"""The menu of devices while things change: what has gone, what is new, and what that costs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal

import pytest
from pedos_widget.menu.devices_menu import REDRAW_MAX_MS, Menu
from pedos_widget.menu.results import Results, row_with_result
from pedos_widget.menu.steady import WIDTH_MOST
from pedos_widget.model.view import Action, DeviceRef, Result
from pedos_widget.qt import QtCore
from pytestqt.qtbot import QtBot

from tests.widget.menu_desktop import DEVICES, Desktop
from tests.widget.pointing import QTest, click, entry_of, place_of
from tests.widget.recording_controller import VMS, device_row, vm_row


@pytest.fixture
def desktop(qtbot: QtBot) -> Iterator[Desktop]:
    desktop = Desktop(qtbot)
    yield desktop
    desktop.menu.close()


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


def test_a_greyed_device_that_goes_is_said_to_have_gone(desktop: Desktop) -> None:
    greyed = replace(DEVICES[2], enabled=False, text="sys-usb:sdc Stick, attached to work")
    desktop.controller.show(*DEVICES[:2], greyed, *DEVICES[3:], connected=False)
    desktop.open()
    desktop.changed(*DEVICES[:2], *DEVICES[3:])
    gone = "sys-usb:sdc Stick, attached to work - not there any more"
    assert desktop.entry("sdc").shown == gone


def test_a_device_that_goes_before_its_vms_are_known_is_asked_about_no_more(
    desktop: Desktop,
) -> None:
    asked = device_row("sda", vms=None)
    desktop.controller.show(asked, DEVICES[1])
    desktop.open()
    submenu = desktop.hover("sda")

    def shown() -> list[str]:
        return [each.shown for each in submenu.entries() if each.isVisible()]

    desktop.changed(DEVICES[1])
    assert shown() == ["sys-usb:sda Stick - not there any more"]
    desktop.changed(asked, DEVICES[1])
    assert shown() == ["sys-usb:sda Stick", "Asking which VMs may have it..."]
    desktop.changed(*DEVICES[:2])
    assert shown() == ["sys-usb:sda Stick", "personal", "untrusted", "work"]


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


def test_why_is_not_asked_of_a_device_that_has_gone(desktop: Desktop) -> None:
    denied = vm_row("vault", Action.NONE, text="vault (denied)", enabled=False)
    desktop.controller.show(device_row("sda", vms=(denied,)), *DEVICES[1:])
    desktop.open()
    submenu = desktop.hover("sda")
    why = entry_of(submenu, "Why is 1 greyed?")
    assert why.isEnabled()
    desktop.changed(*DEVICES[1:])
    assert not why.isEnabled()
    desktop.changed(device_row("sda", vms=(denied,)), *DEVICES[1:])
    assert why.isEnabled()


@pytest.mark.parametrize("name", ["sys-usb:sda", "sys-usb:" + "x" * 60 + ".img"])
@pytest.mark.parametrize("state", ["denied", "failed"])
def test_a_row_that_is_elided_keeps_that_it_was_not_attached(
    name: str, state: Literal["denied", "failed"]
) -> None:
    ref = DeviceRef("block", "sys-usb", name, "")
    why = "a reason that is longer than what a row has room for, as some of them are"
    results = Results()
    results.take(Result(ref, "personal", "attach", state, why))
    row = row_with_result(f"{name} · Flash Disk · 1.0 MiB", results.words(ref, short=True))
    kept = row[: WIDTH_MOST // 2]
    assert "denied:" in kept if state == "denied" else "not attached" in kept
