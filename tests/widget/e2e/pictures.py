"""Pictures of the widget at work, on a virtual screen and with a real system of local mode:

    python -m tests.widget.e2e.pictures FOLDER

Those in docs/pictures are made so (`make pictures`); `make demo-widget` makes them for who wants
to see it without a desktop.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from tests.e2e.system import wait_until

from .desktop import Desktop, lacking
from .driving import BIN, Widget, make_system
from .screen import Area

MIB = 1 << 20
DISKS = {"backup.img": 64, "camera-card.img": 32, "private-keys.img": 8}
POLICY = """\
device.attach.block    +sys-usb:private*   @adminvm   work     ask
"""
#: What is around the windows, in pixels.
MARGIN = 8
# Where notifications are, on a desktop without a picture.
CORNER = Area(640, 600, 640, 300)
BLACK = (0, 0, 0)
# Where the tray is: a menu hangs from it.
TRAY = Area(1100, 0, 180, 34)


class Album:
    """Keeps pictures in a folder, and says where."""

    def __init__(self, widget: Widget, folder: Path) -> None:
        self._widget = widget
        self._folder = folder

    def keep(self, name: str, said: str, areas: Iterable[Area] = ()) -> None:
        """What these areas of the screen show; without any, the widget's windows."""
        file = self._folder / f"{name}.png"
        shown = _around(list(areas) or self._widget.windows(), self._widget.desktop.screen.whole)
        self._widget.desktop.screen.keep(file, shown)
        print(f"{file}: {said}", flush=True)


def _around(areas: list[Area], whole: Area) -> Area:
    left = max(0, min(area.x for area in areas) - MARGIN)
    top = max(0, min(area.y for area in areas) - MARGIN)
    right = min(whole.width, max(area.x + area.width for area in areas) + MARGIN)
    bottom = min(whole.height, max(area.y + area.height for area in areas) + MARGIN)
    return Area(left, top, right - left, bottom - top)


def _list_below(window: Area) -> Area:
    """Within the list of what can be added alone, which is empty until the service has told it."""
    return Area(window.x + 30, window.y + window.height - 150, window.width // 2, 36)


def _plug(widget: Widget, name: str) -> None:
    widget.system.plug("sys-usb", name, os.urandom(DISKS[name] * MIB))


def _notes(widget: Widget) -> Area | None:
    """The notifications on the screen, which nothing else has in that corner."""
    return widget.desktop.screen.found(lambda pixel: pixel != BLACK, CORNER)


def take(widget: Widget, album: Album) -> None:
    """All pictures, in the order of a first use."""
    first, *more = DISKS
    _plug(widget, first)
    widget.wait_until(lambda: _notes(widget), "a notification is shown")
    album.keep("notification", "a disk was plugged in", filter(None, [_notes(widget)]))
    for name in more:
        _plug(widget, name)
        widget.wait_until(lambda name=name: widget.told(name), f"{name} is told")  # and closed

    with widget.opened("camera"):
        widget.open_submenu()
        album.keep("submenu", "the VMs that may have a disk", [TRAY, *widget.windows()])
        widget.desktop.keys("Return")
        widget.wait_attached("sys-usb:camera-card.img", "work")
    mic = next(name for name in widget.system.devices("mic") if name.startswith("sys-usb:"))
    widget.system.ok("qvm-device", "mic", "attach", "work", mic)
    with widget.opened() as area:
        album.keep("menu", "all devices; what is attached is bold", [TRAY, area])
    with widget.opened("camera"):
        widget.open_submenu()
        album.keep("eject", "the VM that has it, to eject it", [TRAY, *widget.windows()])

    widget.open("private")
    widget.open_submenu()
    widget.desktop.keys("Return")  # which closes the menu
    widget.wait_until(widget.question, "the question is shown")
    [question] = widget.question()
    album.keep("question", "the policy asks", [question])
    widget.desktop.click(question.x + question.width // 2, question.y + 12)
    widget.desktop.keys("Escape")
    widget.wait_until(lambda: not widget.question(), "the question is answered")

    widget.told()  # and closes the notifications
    widget.system.ok("qvm-device", "block", "assign", "--port", "work", "sys-usb:backup.img")
    widget.wait_attached("sys-usb:backup.img", "work")
    widget.wait_until(lambda: _notes(widget), "the attachment is told")
    widget.told()
    socket = widget.system.environment()["PEDOS_SOCKET"]
    widget.desktop.start(str(BIN / "qvm-settings"), "work", more={"PEDOS_SOCKET": socket})
    shown: list[Area] = []

    def settings_shown() -> bool:
        shown[:] = widget.desktop.windows("qvm-settings")
        return bool(shown) and widget.desktop.has_ink(_list_below(shown[0]))

    widget.wait_until(settings_shown, "the settings are shown")
    album.keep("settings", "the settings of a VM", shown)


def main() -> None:
    """Makes them, or says what is missing."""
    if len(sys.argv) != 2:
        sys.exit("usage: python -m tests.widget.e2e.pictures FOLDER")
    if missing := lacking():
        sys.exit(f"pictures: {', '.join(missing)} are not installed (tools/setup desktop)")
    with (
        tempfile.TemporaryDirectory(prefix="pedos-desktop-") as desktop_folder,
        tempfile.TemporaryDirectory(prefix="pedos-demo-", ignore_cleanup_errors=True) as folder,
        Desktop(Path(desktop_folder)) as desktop,
    ):
        system = make_system(Path(folder) / "system", POLICY)
        system.up()
        try:
            widget = Widget(desktop, system, Path(desktop_folder) / "pictures")
            widget.start()
            take(widget, Album(widget, Path(sys.argv[1])))
            status = widget.end()
            wait_until(lambda: status == 0, f"the widget ends well, and not with {status}")
        finally:
            system.kill()


if __name__ == "__main__":
    main()
