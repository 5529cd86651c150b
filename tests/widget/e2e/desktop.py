"""A desktop on a virtual screen: X server, session bus, window manager, panel with a tray,
notification daemon, and a hand on mouse and keyboard."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from jeepney import DBusAddress, new_method_call
from jeepney.io.blocking import DBusConnection, open_dbus_connection

from tests.e2e.system import wait_until
from tests.patience import PATIENCE

from .screen import Area, Screen

PROGRAMS = ("Xvfb", "xdotool", "openbox", "xfce4-panel", "dunst", "dunstctl", "dbus-daemon")
SIZE = (1280, 900)
#: Looks at windows until one in which none of them goes away.
LOOKS = 10
#: What xdotool says of each window.
GEOMETRY = re.compile(r"^X=(-?\d+)\nY=(-?\d+)\nWIDTH=(\d+)\nHEIGHT=(\d+)", re.MULTILINE)
#: Where nothing is that the pointer could mark.
PARKED = (5, 880)

WATCHER = DBusAddress(
    "/StatusNotifierWatcher", "org.kde.StatusNotifierWatcher", "org.freedesktop.DBus.Properties"
)
NOTIFICATIONS = "org.freedesktop.Notifications"

# One panel at the top, with a tray at its right end.
PANEL = """<?xml version="1.0" encoding="UTF-8"?>
<channel name="xfce4-panel" version="1.0">
  <property name="configver" type="int" value="2"/>
  <property name="panels" type="array">
    <value type="int" value="1"/>
    <property name="panel-1" type="empty">
      <property name="position" type="string" value="p=6;x=0;y=0"/>
      <property name="length" type="uint" value="100"/>
      <property name="size" type="uint" value="32"/>
      <property name="position-locked" type="bool" value="true"/>
      <property name="plugin-ids" type="array">
        <value type="int" value="1"/>
        <value type="int" value="2"/>
      </property>
    </property>
  </property>
  <property name="plugins" type="empty">
    <property name="plugin-1" type="string" value="separator">
      <property name="expand" type="bool" value="true"/>
      <property name="style" type="uint" value="0"/>
    </property>
    <property name="plugin-2" type="string" value="systray"/>
  </property>
</channel>
"""
# Where it covers neither the tray nor a menu, and for as long as the test may look.
DUNST = """[global]
    origin = bottom-right
    font = DejaVu Sans 9
    width = 360
    height = 200
    notification_limit = 4
[urgency_low]
    timeout = 60
[urgency_normal]
    timeout = 60
