"""The part of the window that finds a device to add."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pedos_cli.output import show

from pedos_widget.i18n import _, ngettext
from pedos_widget.plain import LINES_SHOWN, label
from pedos_widget.qt import QtCore, QtWidgets, Signal

if TYPE_CHECKING:
    from pedos_widget.settings.model import Candidate, Settings

SHOWN_MAX = 200
"""Devices in the list: more than anybody reads. What is left out is counted, and a search finds
it."""


class AddPanel(QtWidgets.QGroupBox):
    """Lists what is there and not assigned yet; `chosen` has the device to add."""

    chosen = Signal(object)

    def __init__(self) -> None:
        super().__init__(_("Add a device"))
        self.search = QtWidgets.QLineEdit()
        self.search.setPlaceholderText(_("Name, description, class or identity"))
        self.search.setAccessibleName(_("Search for a device to add"))
        self.search.setClearButtonEnabled(True)
        self.list = QtWidgets.QListWidget()
        self.list.setAccessibleName(_("Devices that can be added"))
        self.list.setUniformItemSizes(True)
        self.list.setMinimumHeight(LINES_SHOWN * self.list.fontMetrics().lineSpacing())
        self.note = label("")
        self.add = QtWidgets.QPushButton(_("&Add"))
        self._settings: Settings | None = None
        self._candidates: list[Candidate] = []
        first = QtWidgets.QHBoxLayout()
        first.addWidget(label(_("S&earch:"), self.search))
        first.addWidget(self.search)
        last = QtWidgets.QHBoxLayout()
        last.addWidget(self.add)
        last.addWidget(self.note, 1)
        layout = QtWidgets.QVBoxLayout(self)
        layout.addLayout(first)
        layout.addWidget(self.list)
        layout.addLayout(last)
        self.search.textEdited.connect(lambda _text: self._fill())
        self.search.returnPressed.connect(self._choose)
        self.list.itemActivated.connect(lambda _item: self._choose())
        self.list.currentRowChanged.connect(lambda _row: self._enable())
        self.add.clicked.connect(lambda: self._choose())

    def show_devices(self, settings: Settings, *, may_edit: bool) -> None:
        """Show what there is now. What was marked stays so, if it is still the same device."""
        self._settings = settings
        self.setEnabled(may_edit)
        self._fill()

    def _fill(self) -> None:
        if self._settings is None:
            return
        marked = self.marked
        found = self._settings.candidates(self.search.text())
        left_out = len(found) - SHOWN_MAX
        self._candidates, before = found[:SHOWN_MAX], self._candidates
        if self._candidates != before:
            self.list.clear()
            for each in self._candidates:
                item = QtWidgets.QListWidgetItem(show(each.text))
                item.setFlags(item.flags() & ~QtCore.Qt.ItemFlag.ItemIsEditable)
                self.list.addItem(item)
        if marked in self._candidates:
            self.list.setCurrentRow(self._candidates.index(marked))
        elif self.search.text() and len(self._candidates) == 1:
            self.list.setCurrentRow(0)
        if left_out > 0:
            text = ngettext("{n} more device matches.", "{n} more devices match.", left_out)
            self.note.setText(text.format(n=left_out))
        elif found or not self._settings.is_loaded:
            self.note.setText("")
        elif self.search.text():
            self.note.setText(_("No device matches."))
        else:
            self.note.setText(_("No device is there that is not in the list above."))
        self._enable()

    @property
    def marked(self) -> Candidate | None:
        """The device that is marked."""
        row = self.list.currentRow()
        return self._candidates[row] if 0 <= row < len(self._candidates) else None

    def _enable(self) -> None:
        self.add.setEnabled(self.marked is not None)

    def _choose(self) -> None:
        if self.marked is not None:
            self.chosen.emit(self.marked)
