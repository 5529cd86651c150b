"""Is the program asked to quit? Qt then closes all windows as if a person did, and what that says
when a person does it, as the no to a question of dom0, must not be said."""

from __future__ import annotations

from pedos_widget.qt import QtCore, QtWidgets

_QUIT = 20
"""QEvent::Quit, for which PyQt6 has no name."""


class Application(QtWidgets.QApplication):
    """Notes while it asks its windows to close. One that refuses keeps it from quitting."""

    def __init__(self, arguments: list[str]) -> None:
        super().__init__(arguments)
        self.is_quitting = False

    def event(self, event: QtCore.QEvent) -> bool:
        if int(event.type()) != _QUIT:
            return super().event(event)
        self.is_quitting = True
        try:
            return super().event(event)
        finally:
            self.is_quitting = False


def is_quitting() -> bool:
    """Whether windows are closed because of that at this moment."""
    application = QtWidgets.QApplication.instance()
    return isinstance(application, Application) and application.is_quitting
