"""The notification daemon of the desktop, by org.freedesktop.Notifications.

Titles are plain text everywhere. Bodies are markup where the daemon says so, and then escaped; a
daemon that says nothing shows an escape as it is. Nothing depends on actions, which some daemons do
not show at all.
"""

from __future__ import annotations

import html
import logging
import re
from collections.abc import Callable
from typing import Final

from pedos_widget.bus import Bus, Place
from pedos_widget.bus_session import Body, BusError, taken
from pedos_widget.notifications.plan import Note

logger = logging.getLogger(__name__)

NOTIFICATIONS: Final = Place(
    "org.freedesktop.Notifications",
    "/org/freedesktop/Notifications",
    "org.freedesktop.Notifications",
)
APPLICATION: Final = "PedOS devices"
DESKTOP_ENTRY: Final = "org.pedos.Widget"
ICON: Final = "pedos-devices"
# Capabilities of a daemon that are looked at; the specification knows a dozen.
CAPABILITIES_MAX: Final = 64
# Seconds for the daemon to answer: it may have to be started, and what it is told waits meanwhile.
ANSWER_S: Final = 5.0
ID_MAX: Final = 2**32 - 1  # what the specification's type of an id holds
# It has no width, and ends no word. It comes after what daemons know an address by: the scheme,
# www, and the last part of a name before a path.
WORD_JOINER: Final = "\u2060"
_ADDRESS = re.compile(r"[a-z](?=://)|mailto(?=:)|www\d{0,3}(?=\.)|\.[a-z]{2,8}(?=/)", re.IGNORECASE)
_AS_THE_DAEMON_LIKES = -1  # how long a notification stays


class Daemon:
    """Shows notifications, if a daemon does. `on_change` is called whenever another daemon, or
    none, is there from now on, and `on_closed` with the id of one that is not shown any more."""

    def __init__(
        self, bus: Bus, on_change: Callable[[], None], on_closed: Callable[[int], None]
    ) -> None:
        self._bus = bus
        self._on_change = on_change
        self._on_closed = on_closed
        self._reads_markup: bool | None = None  # None: this daemon was not asked yet
        self._is_missed = False
        bus.on_owner(NOTIFICATIONS.name, self._owner_changed)
        bus.on_signal(
            NOTIFICATIONS.name, NOTIFICATIONS.interface, "NotificationClosed", self._closed
        )

    async def is_there(self) -> bool:
        """Is there a daemon, or one that can be started? Asks a new one what it can do; that it
        does not answer is logged once. To be called before `show`."""
        if self._reads_markup is None:
            try:
                self._reads_markup = await self._asks_for_markup()
            except BusError as error:
                self._miss(error)
        return self._reads_markup is not None

    async def show(self, note: Note, replaces: int) -> int:
        """Shows it in place of the one of that id (0: of none). Returns its id; 0 if that failed,
        which is logged once."""
        title, body = unlinked(note.title), unlinked(note.body)
        body = html.escape(body, quote=False) if self._reads_markup else body
        hints = {"category": ("s", note.category), "desktop-entry": ("s", DESKTOP_ENTRY)}
        told = (APPLICATION, replaces, ICON, title, body)
        values: Body = (*told, [], hints, _AS_THE_DAEMON_LIKES)
        try:
            answer = await self._call("Notify", "susssasa{sv}i", values)
            number = _parse_id(answer)
        except BusError as error:
            self._miss(error)
            return 0
        self._is_missed = False
        return number

    def _miss(self, error: BusError) -> None:
        if not self._is_missed:
            logger.info("no notifications are shown: %s", error)
        self._is_missed = True

    async def close(self, number: int) -> None:
        """Takes a notification away; fine if it is not shown any more."""
        try:
            await self._call("CloseNotification", "u", (number,))
        except BusError as error:
            logger.debug("a notification was not taken away: %s", error)

    async def _asks_for_markup(self) -> bool:
        (names,) = taken(await self._call("GetCapabilities"), list)
        return "body-markup" in names[:CAPABILITIES_MAX]

    async def _call(self, method: str, signature: str | None = None, body: Body = ()) -> Body:
        return await self._bus.call(NOTIFICATIONS, method, signature, body, timeout_s=ANSWER_S)

    def _owner_changed(self, owner: str) -> None:
        self._reads_markup = None
        self._on_change()

    def _closed(self, path: str, untrusted_body: Body) -> None:
        number, _why = taken(untrusted_body, int, int)
        self._on_closed(number)


def unlinked(text: str) -> str:
    """The same to the eye, and no address to a daemon that makes links of addresses: a device must
    not have a person sent to a page by its name."""
    return _ADDRESS.sub(lambda found: f"{found[0]}{WORD_JOINER}", text)


def _parse_id(untrusted_body: Body) -> int:
    """The id of a notification, which goes back to the daemon later; BusError if it is none."""
    (number,) = taken(untrusted_body, int)
    if not 0 < number <= ID_MAX:
        raise BusError("the daemon's answer is not the id of a notification")
    return int(number)
