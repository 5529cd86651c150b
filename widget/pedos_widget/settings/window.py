"""The window of a VM's settings: which devices are assigned to it.

It shows what `model` says, tells it what a person does, and starts what `saving` has to ask of the
service. Nothing here waits.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import trio

from pedos_widget.i18n import _
from pedos_widget.plain import after_closing, fitting, label, scrolled, table
from pedos_widget.qt import QtCore, QtGui, QtWidgets, Signal
from pedos_widget.settings.add_panel import AddPanel
from pedos_widget.settings.model import Settings
from pedos_widget.settings.row_editor import RowEditor
from pedos_widget.settings.saving import lasting_identity, load, save, try_out
from pedos_widget.settings.texts import HEADER, after_saving, cells, heading
from pedos_widget.tasks import Tasks

if TYPE_CHECKING:
    from pedos_widget.calls import Watched
    from pedos_widget.settings.model import Candidate
    from pedos_widget.settings.wish import Wish
    from pedos_widget.tasks import StartSoon

PAUSE_S = 0.25
"""Seconds between two looks at what the service has: devices change in bursts."""

SIZE = (760, 760)


class SettingsWindow(QtWidgets.QWidget):
    """The devices of `vm`. `closed` comes once nothing in it is needed any more."""

    closed = Signal()

    def __init__(self, controller: Watched, vm: str, start_soon: StartSoon) -> None:
        super().__init__()
        self.settings = Settings(vm)
        self._controller = controller
        self._tasks = Tasks(start_soon, self.say, self.give_up)
        self._is_loading = self._is_stale = self._is_saving = False
        self._closes_when_saved = self._is_given_up = self._is_closed = False
        self._trial: trio.CancelScope | None = None
        self._question: QtWidgets.QMessageBox | None = None
        self.setWindowTitle(_("VM settings: {vm}").format(vm=vm))
        self._make_parts()
        self.resize(fitting(self, SIZE))
        self._tell_no_more = controller.on_change(self._changed)
        self._show()
        self.reload()

    def _make_parts(self) -> None:
        self.heading = label("")
        self.table = table(_("Devices that are assigned to the VM"), HEADER)
        self.table.horizontalHeader().setSectionResizeMode(
            0, QtWidgets.QHeaderView.ResizeMode.Stretch
        )
        self.editor, self.adding = RowEditor(), AddPanel()
        self.status = label("")
        self.status.setAccessibleName(_("What happened last"))
        self.save_button = QtWidgets.QPushButton(_("&Save"))
        self.close_button = QtWidgets.QPushButton(_("C&lose"))
        buttons = QtWidgets.QHBoxLayout()
        buttons.addWidget(self.status, 1)
        buttons.addWidget(self.save_button)
        buttons.addWidget(self.close_button)
        layout = QtWidgets.QVBoxLayout(self)
        layout.addWidget(self.heading)
        layout.addWidget(scrolled((self.table, 2), (self.editor, 0), (self.adding, 1)), 1)
        layout.addLayout(buttons)
        self.table.itemSelectionChanged.connect(self._show_row)
        self.editor.wanted.connect(self._want)
        self.editor.removed.connect(self._remove)
        self.editor.undone.connect(self._undo)
        self.adding.chosen.connect(self._add)
        self.save_button.clicked.connect(lambda: self.save())
        self.close_button.clicked.connect(lambda: self.close())
        for key, slot in (
            (QtGui.QKeySequence.StandardKey.Save, self.save),
            (QtGui.QKeySequence.StandardKey.Cancel, self.close),
            (QtGui.QKeySequence.StandardKey.Refresh, self.reload),
        ):
            QtGui.QShortcut(QtGui.QKeySequence(key), self).activated.connect(slot)
        delete = QtGui.QShortcut(QtGui.QKeySequence(QtCore.Qt.Key.Key_Delete), self.table)
        delete.setContext(QtCore.Qt.ShortcutContext.WidgetShortcut)
        delete.activated.connect(self._remove)

    # What is shown

    def say(self, text: str) -> None:
        """Show what happened last."""
        if not self._is_closed:
            self.status.setText(text)

    def _show(self) -> None:
        if self._is_closed:
            return
        self._show_heading()
        self._show_table()
        self._show_row()
        self.adding.show_devices(self.settings, may_edit=self._may_edit)

    def _show_heading(self) -> None:
        text = heading(self.settings)
        troubles = [*self.settings.troubles]
        view = self._controller.view
        if view.status or not view.connected:  # or the policy has errors
            troubles.insert(0, view.status or _("The service is not reached."))
        self.heading.setText("\n".join([text, *troubles]))

    def _show_table(self) -> None:
        chosen = self._chosen_key()
        rows = self.settings.rows
        # A row that is selected while the rows are exchanged is not a choice.
        with QtCore.QSignalBlocker(self.table):
            self.table.setRowCount(len(rows))
            for number, row in enumerate(rows):
                for column, text in enumerate(cells(self.settings, row)):
                    item = self.table.item(number, column)
                    if item is None:
                        item = QtWidgets.QTableWidgetItem()
                        self.table.setItem(number, column, item)
                    if item.text() != text:
                        item.setText(text)
                    font = item.font()
                    font.setItalic(not row.is_clean)
                    font.setStrikeOut(row.wanted is None)
                    item.setFont(font)
                    item.setData(QtCore.Qt.ItemDataRole.UserRole, row.key)
            self._choose(chosen)
        for column in range(1, len(HEADER)):
            self.table.resizeColumnToContents(column)

    def _show_row(self) -> None:
        row = self.settings.row(self._chosen_key())
        self.editor.show_row(self.settings, row, may_edit=self._may_edit)
        # What is saved was tried before, so that nobody saves what was not said.
        is_tried = not self.settings.to_try()
        self.save_button.setEnabled(self._may_edit and bool(self.settings.to_save()) and is_tried)

    @property
    def _may_edit(self) -> bool:
        return self.settings.is_loaded and not self._is_saving

    def _chosen_key(self) -> int | None:
        items = self.table.selectedItems()
        return items[0].data(QtCore.Qt.ItemDataRole.UserRole) if items else None

    def _choose(self, key: int | None) -> None:
        for number in range(self.table.rowCount()):
            item = self.table.item(number, 0)
            if item is not None and item.data(QtCore.Qt.ItemDataRole.UserRole) == key:
                self.table.selectRow(number)
                return
        self.table.clearSelection()

    # What a person does

    def _want(self, wish: Wish) -> None:
        key = self._chosen_key()
        if key is None or not self._may_edit:
            return
        try:
            self.settings.change(key, wish)
        except ValueError as error:
            self.say(str(error))
        else:
            self._edited()
            return
        self._show()

    def _remove(self) -> None:
        if (key := self._chosen_key()) is not None and self._may_edit:
            self.settings.remove(key)
            self._edited()

    def _undo(self) -> None:
        if (key := self._chosen_key()) is not None and self._may_edit:
            self.settings.undo(key)
            self._edited()

    def _add(self, candidate: Candidate) -> None:
        async def look_and_add() -> None:
            lasting = await lasting_identity(self._controller, candidate)
            if not self._may_edit:
                return
            key = self.settings.add(replace(candidate, lasting=lasting))
            self.adding.search.clear()
            self._edited()
            self._choose(key)
            self.table.setFocus()

        self._tasks.start(look_and_add)

    def _edited(self) -> None:
        self.say("")
        self._show()
        self._try()

    # The dry run

    def _try(self) -> None:
        """Ask what saving would come to. What is asked about something that is no longer wanted is
        given up: it may be a question to a person."""
        if self._trial is not None:
            self._trial.cancel()

        async def try_all() -> None:
            while rows := self.settings.to_try():
                await try_out(self._controller, self.settings, rows[0])
                self._show()

        self._trial = self._tasks.start(try_all)

    # Saving

    def save(self) -> None:
        """Save all changes, if there are any and it is known what they come to."""
        if not self.save_button.isEnabled():
            return
        self._is_saving = True
        self.say(_("Saving."))
        self._show()

        async def save_all() -> None:
            try:
                await save(self._controller, self.settings, self._show)
            finally:
                self._is_saving = False
                self._saved()

        self._tasks.start(save_all)

    def _saved(self) -> None:
        self.say(after_saving(self.settings))
        self._show()
        if self._closes_when_saved and self.settings.is_saved:
            self.close()
        self._closes_when_saved = False
        self.reload()

    # What the service has

    def _changed(self) -> None:
        if not self._is_closed:
            self._show_heading()  # the rest is shown as soon as it is read
            self.reload()

    def reload(self) -> None:
        """Look what the service has; as soon as the look that is under way is over."""
        self._is_stale = True
        if self._is_loading or not self._controller.view.connected:
            return
        self._is_loading = True

        async def look() -> None:
            try:
                while self._is_stale and self._controller.view.connected:
                    self._is_stale = False
                    self.settings.load(await load(self._controller, self.settings.vm))
                    self._show()
                    self._try()
                    await trio.sleep(PAUSE_S)
            finally:
                self._is_loading = False

        self._tasks.start(look)

    # The end

    def give_up(self) -> None:
        """Close, whatever is not saved."""
        self._is_given_up = True
        self.close()

    def closeEvent(self, event: QtGui.QCloseEvent) -> None:  # noqa: N802 - Qt's name
        """Close, unless something is not saved: that is asked about first."""
        if not self._is_given_up and self._is_saving:
            self._closes_when_saved = True
            self.say(_("Saving; the window closes when that is done."))
            event.ignore()
        elif not self._is_given_up and not self.settings.is_saved:
            self._ask()
            event.ignore()
        else:
            self._is_closed = True
            self._tell_no_more()
            self._tasks.close()
            event.accept()
            after_closing(self, self.closed.emit)

    def _ask(self) -> None:
        if self._question is not None:
            self._question.raise_()
            return
        buttons = QtWidgets.QMessageBox.StandardButton
        box = QtWidgets.QMessageBox(self)
        box.setTextFormat(QtCore.Qt.TextFormat.PlainText)
        box.setIcon(QtWidgets.QMessageBox.Icon.Question)
        box.setWindowTitle(self.windowTitle())
        box.setText(_("Some changes are not saved."))
        box.setStandardButtons(buttons.Save | buttons.Discard | buttons.Cancel)
        box.button(buttons.Save).setEnabled(self.save_button.isEnabled())
        box.setEscapeButton(buttons.Cancel)
        box.setDefaultButton(buttons.Cancel)
        box.setAttribute(QtCore.Qt.WidgetAttribute.WA_DeleteOnClose)
        box.buttonClicked.connect(lambda button: self._answered(box.standardButton(button)))
        box.finished.connect(lambda _result: setattr(self, "_question", None))
        self._question = box
        box.open()

    def _answered(self, button: QtWidgets.QMessageBox.StandardButton) -> None:
        self._question = None
        if button == QtWidgets.QMessageBox.StandardButton.Discard:
            self.give_up()
        elif button == QtWidgets.QMessageBox.StandardButton.Save:
            self._closes_when_saved = True
            self.save()
            if not self._is_saving:  # it cannot be saved now
                self._closes_when_saved = False
