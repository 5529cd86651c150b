"""Is the screen locked, as far as the session's programs say? Where none says so, it is not.

Screen savers announce it on the session's bus, each desktop's under a name of its own. Lockers
without a bus name are seen through logind, which keeps a LockedHint for each session.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable

import trio

from pedos_widget.bus import Bus, Place
from pedos_widget.bus_session import Body, BusError, taken

#: Each is the name of a program and of its interface, which is at the path of the same words.
SAVERS = (
    "org.freedesktop.ScreenSaver",
    "org.gnome.ScreenSaver",
    "org.xfce.ScreenSaver",
    "org.mate.ScreenSaver",
    "org.cinnamon.ScreenSaver",
)
LOGIND = Place(
    "org.freedesktop.login1", "/org/freedesktop/login1", "org.freedesktop.login1.Manager"
)
SESSION = "org.freedesktop.login1.Session"
PROPERTIES = "org.freedesktop.DBus.Properties"

_PATH = re.compile(r"(/[A-Za-z0-9_]{1,128}){1,8}")


class ScreenLock:
    """`is_locked`, and whom to tell when that changes. `run` asks those who are there already."""

    def __init__(self, session_bus: Bus, system_bus: Bus | None = None) -> None:
        self._session_bus = session_bus
        self._system_bus = system_bus
        self._locked: set[str] = set()  # by whose word
        self._told = False
        self._callbacks: list[Callable[[bool], None]] = []
        self._to_ask: set[str] = set()
        self._is_to_ask = trio.Event()
        self._said = 0  # how often anybody said anything
        self._session_path = ""
        for saver in SAVERS:
            session_bus.on_signal(saver, saver, "ActiveChanged", self._on_active(saver))
            session_bus.on_owner(saver, self._on_owner(saver))
        if system_bus is not None:
            system_bus.on_signal(
                LOGIND.name, PROPERTIES, "PropertiesChanged", self._properties_changed
            )
            system_bus.on_owner(LOGIND.name, self._on_owner(LOGIND.name))

    @property
    def is_locked(self) -> bool:
        return bool(self._locked)

    def on_change(self, callback: Callable[[bool], None]) -> None:
        """Calls `callback` with `is_locked` whenever that changes."""
        self._callbacks.append(callback)

    async def run(self) -> None:
        """Asks whoever appears how it is, until this is cancelled."""
        while True:
            await self._is_to_ask.wait()
            self._is_to_ask = trio.Event()
            while self._to_ask:
                await self._ask(self._to_ask.pop())

    async def _ask(self, name: str) -> None:
        said = self._said
        try:
            if name == LOGIND.name:
                locked = await self._ask_logind()
            else:
                locked = await self._ask_saver(name)
        except BusError:
            return  # it does not know; its signals tell if it ever does
        if self._said == said:
            self._say(name, locked=locked)
        else:
            self._ask_later(name)  # the answer may be older than what was said meanwhile

    def _ask_later(self, name: str) -> None:
        self._to_ask.add(name)
        self._is_to_ask.set()

    def _on_owner(self, name: str) -> Callable[[str], None]:
        def changed(owner: str) -> None:
            self._say(name, locked=False)  # whoever locked it is gone
            if owner:
                self._ask_later(name)

        return changed

    def _on_active(self, saver: str) -> Callable[[str, Body], None]:
        def changed(path: str, untrusted_body: Body) -> None:
            (active,) = taken(untrusted_body, bool)
            self._say(saver, locked=active)

        return changed

    async def _ask_saver(self, name: str) -> bool:
        place = Place(name, "/" + name.replace(".", "/"), name)
        body = await self._session_bus.call(place, "GetActive", start=False)
        return bool(*taken(body, bool))

    async def _ask_logind(self) -> bool:
        assert self._system_bus is not None
        # Without an id, "auto" is the session of the caller, or of its user's screen.
        mine = os.environ.get("XDG_SESSION_ID") or "auto"
        body = await self._system_bus.call(LOGIND, "GetSession", "s", (mine,), start=False)
        self._session_path = _parse_path(body)
        place = Place(LOGIND.name, self._session_path, PROPERTIES)
        body = await self._system_bus.call(place, "Get", "ss", (SESSION, "LockedHint"), start=False)
        return _hint(*taken(body, tuple))

    def _properties_changed(self, path: str, untrusted_body: Body) -> None:
        interface, untrusted_changed = taken(untrusted_body, str, dict)
        hint = untrusted_changed.get("LockedHint")
        if (path, interface) == (self._session_path, SESSION) and isinstance(hint, tuple):
            self._say(LOGIND.name, locked=_hint(hint))

    def _say(self, name: str, *, locked: bool) -> None:
        self._said += 1
        if locked:
            self._locked.add(name)
        else:
            self._locked.discard(name)
        if self.is_locked is not self._told:
            self._told = self.is_locked
            for callback in self._callbacks:
                callback(self._told)


def _parse_path(untrusted_body: Body) -> str:
    """An object's path, which goes back to the bus; BusError if it is none."""
    (path,) = taken(untrusted_body, str)
    if not _PATH.fullmatch(path):
        raise BusError("the answer is not the path of an object")
    return str(path)


def _hint(untrusted_hint: Body) -> bool:
    """The value of a variant, which is its signature and its value."""
    _, locked = taken(untrusted_hint, str, bool)
    return bool(locked)
