"""A window that appears by itself while a menu is open: the menu stays, the window comes beside it.

Qt closes all menus before it shows a window. Whoever is about to click in one would lose it, or hit
what appears in its place.
"""

from __future__ import annotations

from pedos_widget.qt import QtCore, QtWidgets

FRAME = 40
"""Pixels around a window for what a window manager draws there, and some to see between."""


class _Refusing(QtCore.QObject):
    """Lets no menu be closed."""

    def eventFilter(self, watched: QtCore.QObject, event: QtCore.QEvent) -> bool:  # noqa: N802
        if event.type() == QtCore.QEvent.Type.Close and _is_popup(watched):
            event.ignore()
            return True
        return False


def show(window: QtWidgets.QWidget) -> None:
    """Show the window, and close no menu."""
    popups = open_popups()
    if not popups:
        window.show()
        return
    screen = popups[0].screen()
    if screen is not None:
        taken = [popup.geometry() for popup in popups]
        place = free_place(window.size(), taken, screen.availableGeometry())
        if place is not None:
            window.move(place)
    refusing = _Refusing()
    application = QtWidgets.QApplication.instance()
    assert application is not None
    application.installEventFilter(refusing)
    try:
        window.show()
    finally:
        application.removeEventFilter(refusing)


def open_popups() -> list[QtWidgets.QWidget]:
    """The menus and lists that are open."""
    return [each for each in QtWidgets.QApplication.topLevelWidgets() if _is_open(each)]


def free_place(
    size: QtCore.QSize, taken: list[QtCore.QRect], room: QtCore.QRect
) -> QtCore.QPoint | None:
    """Where a window of this size covers nothing that is taken; None if it does everywhere."""
    width, height = size.width() + 2 * FRAME, size.height() + 2 * FRAME
    lefts, tops = [], []
    for each in taken:
        lefts += [each.left() - width, each.right() + 1]
        tops += [each.top(), each.top() - height, each.bottom() + 1]
    # Beside them if it can be, and otherwise anywhere.
    lefts += [room.left(), room.right() + 1 - width]
    tops += [room.top(), room.bottom() + 1 - height]
    for top in tops:
        for left in lefts:
            place = QtCore.QRect(left, top, width, height)
            if room.contains(place) and not any(place.intersects(each) for each in taken):
                return place.topLeft() + QtCore.QPoint(FRAME, FRAME)
    return None


def _is_open(widget: QtWidgets.QWidget) -> bool:
    return _is_popup(widget) and widget.isVisible()


def _is_popup(watched: QtCore.QObject) -> bool:
    return (
        isinstance(watched, QtWidgets.QWidget)
        and watched.windowType() == QtCore.Qt.WindowType.Popup
    )
