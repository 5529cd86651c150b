"""The widget on a virtual desktop, used as a person does: by mouse, keyboard and eyes."""

from __future__ import annotations

import contextlib
import itertools
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.e2e.system import LOOK_AGAIN_S, LocalSystem, wait_until
from tests.patience import PATIENCE

from .desktop import Desktop
from .screen import Area, Pixel

BIN = Path(sys.executable).parent
PROGRAM = "pedos-widget"
#: Height of the panel.
PANEL = Area(0, 0, 1280, 34)
# Of a pointer that looks for a row, in pixels: less than half a row.
STEP = 5
# Characters of its log that a failure shows.
LOG_MAX = 3000
# Seconds in which a key shows what it does; one more that comes too early would pass a row by.
SHOWN_S = 1.0


def is_yellow(pixel: Pixel) -> bool:
    """As the icon is."""
    red, green, blue = pixel
    return red > 220 and 170 < green < 230 and blue < 80


def is_marked(pixel: Pixel) -> bool:
    """As the row under the pointer is, or the one that the keyboard has come to."""
    red, green, blue = pixel
    return red < 90 and 110 < green < 170 and blue > 170


class Widget:
    """The program in the tray. Pictures are kept in `pictures`, numbered in order."""

    def __init__(self, desktop: Desktop, system: LocalSystem, pictures: Path) -> None:
        self.desktop = desktop
        self.system = system
        self._pictures = pictures
        self._number = itertools.count(1)

    def start(self) -> None:
        """Starts it, and returns when its icon is there."""
        socket = self.system.environment()["PEDOS_SOCKET"]
        self.desktop.start(str(BIN / PROGRAM), more={"PEDOS_SOCKET": socket})
        self.wait_until(self.desktop.tray_items, "the widget is in the tray")
        self.wait_until(self.icon, "the icon is yellow")

    def end(self) -> int:
        """Ends it as a session does; its exit status."""
        child = self.desktop.child(PROGRAM)
        child.terminate()
        return child.wait(PATIENCE)

    def lost(self) -> str | None:
        """Why nothing can be expected of it any more; None while it is well."""
        child = self.desktop.child(PROGRAM)
        if child.poll() is not None:
            return f"the widget ended with {child.returncode}\n{self.desktop.said(PROGRAM)}"
        return self.system.lost()

    def wait_until(self, condition: Callable[[], object], what: str) -> None:
        """Fails at once when the widget or the system has ended."""
        try:
            wait_until(condition, what, self.lost)
        except AssertionError as error:
            self.picture("failed")
            told = self.desktop.notifications()
            said = self.desktop.said(PROGRAM)
            raise AssertionError(f"{error}\nnotifications: {told}\n{said[-LOG_MAX:]}") from None

    def picture(self, name: str) -> None:
        """Keeps what is on the screen."""
        file = self._pictures / f"{next(self._number):02}-{name}.png"
        self.desktop.screen.keep(file)

    # The menu.

    def icon(self) -> Area | None:
        """Where the yellow square is."""
        return self.desktop.screen.found(is_yellow, PANEL)

    def windows(self) -> list[Area]:
        """Menus and dialogs that can be seen."""
        return self.desktop.windows()

    def question(self) -> list[Area]:
        """The window of a question, if there is one."""
        return self.desktop.windows(title="Question of dom0")

    def open(self, search: str = "") -> Area:
        """Opens the menu by a click on the icon; where it is. What is typed then is searched for,
        and the first row found is marked."""
        icon = self.icon()
        assert icon is not None
        before = len(self.windows())
        self.desktop.click(*icon.middle)
        self.wait_until(lambda: len(self.windows()) > before, "the menu is open")
        self.desktop.park()
        if search:
            self.find(search)
        return self.windows()[-1]

    def find(self, search: str) -> None:
        """Searches the open menu; the first row found is marked."""
        self.desktop.type(search)
        self.desktop.keys("Down")
        self.wait_until(self.marked, f"a row is found for {search}")

    def marked(self, window: int = 0) -> Area | None:
        """The row that is marked in a menu: the first is 0, its submenu 1. A row that cannot be
        chosen only has a frame when the keyboard comes to it, and is none."""
        windows = self.windows()
        if len(windows) <= window:
            return None
        area = windows[window]
        row = self.desktop.screen.found(is_marked, area)
        if row is None or row.width < area.width // 2:  # an icon
            return None
        inside = Area(row.x + 4, row.y + 4, 24, 1)
        return row if self.desktop.screen.found(is_marked, inside) is not None else None

    def open_submenu(self) -> None:
        """That of the marked row, by the keyboard: its first VM that can be chosen is marked."""
        self.desktop.keys("Right")
        self.wait_until(lambda: len(self.windows()) > 1, "the submenu is open")
        # The first row is the device itself, and until the service has answered there is no other.
        self.wait_until(lambda: self.marked(1) or self._stepped_down(), "a VM is marked")

    def _stepped_down(self) -> Area | None:
        self.desktop.keys("Down")
        until = time.monotonic() + SHOWN_S
        while not (row := self.marked(1)) and time.monotonic() < until:
            select.select([], [], [], LOOK_AGAIN_S)
        return row

    def close(self) -> None:
        """Closes all menus."""
        for _ in range(8):
            if not self.windows():
                return
            self.desktop.keys("Escape")
        self.wait_until(lambda: not self.windows(), "the menus are closed")

    @contextlib.contextmanager
    def opened(self, search: str = "") -> Iterator[Area]:
        """The menu is open within the block."""
        area = self.open(search)
        try:
            yield area
        finally:
            self.close()

    def rows(self, window: int = 1) -> Iterator[Area]:
        """Moves the pointer down a submenu; each row that can be chosen, once, marked at that
        moment."""
        area = self.windows()[window]
        seen = -1
        for y in range(area.y + STEP, area.y + area.height, STEP):
            self.desktop.move(area.x + area.width // 2, y)
            row = self.marked(window)
            if row is not None and row.y != seen:
                seen = row.y
                yield row

    def weight(self, row: Area) -> float:
        """How wide the strokes of a marked row's letters are, in pixels: more where it is bold."""
        runs: list[int] = []
        for line in self.desktop.screen.rows(row):
            length = 0
            for at in range(0, len(line), 4):
                if min(line[at : at + 3]) > 190:  # white letters on the marked row
                    length += 1
                elif length:
                    runs.append(length)
                    length = 0
        return sum(runs) / len(runs) if runs else 0.0

    # What came of it.

    def attached(self, name: str, vm: str, device_class: str = "block") -> bool:
        """Whether the service says that VM has the device."""
        device = self.system.devices(device_class).get(name, {"attachments": []})
        held = device["attachments"]
        return vm in [each["vm"] for each in held]  # type: ignore[attr-defined]

    def wait_attached(self, name: str, vm: str, device_class: str = "block") -> None:
        self.wait_until(lambda: self.attached(name, vm, device_class), f"{vm} has {name}")

    def wait_detached(self, name: str, vm: str, device_class: str = "block") -> None:
        self.wait_until(
            lambda: not self.attached(name, vm, device_class), f"{vm} does not have {name}"
        )

    def told(self, *words: str) -> bool:
        """Whether a notification has all these words, in its title or its text."""
        return any(
            all(word in f"{title}\n{text}" for word in words)
            for title, text in self.desktop.notifications()
        )


def make_system(folder: Path, policy: str = "") -> LocalSystem:
    """A system of local mode with a microphone, that is not up yet; `policy` comes before its
    rules."""
    system = LocalSystem(folder, is_warm=True)
    subprocess.run(
        [BIN / "pedos-local", "init", "--sound", folder], check=True, stdout=subprocess.DEVNULL
    )
    if policy:
        (folder / "policy.d/10-first.policy").write_text(policy)
    return system
