"""The widget put together: what runs, what knows whom, and what a click on what opens."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING

import trio
from pedos_cli.client import Unreachable
from pedos_protocol.errors import CallError, ProtocolError

from pedos_widget import guest
from pedos_widget.bus import TRAYS, WIDGET, Bus, session_address, system_address
from pedos_widget.bus_session import BusError
from pedos_widget.calls import not_reached, not_understood, refusal, vm_names
from pedos_widget.controller import Controller
from pedos_widget.i18n import _
from pedos_widget.icons import APPLICATION, application_icon
from pedos_widget.menu.devices_menu import Menu
from pedos_widget.menu.steady import Entry
from pedos_widget.menu.vm_choice import VmChoice
from pedos_widget.model.view import DeviceRef
from pedos_widget.notifications.notifier import Notifier
from pedos_widget.qt import QtCore, QtGui, QtWidgets
from pedos_widget.questions.desk import QuestionDesk
from pedos_widget.questions.offering import offer
from pedos_widget.quitting import Application
from pedos_widget.screen_lock import ScreenLock
from pedos_widget.tray import Tray
from pedos_widget.window import DeviceWindow
from pedos_widget.windows import Windows

if TYPE_CHECKING:
    from pedos_widget.tasks import StartSoon

logger = logging.getLogger(__name__)

DONE, FAILED, SECOND = 0, 1, 3

VMS_S = 5.0
"""For the list of VMs, which the service has at hand."""

CONNECT_S = 2.0
"""How long a menu that is to be shown at once waits for its devices; then it says why it is empty.
The connection and the first list take 0.15 s."""


def run(*, show: bool, window: bool) -> int:
    """Run until the user or a signal ends it; return the exit status."""
    application = Application([APPLICATION])
    application.setApplicationName("pedos-widget")
    application.setApplicationDisplayName(_("Devices"))
    application.setDesktopFileName("org.pedos.Widget")
    application.setQuitOnLastWindowClosed(False)
    application.setWindowIcon(application_icon())
    QtGui.QIcon.setFallbackThemeName("hicolor")
    widget = Widget(is_window=window or _is_wayland(application))
    guest.run(application, lambda: widget.run(show=show))
    return widget.status


def _is_wayland(application: QtWidgets.QApplication) -> bool:
    return application.platformName().startswith("wayland")


class Widget:
    """All parts, for the life of the program."""

    def __init__(self, *, is_window: bool) -> None:
        self.status = DONE
        self._is_window = is_window
        self._is_tray_missing = False
        self.controller = Controller()
        self.menu = Menu(self.controller)
        self.window = DeviceWindow(self.controller)
        self.menu.why = self.window.show_device
        self.menu.below = self._below
        self._choice = self._vm_choice(self.menu, self.menu)
        self._add_buttons()
        self._windows: Windows | None = None
        self._start_soon: StartSoon | None = None
        self.tray = Tray(
            self.controller, show=self.show, leave=self._leave, missing=self._use_window
        )

    async def run(self, *, show: bool) -> None:
        """Everything that waits."""
        async with trio.open_nursery() as nursery:
            self._start_soon = nursery.start_soon
            self._windows = Windows(self.controller, nursery.start_soon)
            bus = Bus(session_address())
            bus.serve(WIDGET.path, WIDGET.interface, "Show", self._asked_to_show)
            await nursery.start(bus.run)
            if (status := await status_of_second(bus, show=show)) is not None:
                self.status = status
                nursery.cancel_scope.cancel()
                return
            system_bus = Bus(system_address())
            await nursery.start(system_bus.run)
            lock = ScreenLock(bus, system_bus)
            lock.on_change(self._locked)
            nursery.start_soon(lock.run)
            nursery.start_soon(self.controller.run)
            nursery.start_soon(Notifier(bus, self.controller).run)
            offer(QuestionDesk(), self.controller, lock)
            self.tray.start()
            bus.on_signal(
                *(TRAYS.name, TRAYS.interface, "StatusNotifierHostRegistered"), self._a_tray_came
            )
            bus.on_owner(TRAYS.name, self._a_tray_came)
            try:
                logger.info("ready")
                if show or self._is_window:
                    await self._connected()
                    self.show()
                await trio.sleep_forever()
            finally:
                self.tray.close()
                self.menu.close()

    def show(self) -> None:
        """Show the devices: at the pointer, or in the window if there is no tray."""
        if self._is_window or (self._is_tray_missing and self.tray.icon is None):
            self.window.show_device()
        else:
            self.menu.popup_at(QtGui.QCursor.pos())

    def _a_tray_came(self, *_what: object) -> None:
        self.tray.look()

    def _asked_to_show(self) -> None:
        logger.info("asked to show the devices")
        self.show()

    async def _connected(self) -> None:
        connected = trio.Event()
        end = self.controller.on_change(
            lambda: connected.set() if self.controller.view.connected else None
        )
        if not self.controller.view.connected:
            with trio.move_on_after(CONNECT_S):
                await connected.wait()
        end()

    def _use_window(self) -> None:
        logger.warning("this desktop shows no tray: using a window")
        self._is_tray_missing = True
        if not self._is_window:  # which was shown at the start
            self.show()

    def _locked(self, is_locked: bool) -> None:
        if is_locked:
            self.menu.close()

    def _below(self, menu: Menu) -> list[Entry]:
        """The last entries of the menu."""
        settings = Entry(menu, _("VM settings..."))
        settings.setMenu(self._choice)
        entries = [settings]
        for text, act in (
            (_("Policy..."), self._policy),
            (_("Show in a window"), self._show_window),
            (_("Quit"), self._leave),
        ):
            entries.append(entry := Entry(menu, text))
            entry.triggered.connect(lambda _checked=False, act=act: act())
        return entries

    def _settings_of(self, vm: str) -> None:
        if self._windows is not None:
            self._windows.settings(vm)

    def _policy(self) -> None:
        if self._windows is not None:
            self._windows.policy()

    def _vm_choice(self, parent: QtWidgets.QWidget, menu: Menu | None = None) -> VmChoice:
        def ask() -> None:
            if self._start_soon is not None:
                self._start_soon(partial(self._list_vms, choice))

        choice = VmChoice(
            parent,
            on_input=menu.touched if menu is not None else lambda: None,
            on_pointer=menu.elsewhere if menu is not None else lambda _place: None,
            ask=ask,
            choose=self._settings_of,
        )
        return choice

    async def _list_vms(self, choice: VmChoice) -> None:
        try:
            answer = await self.controller.call("vm.list", {}, timeout_s=VMS_S)
            names = vm_names(answer)
        except CallError as error:
            choice.fail(refusal(error))
        except Unreachable as error:
            choice.fail(not_reached(error))
        except ProtocolError as error:
            choice.fail(not_understood(error))
        else:
            choice.show_vms(names)

    def _add_buttons(self) -> None:
        """What the menu has below its devices; on some desktops the window is all there is."""
        choice = self._vm_choice(self.window)
        settings = QtWidgets.QPushButton(_("VM settings..."))
        settings.clicked.connect(
            lambda: choice.popup(settings.mapToGlobal(QtCore.QPoint(0, settings.height())))
        )
        policy = QtWidgets.QPushButton(_("Policy..."))
        policy.clicked.connect(self._policy)
        leave = QtWidgets.QPushButton(_("Quit"))
        leave.clicked.connect(self._leave)
        for button in (settings, policy, leave):
            button.setAutoDefault(False)
            self.window.add_button(button)

    def _show_window(self, ref: DeviceRef | None = None) -> None:
        self.window.show_device(ref)

    def _leave(self) -> None:
        QtCore.QCoreApplication.quit()


async def status_of_second(bus: Bus, *, show: bool) -> int | None:
    """The exit status of a second one of the session, which has told the first to show itself; None
    if this is the first. Without a bus nobody can tell."""
    try:
        if await bus.request_name(WIDGET.name):
            return None
    except BusError as error:
        logger.warning("no session bus: %s", error)
        return None
    try:
        await bus.call(WIDGET, "Show", start=False)
    except BusError as error:
        logger.warning("it runs in this session already, and does not answer: %s", error)
        return FAILED if show else SECOND
    logger.info("it runs in this session already, and was told to show itself")
    return DONE if show else SECOND
