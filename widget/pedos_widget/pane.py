"""A list of rows, of which one is chosen and stays chosen while the others change."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from pedos_widget.menu import texts
from pedos_widget.menu.style import greyed, install
from pedos_widget.qt import QtCore, QtGui, QtWidgets

INDENT = "    "
_Flag = QtCore.Qt.ItemFlag
_Group = QtGui.QPalette.ColorGroup
_Role = QtCore.Qt.ItemDataRole
_ACTS = (QtCore.Qt.Key.Key_Return, QtCore.Qt.Key.Key_Enter)


@dataclass(frozen=True, slots=True)
class PaneRow:
    """A row: `key` tells it from others. One that is not `enabled` looks greyed, and can still be
    chosen, so that the keyboard and a screen reader reach its reason; a heading cannot."""

    key: Hashable
    text: str
    spoken: str = ""
    detail: str = ""
    icon: QtGui.QIcon | None = None
    bold: bool = False
    enabled: bool = True
    indent: int = 0
    heading: bool = False


class Pane(QtWidgets.QListWidget):
    """The list."""

    def __init__(self, name: str) -> None:
        install()
        super().__init__()
        self._rows: list[PaneRow] = []
        self.setAccessibleName(name)
        self.setTextElideMode(QtCore.Qt.TextElideMode.ElideMiddle)
        self.setHorizontalScrollBarPolicy(QtCore.Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        height = self.fontMetrics().height()
        self.setIconSize(QtCore.QSize(height, height))
        self.setSpacing(1)

    def current_key(self) -> Hashable | None:
        """The key of the chosen row."""
        index = self.currentRow()
        return self._rows[index].key if 0 <= index < len(self._rows) else None

    def choose(self, key: Hashable) -> None:
        """Choose the row with this key, if it is there."""
        for index, row in enumerate(self._rows):
            if row.key == key:
                self.setCurrentRow(index)

    def show_rows(self, rows: Sequence[PaneRow]) -> None:
        """Show these rows. The chosen one stays chosen; if it has gone, none is."""
        chosen, before = self.current_key(), self._rows
        self.blockSignals(True)
        try:
            if [row.key for row in rows] != [row.key for row in before]:
                place = self.verticalScrollBar().value()
                self.clear()
                self.addItems([""] * len(rows))
                self._rows = list(rows)
                for item, row in zip(self._items(), rows, strict=True):
                    self._say(item, row)
                self.setCurrentRow(-1)
                if chosen is not None:
                    self.choose(chosen)
                self.verticalScrollBar().setValue(place)
            else:
                self._rows = list(rows)
                for item, row, old in zip(self._items(), rows, before, strict=True):
                    if row != old:
                        self._say(item, row)
        finally:
            self.blockSignals(False)

    def _items(self) -> list[QtWidgets.QListWidgetItem]:
        return [self.item(index) for index in range(self.count())]

    def _say(self, item: QtWidgets.QListWidgetItem, row: PaneRow) -> None:
        item.setText(INDENT * row.indent + texts.plain(row.text))
        item.setData(_Role.AccessibleTextRole, texts.plain(row.spoken or row.text))
        item.setToolTip(texts.tooltip(row.detail or row.text))
        item.setIcon(row.icon or QtGui.QIcon())
        font = item.font()
        font.setBold(row.bold)
        item.setFont(font)
        chosen = _Flag.ItemIsEnabled | _Flag.ItemIsSelectable
        item.setFlags(_Flag.NoItemFlags if row.heading else chosen)
        # Said for each: a heading is not enabled, and is to look as if it were.
        if not row.enabled:
            item.setForeground(QtGui.QBrush(greyed(self.palette())))
        elif row.heading:
            item.setForeground(self.palette().brush(_Group.Active, QtGui.QPalette.ColorRole.Text))
        else:
            item.setData(_Role.ForegroundRole, None)

    def focusInEvent(self, event: Any) -> None:  # noqa: N802 - Qt's name
        is_none_chosen = self.currentRow() < 0
        super().focusInEvent(event)
        if is_none_chosen:  # nor by coming here: a Return that repeats would act on it
            self.setCurrentRow(-1)

    def keyPressEvent(self, event: Any) -> None:  # noqa: N802 - Qt's name
        if event.isAutoRepeat() and event.key() in _ACTS:
            event.accept()  # a key held down is one wish
            return
        super().keyPressEvent(event)

    def changeEvent(self, event: Any) -> None:  # noqa: N802 - Qt's name
        super().changeEvent(event)
        if event.type() == QtCore.QEvent.Type.PaletteChange:
            for item, row in zip(self._items(), self._rows, strict=True):
                self._say(item, row)
