"""The widget on a real desktop - panel, window manager, notification daemon - with a real system.

Each test leaves pictures in build/widget/e2e: they are to be looked at, too.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import needs_fuse
from tests.e2e.system import LocalSystem
from tests.patience import PATIENCE

from .desktop import Desktop, lacking
from .driving import BIN, Widget, make_system

pytestmark = [
    needs_fuse,
    pytest.mark.skipif(bool(lacking()), reason=f"no virtual desktop: {', '.join(lacking())}"),
]

PICTURES = Path(__file__).resolve().parents[3] / "build/widget/e2e"
MIB = 1 << 20
POLICY = """\
device.attach.block    +sys-usb:private*   @adminvm   work     ask
"""
DENY = """\
device.attach.block    +sys-usb:late*      @adminvm   @anyvm   deny
"""
DENIED = 3  # exit status of qvm-device
STRANGE = ("a&b_c.img", "bold.b-i-u.img", "x" * 60 + ".img", "%s{0}.img", "100%25.img")
# Seconds until an answer is tried for the first time, and between two tries: a dialog is armed
# after one, and each key before that begins the wait anew.
TRY_S, TRY_AGAIN_S = 1.3, 2.5


@pytest.fixture(scope="module")
def system() -> Iterator[LocalSystem]:
    with tempfile.TemporaryDirectory(prefix="pedos-e2e-", ignore_cleanup_errors=True) as folder:
        system = make_system(Path(folder) / "system", POLICY)
        system.up()
        yield system
        if system.is_up:
            assert system.down() == 0, system.log()


@pytest.fixture(scope="module")
def desktop() -> Iterator[Desktop]:
    with (
        tempfile.TemporaryDirectory(prefix="pedos-desktop-") as folder,
        Desktop(Path(folder)) as it,
    ):
        yield it


@pytest.fixture(scope="module")
def started(system: LocalSystem, desktop: Desktop) -> Iterator[Widget]:
    shutil.rmtree(PICTURES, ignore_errors=True)
    widget = Widget(desktop, system, PICTURES)
    widget.start()
    yield widget
    assert widget.end() == 0, desktop.said("pedos-widget")
    assert "Traceback" not in desktop.said("pedos-widget")


@pytest.fixture
def widget(started: Widget) -> Iterator[Widget]:
    """No menu is open before a test, nor after it."""
    started.close()
    yield started
    started.picture("at-the-end")
    started.close()


def plug(widget: Widget, name: str) -> str:
    widget.system.plug("sys-usb", name, os.urandom(MIB))
    return f"sys-usb:{name}"


def test_a_disk_is_attached_by_the_keyboard_shown_bold_and_ejected(widget: Widget) -> None:
    name = plug(widget, "keyboard.img")
    with widget.opened("keyboard.img"):
        row = widget.marked()
        assert row is not None
        plain = widget.weight(row)
        widget.open_submenu()
        widget.picture("keyboard-submenu")
        widget.desktop.keys("Return")
    widget.wait_attached(name, "work")
    with widget.opened("keyboard.img"):
        widget.wait_until(
            lambda: (row := widget.marked()) is not None and widget.weight(row) > 1.2 * plain,
            "the row of what is attached is bold",
        )
        widget.open_submenu()
        widget.picture("keyboard-attached")
        widget.desktop.keys("Return")
    widget.wait_detached(name, "work")


def test_a_disk_is_attached_by_the_mouse(widget: Widget) -> None:
    name = plug(widget, "mouse.img")
    with widget.opened("mouse.img"):
        row = widget.marked()
        assert row is not None
        x, y = row.middle
        widget.desktop.glide((x, y - 60), (x, y), steps=6, ms=10)
        widget.wait_until(lambda: len(widget.windows()) > 1, "the submenu is open")
        widget.wait_until(lambda: next(widget.rows(), None), "a VM can be chosen")
        widget.picture("mouse-submenu")
        row = widget.marked(1)
        assert row is not None
        widget.desktop.click(*row.middle)
        widget.wait_attached(name, "work")
    widget.system.ok("qvm-device", "block", "detach", "work", name)


def test_what_the_policy_denies_cannot_be_chosen(widget: Widget) -> None:
    plug(widget, "greyed.img")
    with widget.opened("greyed.img"):
        widget.open_submenu()
        # work, and the question why vault is greyed; vault itself is never marked.
        rows = list(widget.rows())
        widget.picture("greyed")
        assert len(rows) <= 2
    assert widget.system.attached_to("sys-usb:greyed.img") == []


def test_a_refusal_is_told_with_its_reason(widget: Widget) -> None:
    plug(widget, "late.img")
    rules = widget.system.folder / "policy.d/05-late.policy"
    try:
        with widget.opened("late.img"):
            widget.open_submenu()
            before = widget.system.policy_status()["rules"]
            rules.write_text(DENY)
            widget.wait_until(
                lambda: widget.system.policy_status()["rules"] != before, "the rule is in force"
            )
            widget.desktop.keys("Return")
            widget.wait_until(
                lambda: widget.told("May not be attached to work", "late.img"),
                "the refusal is told",
            )
            widget.picture("refused")
    finally:
        rules.unlink()
    assert widget.system.attached_to("sys-usb:late.img") == []


def test_a_question_is_answered(widget: Widget) -> None:
    name = plug(widget, "private.img")
    widget.open("private.img")
    widget.open_submenu()
    widget.picture("asks-first")
    widget.desktop.keys("Return")  # which closes the menu
    widget.wait_until(widget.question, "the question is on the screen")
    widget.picture("question")
    widget.desktop.click(*_upper_part(widget))
    next_try = time.monotonic() + TRY_S

    def answered() -> bool:
        nonlocal next_try
        if time.monotonic() >= next_try:
            widget.desktop.keys("Down", "alt+a")
            next_try = time.monotonic() + TRY_AGAIN_S
        return widget.attached(name, "work")

    widget.wait_until(answered, "the answer is taken")
    widget.wait_until(lambda: not widget.question(), "the question is gone")
    widget.system.ok("qvm-device", "block", "detach", "work", name)


def test_a_question_leaves_an_open_menu_open_and_stands_beside_it(widget: Widget) -> None:
    name = plug(widget, "private-too.img")
    menu = widget.open()
    with widget.system.started("qvm-device", "block", "attach", "work", name) as command:
        widget.wait_until(widget.question, "the question is on the screen")
        widget.picture("question-beside-the-menu")
        [question] = widget.question()
        assert menu in widget.windows()
        assert question.x + question.width < menu.x or question.y > menu.y + menu.height
        widget.desktop.keys("Escape")
        widget.wait_until(lambda: widget.windows() == widget.question(), "the menu is closed")
        widget.desktop.click(*_upper_part(widget))
        widget.desktop.keys("Escape")
        widget.wait_until(lambda: not widget.question(), "the question is answered")
        assert command.wait(PATIENCE) == DENIED


def _upper_part(widget: Widget) -> tuple[int, int]:
    [area] = widget.question()
    return area.x + area.width // 2, area.y + 12


def test_a_microphone_is_lent(widget: Widget) -> None:
    name = next(name for name in widget.system.devices("mic") if name.startswith("sys-usb:"))
    with widget.opened(name.partition(":")[2]):
        widget.open_submenu()
        widget.picture("microphone")
        widget.desktop.keys("Return")
    widget.wait_attached(name, "work", "mic")
    widget.system.ok("qvm-device", "mic", "detach", "work", name)


def test_what_is_plugged_in_appears_in_the_open_menu_and_is_told(widget: Widget) -> None:
    with widget.opened() as area:
        before = b"".join(widget.desktop.screen.rows(area))
        plug(widget, "hotplug.img")
        widget.wait_until(
            lambda: b"".join(widget.desktop.screen.rows(widget.windows()[0])) != before,
            "the menu shows the new disk",
        )
        widget.picture("hotplug")
    widget.wait_until(lambda: widget.told("hotplug.img"), "a notification tells of it")


def test_what_another_program_attaches_is_shown_in_the_open_menu(widget: Widget) -> None:
    name = plug(widget, "elsewhere.img")
    with widget.opened("elsewhere.img"):
        row = widget.marked()
        assert row is not None
        plain = widget.weight(row)
        widget.system.ok("qvm-device", "block", "attach", "work", name)
        widget.wait_until(
            lambda: (row := widget.marked()) is not None and widget.weight(row) > 1.2 * plain,
            "the row becomes bold",
        )
        widget.picture("attached-elsewhere")
        widget.system.ok("qvm-device", "block", "detach", "work", name)


def test_the_service_is_killed_and_comes_back(widget: Widget) -> None:
    [dom0] = widget.system.victim("dom0")
    os.kill(dom0, signal.SIGKILL)
    widget.wait_until(lambda: widget.system.agents() >= {"sys-usb", "work"}, "the service is back")
    name = plug(widget, "after.img")
    widget.wait_until(lambda: widget.told("after.img"), "the widget is connected again")
    with widget.opened("after.img"):
        widget.open_submenu()
        widget.picture("service-is-back")
        widget.desktop.keys("Return")
    widget.wait_attached(name, "work")
    widget.system.ok("qvm-device", "block", "detach", "work", name)


def test_the_panel_is_killed_and_comes_back(widget: Widget) -> None:
    widget.desktop.kill_panel()
    widget.wait_until(lambda: widget.icon() is None, "the icon is gone")
    widget.desktop.start_panel()
    widget.wait_until(widget.icon, "the icon is back")
    with widget.opened():
        widget.picture("panel-is-back")


def test_strange_names_are_shown_as_they_are(widget: Widget) -> None:
    before = set(widget.system.devices())
    paths = [widget.system.put("sys-usb", name, os.urandom(MIB)) for name in STRANGE]

    def new() -> set[str]:
        return set(widget.system.devices()) - before

    widget.wait_until(lambda: len(new()) == len(STRANGE), "the disks are listed")
    names = sorted(new())
    with widget.opened():
        widget.picture("strange-names")
        for name in names:
            widget.find(name)
            widget.desktop.keys("Escape")  # what is searched for is forgotten
            widget.wait_until(lambda: not widget.marked(), "all rows are shown again")
    for path in paths:
        path.unlink()
    widget.wait_until(lambda: not new(), "the disks are gone")


def test_a_second_one_shows_the_first(widget: Widget) -> None:
    assert widget.desktop.run(str(BIN / "pedos-widget"), "--show") == 0
    widget.wait_until(widget.windows, "the menu of the first is open")
    widget.picture("shown-by-command")
