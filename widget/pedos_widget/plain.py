"""Parts of windows that show texts as they are: nothing in a device's name is ever markup."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pedos_widget.qt import QtCore, QtGui, QtWidgets

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

LINES_SHOWN = 4
"""Lines of a text, or rows of a table, that are seen without scrolling."""

CHARACTERS_SHOWN = 30
"""Of what is chosen from a list: a longer one shows its beginning."""

FRAME = 48
"""Pixels beside a window that it leaves free on a small screen: for its frame and title."""


def label(text: str, buddy: QtWidgets.QWidget | None = None) -> QtWidgets.QLabel:
    """A label. With a `buddy`, `&` marks the key that leads to it; without one it is a text."""
    made = QtWidgets.QLabel()
    made.setTextFormat(QtCore.Qt.TextFormat.PlainText)
    made.setText(text)
    made.setWordWrap(buddy is None)
    if buddy is not None:
        made.setBuddy(buddy)
    return made


def lines_view(name: str, *, fixed: bool = False) -> QtWidgets.QPlainTextEdit:
    """Lines to read and to copy; `fixed` is for those that align. `name` is for screen readers."""
    made = QtWidgets.QPlainTextEdit()
    made.setReadOnly(True)
    made.setAccessibleName(name)
    made.setTabChangesFocus(True)
    flags = QtCore.Qt.TextInteractionFlag
    made.setTextInteractionFlags(flags.TextSelectableByMouse | flags.TextSelectableByKeyboard)
    if fixed:
        made.setFont(QtGui.QFontDatabase.systemFont(QtGui.QFontDatabase.SystemFont.FixedFont))
        made.setLineWrapMode(QtWidgets.QPlainTextEdit.LineWrapMode.NoWrap)
    made.setMinimumHeight(LINES_SHOWN * made.fontMetrics().lineSpacing())
    return made


def set_lines(view: QtWidgets.QPlainTextEdit, lines: Iterable[str]) -> None:
    """Show other lines, unless they are the same: a reader would lose the place."""
    text = "\n".join(lines)
    if view.toPlainText() != text:
        view.setPlainText(text)


def choice(name: str) -> QtWidgets.QComboBox:
    """A list to choose from, whose width no text in it decides. `name` is for screen readers."""
    made = QtWidgets.QComboBox()
    made.setAccessibleName(name)
    made.setSizeAdjustPolicy(
        QtWidgets.QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon
    )
    made.setMinimumContentsLength(CHARACTERS_SHOWN)
    return made


def fill(combo: QtWidgets.QComboBox, entries: Iterable[tuple[str, object]], chosen: object) -> None:
    """Give a list its entries, each with what it stands for. Without a change, one that is open
    stays as it is. `chosen` is marked if it is there, and otherwise the first."""
    new = list(entries)
    old = [(combo.itemText(index), combo.itemData(index)) for index in range(combo.count())]
    if old != new:
        combo.clear()
        for text, data in new:
            combo.addItem(text, data)
    for index, (_text, data) in enumerate(new):
        if data == chosen:
            combo.setCurrentIndex(index)


def table(name: str, header: Iterable[str]) -> QtWidgets.QTableWidget:
    """Rows to read and to choose from; Tab leaves it. `name` is for screen readers."""
    columns = list(header)
    made = QtWidgets.QTableWidget(0, len(columns))
    made.setHorizontalHeaderLabels(columns)
    made.setAccessibleName(name)
    made.setSelectionBehavior(QtWidgets.QAbstractItemView.SelectionBehavior.SelectRows)
    made.setSelectionMode(QtWidgets.QAbstractItemView.SelectionMode.SingleSelection)
    made.setEditTriggers(QtWidgets.QAbstractItemView.EditTrigger.NoEditTriggers)
    made.setTabKeyNavigation(False)
    made.setWordWrap(False)
    made.verticalHeader().hide()
    height = made.fontMetrics().lineSpacing()
    made.verticalHeader().setDefaultSectionSize(height * 3 // 2)
    made.setMinimumHeight(LINES_SHOWN * height * 3 // 2)
    return made


def after_closing(window: QtWidgets.QWidget, tell: Callable[[], None]) -> None:
    """Tell that a window is closed and destroy it, once it is not closing any more. Its slots hold
    it, so that it would stay otherwise, however often one is opened."""

    def end() -> None:
        tell()
        window.deleteLater()

    QtCore.QTimer.singleShot(0, end)


def fitting(window: QtWidgets.QWidget, size: tuple[int, int]) -> QtCore.QSize:
    """That size, or what of it the screen has room for beside the window's frame."""
    room = window.screen().availableSize() - QtCore.QSize(FRAME, FRAME)
    return QtCore.QSize(*size).boundedTo(room)


class _Parts(QtWidgets.QWidget):
    """They take the height that there is. Wrapped texts would have it depend on the width, and then
    an area that scrolls gives as much as would be best."""

    def hasHeightForWidth(self) -> bool:  # noqa: N802 - Qt's name
        return False


def scrolled(*parts: tuple[QtWidgets.QWidget, int]) -> QtWidgets.QScrollArea:
    """Parts of a window, one below the other, each with its share of the room. They are higher than
    some screens, where they scroll: what is not among them, as buttons, is seen on all."""
    inner = _Parts()
    layout = QtWidgets.QVBoxLayout(inner)
    layout.setContentsMargins(0, 0, 0, 0)
    for part, share in parts:
        layout.addWidget(part, share)
    holder = QtWidgets.QWidget()
    held = QtWidgets.QVBoxLayout(holder)
    held.setContentsMargins(0, 0, 0, 0)
    held.addWidget(inner)
    area = QtWidgets.QScrollArea()
    area.setWidget(holder)
    area.setWidgetResizable(True)
    area.setFocusPolicy(QtCore.Qt.FocusPolicy.NoFocus)  # which the first of the parts has
    area.setFrameShape(QtWidgets.QFrame.Shape.NoFrame)
    area.setHorizontalScrollBarPolicy(QtCore.Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
    area.setMinimumWidth(inner.minimumSizeHint().width())
    return area
