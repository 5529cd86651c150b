"""The submenu that asks which VM's settings are meant."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from pedos_widget.i18n import _
from pedos_widget.menu.steady import Entry, SteadyMenu

if TYPE_CHECKING:
    from pedos_widget.qt import QtCore, QtGui, QtWidgets


class VmChoice(SteadyMenu):
    """All VMs, also those that do not run. When it opens it calls `ask`, and `show_vms` or `fail`
    is called with what is known."""

    def __init__(
        self,
        parent: QtWidgets.QWidget | None,
        *,
        on_input: Callable[[], None],
        on_pointer: Callable[[QtCore.QPoint], None],
        ask: Callable[[], None],
        choose: Callable[[str], None],
    ) -> None:
        super().__init__(parent, on_input, on_pointer)
        self._choose = choose
        self._of: dict[Entry, str] = {}
        self.setAccessibleName(_("VM settings"))
        self._ask = ask
        self.aboutToShow.connect(self._fill)
        self.triggered.connect(self._chosen)

    def heading_text(self) -> str:
        """What is asked, or searched for."""
        if self.query.text:
            return _("Search: {query}").format(query=self.query.text)
        return _("Whose settings?")

    def _fill(self) -> None:
        self._say(_("Asking which VMs there are..."))
        self._ask()

    def show_vms(self, names: Sequence[str]) -> None:
        """These are all. A list that somebody looks at stays as it is."""
        if self._of or not self.isVisible():
            return
        with self.held():
            self.begin()
            for name in names:
                entry = self.add(Entry(self, name))
                entry.searched = name.casefold()
                self._of[entry] = name
            self.settle_width()
        self.back_onto_screen()

    def fail(self, reason: str) -> None:
        """They are not known."""
        if not self._of and self.isVisible():
            with self.held():
                self._say(reason)
            self.back_onto_screen()

    def _say(self, text: str) -> None:
        self._of.clear()
        self.begin()
        self.add(Entry(self, text, enabled=False))
        self.settle_width()

    def _chosen(self, action: QtGui.QAction) -> None:
        if isinstance(action, Entry) and (name := self._of.get(action)) is not None:
            self._choose(name)
