"""Whether a tray of X11's own kind (XEmbed) may just have come.

Such a tray says so with a message to all programs of its screen, which Qt gets and tells nobody who
has no icon yet. There is nothing else to hear, and to look from time to time would wake up a widget
that waits. So this sees all events of X11 go by, for as long as there is no tray.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import TYPE_CHECKING

from pedos_widget.qt import QtCore

if TYPE_CHECKING:
    from typing import Any

XCB = b"xcb_generic_event_t"
CLIENT_MESSAGE = 33
SENT = 0x80
"""The bit that X11 sets in the kind of an event that another program has sent."""


class TrayArrival(QtCore.QAbstractNativeEventFilter):
    """Calls `came` once for one or more messages of one turn: after Qt has taken them in, and
    mostly for nothing, as few of them are a tray's."""

    def __init__(self, came: Callable[[], None]) -> None:
        super().__init__()
        self._is_followed = False
        self._once = QtCore.QTimer()
        self._once.setSingleShot(True)
        self._once.timeout.connect(came)

    def follow(self) -> None:
        """From now on."""
        application = QtCore.QCoreApplication.instance()
        if application is not None and not self._is_followed:
            application.installNativeEventFilter(self)
            self._is_followed = True

    def leave(self) -> None:
        """No more."""
        application = QtCore.QCoreApplication.instance()
        if application is not None and self._is_followed:
            application.removeNativeEventFilter(self)
        self._is_followed = False
        self._once.stop()

    def nativeEventFilter(self, kind: Any, message: Any) -> Any:  # noqa: N802 - Qt's name
        """Lets every event pass."""
        if bytes(kind) == XCB:  # `message` is an address; PySide's is false, whatever it is
            first = ctypes.c_uint8.from_address(int(message)).value
            if first & ~SENT == CLIENT_MESSAGE:
                self._once.start(0)
        return False, 0
