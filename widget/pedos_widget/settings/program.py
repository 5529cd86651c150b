"""Runs the settings of a VM as a program: Qt with trio as its guest, a controller, one window."""

from __future__ import annotations

import trio
from pedos_host import logs

from pedos_widget import guest
from pedos_widget.controller import Controller
from pedos_widget.icons import application_icon
from pedos_widget.qt import QtWidgets
from pedos_widget.settings.window import SettingsWindow


def show(vm: str, program: str, verbosity: int) -> None:
    """Show the settings of a VM until the window is closed, or SIGINT or SIGTERM comes; `program`
    is its name. Each -v of `verbosity` has it log more."""
    if verbosity > 0:
        logs.set_up(program, verbose=verbosity > 1)
    application = QtWidgets.QApplication([program])
    application.setApplicationName(program)
    application.setDesktopFileName("org.pedos.Widget")
    application.setWindowIcon(application_icon())

    async def run() -> None:
        controller = Controller(program=program)
        closed = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(controller.run)
            window = SettingsWindow(controller, vm, nursery.start_soon)
            window.closed.connect(closed.set)
            window.show()
            await closed.wait()
            nursery.cancel_scope.cancel()

    guest.run(application, run)
