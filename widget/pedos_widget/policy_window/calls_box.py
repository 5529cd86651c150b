"""The part of the policy window with the calls that run, and a button that ends one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pedos_cli.calls import TIMEOUT_S, call_pages
from pedos_protocol.errors import CallError

from pedos_widget.calls import everything, refusal
from pedos_widget.i18n import _
from pedos_widget.plain import label, table
from pedos_widget.policy_window import calls_model
from pedos_widget.qt import QtCore, QtWidgets

if TYPE_CHECKING:
    from collections.abc import Callable

    from pedos_widget.calls import Watched
    from pedos_widget.policy_window.calls_model import Call
    from pedos_widget.tasks import Tasks


class CallsBox(QtWidgets.QGroupBox):
    """The calls, the oldest first. Its rows stay where they are while they are the same calls."""

    def __init__(self, controller: Watched, tasks: Tasks, say: Callable[[str], None]) -> None:
        super().__init__(_("Calls of services that run"))
        self._controller, self._tasks, self._say = controller, tasks, say
        self._shown: tuple[Call, ...] = ()
        self.table = table(_("Calls that run"), calls_model.HEADER)
        self.table.horizontalHeader().setStretchLastSection(True)
        self.note = label("")
        self.end_button = QtWidgets.QPushButton(_("E&nd this call"))
        row = QtWidgets.QHBoxLayout()
        row.addWidget(self.note, 1)
        row.addWidget(self.end_button)
        layout = QtWidgets.QVBoxLayout(self)
        layout.addWidget(self.table)
        layout.addLayout(row)
        self.end_button.clicked.connect(lambda: self.end())
        self.table.itemSelectionChanged.connect(self._chosen_changed)
        self._chosen_changed()

    @property
    def chosen(self) -> Call | None:
        """The call whose row is marked."""
        rows = {item.row() for item in self.table.selectedItems()}
        return self._shown[min(rows)] if rows else None

    async def look(self) -> None:
        """Ask what runs."""
        try:
            listed, _last = await everything(self._controller, call_pages(), TIMEOUT_S)
        except CallError as error:
            # For an older service there are no calls at all.
            self.setVisible(error.code != "unknown_method")
            self.note.setText(refusal(error))
        else:
            self.setVisible(True)
            self._show(calls_model.rows(listed))

    def end(self) -> None:
        """End the chosen call."""
        call = self.chosen
        if call is not None:
            self._tasks.start(lambda: self._end(call))

    async def _end(self, call: Call) -> None:
        try:
            await self._controller.call("call.end", {"call": call.id}, timeout_s=TIMEOUT_S)
        except CallError as error:
            self._say(f"{call.what}: {refusal(error)}")
        else:
            self._say(_("Ended: {call}").format(call=call.what))
        await self.look()

    def _show(self, calls: tuple[Call, ...]) -> None:
        self.note.setText("" if calls else _("No call runs."))
        chosen = self.chosen
        self._shown = calls
        with QtCore.QSignalBlocker(self.table):
            self.table.clearSelection()
            self.table.setRowCount(len(calls))
            for number, call in enumerate(calls):
                for column, text in enumerate(call.cells):
                    self.table.setItem(number, column, QtWidgets.QTableWidgetItem(text))
                if chosen is not None and call.id == chosen.id:
                    self.table.selectRow(number)
        self.table.resizeColumnsToContents()
        self._chosen_changed()

    def _chosen_changed(self) -> None:
        self.end_button.setEnabled(self.chosen is not None)