"""


def lacking() -> list[str]:
    """Which programs of such a desktop are not installed."""
    return [name for name in PROGRAMS if shutil.which(name) is None]


class Desktop:
    """Used as a context; what was started on it ends with it, the last first."""

    def __init__(self, folder: Path, *, size: tuple[int, int] = SIZE) -> None:
        self.folder = folder
        self.environment: dict[str, str] = {
            **{
                name: value
                for name, value in os.environ.items()
                if not name.startswith(("QT_", "XDG_", "DBUS_", "WAYLAND_", "LC_", "GTK_"))
            },
            # Before the bus is started: what the bus starts reads its configuration there.
            "HOME": str(folder / "home"),
            "XDG_RUNTIME_DIR": str(folder / "run"),
            "XDG_CURRENT_DESKTOP": "XFCE",
            "LANG": "C.UTF-8",
            "LANGUAGE": "C",
            # No bus for accessibility is started, nor is one waited for.
            "NO_AT_BRIDGE": "1",
        }
        self._size = size
        self._end = contextlib.ExitStack()
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as failed:
            failed.callback(self._end.close)
            self._start()
            failed.pop_all()
        return self

    def __exit__(self, *_error: object) -> None:
        self._end.close()

    def _start(self) -> None:
        home = self.folder / "home"
        xfconf = home / ".config/xfce4/xfconf/xfce-perchannel-xml"
        xfconf.mkdir(parents=True)
        (xfconf / "xfce4-panel.xml").write_text(PANEL)
        (home / "dunstrc").write_text(DUNST)
        (self.folder / "run").mkdir(mode=0o700)
        pixels = self.folder / "pixels"
        pixels.mkdir()
        width, height = self._size
        # The server chooses a free number, and says so when it can be connected to.
        display = self._started_with_answer(
            "Xvfb", "-displayfd", "{fd}", "-screen", "0", f"{width}x{height}x24",
            "-fbdir", str(pixels), "-nolisten", "tcp", "-noreset",
        )  # fmt: skip
        self.environment["DISPLAY"] = f":{display}"
        self.screen = Screen(pixels)
        self.environment["DBUS_SESSION_BUS_ADDRESS"] = self._started_with_answer(
            "dbus-daemon", "--session", "--nofork", "--print-address={fd}"
        )
        self.bus = self._end.enter_context(
            open_dbus_connection(self.environment["DBUS_SESSION_BUS_ADDRESS"])
        )
        self.start("openbox", "--sm-disable")
        self.start("dunst", "-config", str(home / "dunstrc"))
        self.start_panel()
        wait_until(lambda: self.try_tool("get_desktop"), "the window manager is there")
        wait_until(lambda: self.has_name(NOTIFICATIONS), "the notification daemon is there")
        self.park()

    # Programs.

    def start(self, name: str, *arguments: str, more: Mapping[str, str] | None = None) -> int:
        """Starts a program on this desktop; its pid. What it says is kept in NAME.log."""
        with (self.folder / f"{Path(name).name}.log").open("ab") as log:
            child = subprocess.Popen(
                [name, *arguments], env={**self.environment, **(more or {})}, cwd=self.folder,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        self._children[Path(name).name] = child
        self._end.callback(_ended, child)
        return child.pid

    def run(self, name: str, *arguments: str) -> int:
        """Runs a program on this desktop to its end; its exit status."""
        done = subprocess.run(
            [name, *arguments], env=self.environment, check=False, timeout=PATIENCE
        )
        return done.returncode

    def child(self, name: str) -> subprocess.Popen[bytes]:
        """The program of that name that was started last."""
        return self._children[name]

    def said(self, name: str) -> str:
        """What a program has said."""
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def start_panel(self) -> None:
        self.start("xfce4-panel", "--disable-wm-check", "--sm-client-disable")
        wait_until(self._has_tray, "the panel has a tray")

    def kill_panel(self) -> None:
        _ended(self._children["xfce4-panel"], at_once=True)
        wait_until(lambda: not self._has_tray(), "the tray is gone")

    def _started_with_answer(self, *command: str) -> str:
        """Starts a program that writes a line to a descriptor when it is ready; that line."""
        readable, writable = os.pipe()
        words = [word.replace("{fd}", str(writable)) for word in command]
        with (self.folder / f"{command[0]}.log").open("wb") as log:
            child = subprocess.Popen(
                words, env=self.environment, pass_fds=[writable], stdin=subprocess.DEVNULL,
                stdout=log, stderr=log,
            )  # fmt: skip
        self._end.callback(_ended, child)
        os.close(writable)
        with open(readable) as answer:
            line = answer.readline().strip()
        assert line, f"{command[0]} did not start: {self.said(command[0])}"
        return line

    # The bus.

    def call(
        self, address: DBusAddress, method: str, signature: str = "", *body: object
    ) -> tuple[Any, ...]:
        """Calls over the session bus; an error's text is in what it returns."""
        message = new_method_call(address, method, signature or None, body)
        answer = self.bus.send_and_get_reply(message, timeout=PATIENCE)
        return tuple(answer.body)

    def has_name(self, name: str) -> bool:
        bus = DBusAddress("/org/freedesktop/DBus", "org.freedesktop.DBus", "org.freedesktop.DBus")
        return bool(self.call(bus, "NameHasOwner", "s", name)[0])

    def _watcher(self, what: str) -> object:
        if not self.has_name(str(WATCHER.bus_name)):
            return None
        answer = self.call(WATCHER, "Get", "ss", str(WATCHER.bus_name), what)
        return answer[0][1] if isinstance(answer[0], tuple) else None

    def _has_tray(self) -> bool:
        return self._watcher("IsStatusNotifierHostRegistered") is True

    def tray_items(self) -> list[str]:
        """The programs in the tray, as the tray names them."""
        found = self._watcher("RegisteredStatusNotifierItems")
        return list(found) if isinstance(found, list) else []

    def notifications(self) -> list[tuple[str, str]]:
        """Title and text of those that are on the screen or were, the latest first."""
        subprocess.run(
            ["dunstctl", "close-all"], env=self.environment, check=True, timeout=PATIENCE
        )
        said = subprocess.run(
            ["dunstctl", "history"], env=self.environment, check=True, capture_output=True,
            timeout=PATIENCE,
        )  # fmt: skip
        [kept] = json.loads(said.stdout)["data"]
        return [(each["summary"]["data"], each["body"]["data"]) for each in kept]

    # Mouse, keyboard and eyes.

    def has_ink(self, area: Area) -> bool:
        """Whether an area has more than one colour: something is drawn there."""
        first = next(self.screen.rows(area))[:4]
        return any(row != first * (len(row) // 4) for row in self.screen.rows(area))

    def tool(self, *words: str | int) -> str:
        """Runs xdotool; what it says."""
        done = subprocess.run(
            ["xdotool", *map(str, words)], env=self.environment, capture_output=True, text=True,
            timeout=PATIENCE, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"xdotool {words}: {done.stderr}"
        return done.stdout

    def try_tool(self, *words: str | int) -> str:
        """As `tool`; nothing if xdotool fails."""
        try:
            return self.tool(*words)
        except AssertionError:
            return ""

    def move(self, x: int, y: int) -> None:
        self.tool("mousemove", x, y)

    def park(self) -> None:
        """Puts the pointer where no entry is under it: that would win over the keyboard."""
        self.move(*PARKED)

    def glide(self, start: tuple[int, int], end: tuple[int, int], *, steps: int, ms: int) -> None:
        """Moves the pointer as a hand does, in `steps` of `ms` milliseconds."""
        words: list[str | int] = []
        for step in range(1, steps + 1):
            x, y = (a + (b - a) * step // steps for a, b in zip(start, end, strict=True))
            words += ["mousemove", x, y, "sleep", ms / 1000 if step < steps else 0]
        self.tool(*words)

    def click(self, x: int, y: int, button: int = 1) -> None:
        self.tool("mousemove", x, y, "click", button)

    def keys(self, *names: str) -> None:
        """Presses keys by the names of X: Down, Return, Escape."""
        self.tool("key", *names)

    def type(self, text: str) -> None:
        self.tool("type", text)

    def windows(self, program: str = "pedos-", *, title: str = "") -> list[Area]:
        """The windows of a program that can be seen, menus too; with a title, those that have
        it."""
        by = ("--name", title) if title else ("--classname", program)
        command = ["xdotool", "search", "--onlyvisible", *by, "getwindowgeometry", "--shell", "%@"]
        found: list[Area] = []
        for _ in range(LOOKS):
            done = subprocess.run(
                command, env=self.environment, capture_output=True, text=True, timeout=PATIENCE,
                check=False,
            )  # fmt: skip
            found = [Area(*map(int, each)) for each in GEOMETRY.findall(done.stdout)]
            if done.returncode == 0 or not done.stdout + done.stderr:  # there is none
                break
            # One has gone between the search and the look at it.
        # Qt keeps windows of one pixel for its own ends.
        return [area for area in found if area.width > 8 and area.height > 8]


def _ended(child: subprocess.Popen[bytes], *, at_once: bool = False) -> None:
    """Ends a program that was started here, and waits for its end."""
    if child.poll() is None:
        if at_once:
            child.kill()
        else:
            child.terminate()
        try:
            child.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait(PATIENCE)


@contextlib.contextmanager
def session_bus(desktop: Desktop) -> Iterator[DBusConnection]:
    """One more connection to the desktop's bus, for a test that waits for signals."""
    with open_dbus_connection(desktop.environment["DBUS_SESSION_BUS_ADDRESS"]) as connection:
        yield connection
