"""What opening the menu costs, and how it looks at other resolutions."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from pedos_widget.menu.devices_menu import Menu
from pedos_widget.qt import BINDING, QtCore, QtWidgets
from pytestqt.qtbot import QtBot

from tests.patience import PATIENCE
from tests.widget.recording_controller import RecordingController, device_row, vm_row

ROUNDS = 7
MORE_MS = 50.0
"""What opening a full menu may take in addition to twice the time of an empty one."""


def cost_of_opening(menu: Menu) -> float:
    """Milliseconds of the processor until it is drawn: the least of a few times."""
    least = float("inf")
    for _ in range(ROUNDS):
        before = time.process_time()
        menu.popup_at(QtCore.QPoint(0, 0))
        QtWidgets.QApplication.processEvents()
        least = min(least, (time.process_time() - before) * 1000)
        menu.close()
        QtWidgets.QApplication.processEvents()
    return least


@pytest.mark.alone
def test_two_hundred_devices_open_nearly_as_fast_as_none(
    qtbot: QtBot, capsys: pytest.CaptureFixture[str]
) -> None:
    vms = tuple(vm_row(f"vm{number}") for number in range(50))
    empty = Menu(RecordingController())
    full = Menu(RecordingController(*(device_row(f"sda{n}", vms=vms) for n in range(1, 201))))
    for menu in (empty, full):
        qtbot.addWidget(menu)
    cost_of_empty, cost_of_full = cost_of_opening(empty), cost_of_opening(full)
    before = time.process_time()
    (row, *_others) = full._rows.values()
    row.vms.popup(QtCore.QPoint(0, 0))
    QtWidgets.QApplication.processEvents()
    cost_of_vms = (time.process_time() - before) * 1000
    row.vms.close()
    with capsys.disabled():
        print(
            f"\n{BINDING}: an empty menu opens in {cost_of_empty:.1f} ms, one of 200 devices in "
            f"{cost_of_full:.1f} ms, a submenu of 50 VMs in {cost_of_vms:.1f} ms"
        )
    assert cost_of_full <= 2 * cost_of_empty + MORE_MS


SCALED = """
import sys
sys.path[:0] = {path!r}
if {binding!r} == "PyQt6":
    sys.modules["PySide6"] = None
from pedos_widget.menu.devices_menu import Menu
from pedos_widget.qt import QtCore, QtWidgets
from tests.widget.recording_controller import RecordingController, device_row
application = QtWidgets.QApplication([])
menu = Menu(RecordingController(device_row("sda"), device_row("mic0", "mic")))
menu.popup_at(QtCore.QPoint(0, 0))
application.processEvents()
drawn = menu.grab()
print(drawn.devicePixelRatio(), menu.width(), menu.height(), drawn.width(), drawn.height())
"""


def size_at(scale: int) -> list[float]:
    """The ratio of pixels, the menu's size, and its picture's in pixels."""
    project = Path(__file__).parents[2]
    path = [*sys.path, str(project)]
    ran = subprocess.run(
        [sys.executable, "-c", SCALED.format(path=path, binding=BINDING)],
        env={"QT_QPA_PLATFORM": "offscreen", "QT_SCALE_FACTOR": str(scale), "LANGUAGE": "C"},
        cwd=project, capture_output=True, text=True, timeout=PATIENCE, check=True,
    )  # fmt: skip
    return [float(word) for word in ran.stdout.split()]


def test_on_a_screen_of_high_resolution_it_is_as_large_and_sharper() -> None:
    ratio, width, height, drawn_width, drawn_height = size_at(2)
    assert ratio == 2.0
    assert (drawn_width, drawn_height) == (2 * width, 2 * height)
    _, plain_width, plain_height, *_pixels = size_at(1)
    # Fonts are not exactly twice as high when they have twice as many pixels, and half as many
    # letters fit on the screen.
    assert abs(height - plain_height) <= plain_height * 0.1
    assert width <= plain_width
