"""The icon in the desktop's tray."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pedos_widget.i18n import _, ngettext
from pedos_widget.icons import application_icon
from pedos_widget.qt import QtCore, QtWidgets
from pedos_widget.tray_arrival import TrayArrival

if TYPE_CHECKING:
    from pedos_widget.menu.devices_menu import Devices

POLL_MS = 1000
"""Between two looks for a tray. Only until there is one: Qt moves the icon to a panel that is
restarted."""

MISSING_MS = 10_000
"""After so long without a tray there will be none, and nothing looks for one from time to time.
Panels take less than a second to bring theirs, and a session that starts on a slow machine a few
more. One that comes later says so: on the session's bus, which calls `look`, or by X11."""

_Reason = QtWidgets.QSystemTrayIcon.ActivationReason


class Tray(QtCore.QObject):
    """The icon, made as soon as there is a tray: Qt decides how to show it when it is made, and
    made too early it is shown in a way that not every desktop has.

    A click calls `show`. `missing` is called once if there is no tray for MISSING_MS.
    """

    def __init__(
        self,
        controller: Devices,
        *,
        show: Callable[[], None],
        leave: Callable[[], None],
        missing: Callable[[], None],
        is_available: Callable[[], bool] = QtWidgets.QSystemTrayIcon.isSystemTrayAvailable,
    ) -> None:
        super().__init__()
        self._controller = controller
        self._show = show
        self._missing = missing
        self._is_available = is_available
        self._is_started = False
        self.icon: QtWidgets.QSystemTrayIcon | None = None
        # Of plain words: it goes out over D-Bus, where everything else is lost. Some desktops show
        # it for the left button as well.
        self._menu = QtWidgets.QMenu()
        for text, act in ((_("Show devices"), show), (_("Quit"), leave)):
            self._menu.addAction(text).triggered.connect(lambda _checked=False, act=act: act())
        self._poll = QtCore.QTimer(self)
        self._poll.setInterval(POLL_MS)
        self._poll.timeout.connect(self.look)
        self._until_missing = QtCore.QTimer(self)
        self._until_missing.setSingleShot(True)
        self._until_missing.setInterval(MISSING_MS)
        self._until_missing.timeout.connect(self._give_up)
        self._arrival = TrayArrival(self.look)
        controller.on_change(self._say)

    def start(self) -> None:
        """Look for a tray, now and until there is one."""
        self._poll.start()
        self._until_missing.start()
        self._is_started = True
        self.look()

    def close(self) -> None:
        """Take the icon away."""
        self._poll.stop()
        self._until_missing.stop()
        self._arrival.leave()
        self._is_started = False
        if self.icon is not None:
            self.icon.hide()
            self.icon = None

    def text(self) -> str:
        """What the icon's tooltip says."""
        view = self._controller.view
        if not view.connected:
            return _("Devices: not connected")
        if not view.attached:
            return _("Devices: none is attached")
        return ngettext(
            "Devices: {n} is attached", "Devices: {n} are attached", view.attached
        ).format(n=view.attached)

    def look(self) -> None:
        """There may be a tray now: unless it has the icon, it gets it."""
        if not self._is_started or self.icon is not None or not self._is_available():
            return
        self._poll.stop()
        self._until_missing.stop()
        self._arrival.leave()
        self.icon = QtWidgets.QSystemTrayIcon(application_icon(), self)
        self.icon.setContextMenu(self._menu)
        self.icon.activated.connect(self._activated)
        self._say()
        self.icon.show()

    def _give_up(self) -> None:
        self._poll.stop()
        self._arrival.follow()
        self._missing()

    def _activated(self, reason: QtWidgets.QSystemTrayIcon.ActivationReason) -> None:
        if reason == _Reason.Trigger:
            self._show()

    def _say(self) -> None:
        if self.icon is not None and self.icon.toolTip() != self.text():
            self.icon.setToolTip(self.text())
