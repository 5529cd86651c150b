"""The part of the window that edits one assignment: what counts, when, and the options."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pedos_cli.answers import MESSAGE_MAX
from pedos_cli.output import show

from pedos_widget.i18n import _
from pedos_widget.plain import choice, fill, label, lines_view, set_lines
from pedos_widget.qt import QtWidgets, Signal
from pedos_widget.settings.model import BUSY
from pedos_widget.settings.texts import MATCHES, mode_text, modes_of, not_set, options_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from pedos_widget.settings.model import Row, Settings
    from pedos_widget.settings.wish import Wish


class RowEditor(QtWidgets.QGroupBox):
    """Shows a row, and says what is to become of it: `wanted` has the new wish."""

    wanted = Signal(object)
    removed = Signal()
    undone = Signal()

    def __init__(self) -> None:
        super().__init__(_("Chosen device"))
        self._wish: Wish | None = None
        self.name = label("")
        self.match = choice(_("What of the device counts"))
        self.mode = choice(_("When the VM gets the device"))
        self.options: dict[str, QtWidgets.QComboBox] = {}
        self.lines = lines_view(_("What is the case, or would happen"))
        self.remove = QtWidgets.QPushButton(_("&Remove"))
        self.undo = QtWidgets.QPushButton(_("&Undo"))
        self._form = QtWidgets.QFormLayout()
        self._form.addRow(label(_("&Counts:"), self.match), self.match)
        self._form.addRow(label(_("&When:"), self.mode), self.mode)
        self._fixed_rows = self._form.rowCount()
        buttons = QtWidgets.QHBoxLayout()
        buttons.addWidget(self.remove)
        buttons.addWidget(self.undo)
        buttons.addStretch()
        layout = QtWidgets.QVBoxLayout(self)
        layout.addWidget(self.name)
        layout.addLayout(self._form)
        layout.addWidget(self.lines)
        layout.addLayout(buttons)
        self.match.activated.connect(self._chosen_wish(self.match))
        self.mode.activated.connect(self._chosen_wish(self.mode))
        self.remove.clicked.connect(lambda: self.removed.emit())
        self.undo.clicked.connect(lambda: self.undone.emit())

    def show_row(self, settings: Settings, row: Row | None, *, may_edit: bool) -> None:
        """Show a row as it is now; None is none."""
        may_edit = may_edit and row is not None and row.state not in BUSY
        is_kept = may_edit and row is not None and row.wanted is not None
        self.setEnabled(row is not None)
        self._show_options(None if row is None else row.shown, is_kept=is_kept)
        self._wish = None if row is None else row.shown
        choices = [] if row is None else settings.choices(row).items()
        fill(self.match, ((MATCHES[match], wish) for match, wish in choices), self._wish)
        modes: list[tuple[str, object]] = []
        if self._wish is not None:
            modes = [
                (mode_text(mode, settings.vm), _with_mode(self._wish, mode))
                for mode in modes_of(self._wish.device_class, self._wish.mode)
            ]
        fill(self.mode, modes, self._wish)
        for part in (self.match, self.mode):
            part.setEnabled(is_kept)
        self.remove.setEnabled(is_kept)
        self.undo.setEnabled(may_edit and row is not None and not row.is_clean)
        self.name.setText(_("No device is chosen.") if row is None else show(row.shown.name))
        lines = [] if row is None else settings.lines(row)
        if row is not None and row.wanted is not None and not row.is_clean and row.trial is None:
            lines.append(_("What saving it would come to is being asked."))
        set_lines(self.lines, (show(each, MESSAGE_MAX) for each in lines))

    def _show_options(self, wish: Wish | None, *, is_kept: bool) -> None:
        given = {} if wish is None else dict(wish.options)
        known = [] if wish is None else options_of(wish.device_class, tuple(given))
        if [name for name, _option in known] != list(self.options):
            self._make_options([name for name, _option in known])
        for name, option in known:
            combo, value = self.options[name], given.get(name)
            values = [] if option is None else list(option.values)
            if value is not None and value not in values:
                values.append(value)
            assert wish is not None
            entries: list[tuple[str, object]] = [(not_set(option), wish.with_option(name, None))]
            entries += [(show(each), wish.with_option(name, each)) for each in values]
            fill(combo, entries, wish)
            combo.setEnabled(is_kept)

    def _make_options(self, names: Iterable[str]) -> None:
        while self._form.rowCount() > self._fixed_rows:
            self._form.removeRow(self._fixed_rows)
        self.options = {}
        for name in names:
            combo = choice(_("Option {name}").format(name=show(name)))
            combo.activated.connect(self._chosen_wish(combo))
            self._form.addRow(label(f"{show(name)}:"), combo)
            self.options[name] = combo

    def _chosen_wish(self, combo: QtWidgets.QComboBox) -> Callable[[int], None]:
        def chosen(index: int) -> None:
            wish = combo.itemData(index)
            if wish is not None and wish != self._wish:
                self.wanted.emit(wish)

        return chosen


def _with_mode(wish: Wish, mode: str) -> Wish:
    return replace(wish, mode=mode)
