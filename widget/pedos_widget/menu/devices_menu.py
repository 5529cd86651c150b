"""The menu of the tray icon: devices by class, each with a submenu of VMs."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol

from pedos_widget.i18n import _, ngettext
from pedos_widget.icons import icon
from pedos_widget.menu.results import Results, gone_text, row_with_result, with_result
from pedos_widget.menu.steady import Entry, SteadyMenu
from pedos_widget.menu.vm_menu import VmMenu
from pedos_widget.model.view import Action
from pedos_widget.qt import QtCore, QtGui

if TYPE_CHECKING:
    from pedos_widget.model.view import DeviceRef, DeviceRow, Result, View, VmRow

IDLE_MS = 60_000
"""Without input the menu closes after this: an open one keeps a screen from being locked (X11)."""

SETTLE_MS = 250
"""The pointer rests for so long on another device before that one's submenu opens: longer than
people pause on a diagonal way, shorter than they wait."""

REDRAW_MAX_MS = 1000
"""A menu is no further behind than this because of the time that drawing its changes takes."""

RESERVE = 20
"""Characters that a row may grow by while the menu is open: ", attaching to personal"."""


class Devices(Protocol):
    """What of the controller the menu and the window use."""

    @property
    def view(self) -> View: ...
    def on_change(self, callback: Callable[[], None]) -> object: ...
    def on_result(self, callback: Callable[[Result], None]) -> None: ...
    def opened(self) -> None: ...
    def look(self, ref: DeviceRef) -> None: ...
    def attach(self, ref: DeviceRef, vm: str) -> None: ...
    def detach(self, ref: DeviceRef, vm: str) -> None: ...


class Row:
    """An entry for a device, and its submenu. They are kept for other devices later: making 200 of
    them takes longer than all else that opening the menu takes."""

    def __init__(self, menu: Menu, row: DeviceRow) -> None:
        self.entry = Entry(menu)
        self.vms = menu.make_submenu(row)


class Menu(SteadyMenu):
    """All devices, and the entries below them.

    It is filled when it opens. While it is open, rows change and keep their places: what has gone
    is greyed, what is new comes at the end, where it moves nothing.
    """

    def __init__(self, controller: Devices, results: Results | None = None) -> None:
        super().__init__(None, self.touched, self._pointed_at)
        self.why: Callable[[DeviceRef | None], None] = lambda _ref: None
        #: Makes the entries below the devices, anew for each opening.
        self.below: Callable[[Menu], list[Entry]] = lambda _menu: []
        self._controller = controller
        self.results = Results() if results is None else results
        self._rows: dict[DeviceRef, Row] = {}
        self._empty: dict[str, Entry] = {}  # of classes without devices when it opened
        self._pool: list[Row] = []
        self._is_open = False
        self._has_new_section = False
        self._unshown = 0
        self._pointer = QtCore.QPoint()

        self._redraw = _timer(self, 0, self._take_changes)
        self._settle = _timer(self, SETTLE_MS, self._settled)
        self._idle = _timer(self, IDLE_MS, self._close_unused)
        self.setAccessibleName(_("Devices"))
        self.aboutToShow.connect(self._fill)
        self.aboutToHide.connect(self._hidden)
        self.hovered.connect(self._hovered)
        controller.on_change(self._changed)
        controller.on_result(self._take_result)

    def popup_at(self, position: QtCore.QPoint) -> None:
        """Open here, or where the screen has room; one that is open stays where it is."""
        if not self.isVisible():
            self.popup(position)

    def heading_text(self) -> str:
        """What is searched for; what is wrong; or that one may search."""
        view = self._controller.view
        if self.query.text:
            return (
                _("Search: {query}") if self.found else _("Search: {query} - there is none")
            ).format(query=self.query.text)
        if self._unshown:
            return ngettext(
                "{n} new device: open this menu again", "{n} new devices: open this menu again",
                self._unshown,
            ).format(n=self._unshown)  # fmt: skip
        return view.status or _("Type to search")

    def choose(self, ref: DeviceRef, row: VmRow) -> None:
        """Do what a row of a VM says, with the device that was shown."""
        if row.action is Action.ATTACH:
            self._controller.attach(ref, row.vm)
        elif row.action is Action.EJECT:
            self._controller.detach(ref, row.vm)

    # Filling.

    def make_submenu(self, row: DeviceRow) -> VmMenu:
        """A submenu for a device."""
        return VmMenu(
            self, row=row, results=self.results,
            on_input=self.touched, on_pointer=self.elsewhere,
            look=self._controller.look, choose=self.choose, why=lambda ref: self.why(ref),
        )  # fmt: skip

    def _fill(self) -> None:
        self._is_open = True
        self._idle.start()
        self._controller.opened()
        self._put_all()

    def _put_all(self) -> None:
        self._rows.clear()
        self._empty.clear()
        self._has_new_section, self._unshown = False, 0
        self.begin(keep={row.entry for row in self._pool})
        for section in self._controller.view.sections:
            self.addSection(section.title)
            for row in section.rows:
                self.addAction(self._put(row).entry)
            if not section.rows:
                entry = self.add(Entry(self, section.empty, enabled=False))
                self._empty[section.device_class] = entry
        self.addSeparator()
        for entry in self.below(self):
            self.add(entry)
        self.settle_width(RESERVE)

    def _put(self, row: DeviceRow) -> Row:
        """Let the next free entry be that of a device."""
        if len(self._pool) == len(self._rows):
            self._pool.append(Row(self, row))
        made = self._rows[row.ref] = self._pool[len(self._rows)]
        made.vms.is_gone = False
        made.entry.setVisible(True)
        self._say_row(made, row)
        return made

    def _say_row(self, made: Row, row: DeviceRow) -> None:
        words = self.results.words(row.ref)
        made.entry.searched = row.search
        made.entry.setIcon(icon(row.icon))
        made.entry.say(
            row_with_result(row.text, self.results.words(row.ref, short=True)),
            spoken=with_result(row.spoken or row.text, words),
            detail=with_result(row.detail or row.text, words) if words else row.detail,
            bold=row.bold, indent=row.indent,
        )  # fmt: skip
        made.entry.setEnabled(row.enabled)
        made.entry.setMenu(made.vms if row.enabled else None)  # type: ignore[arg-type]
        made.vms.show_row(row)

    # Changes.

    def _changed(self) -> None:
        if not self._redraw.isActive():  # or changes without end would put it off without end
            self._redraw.start()

    def _take_result(self, result: Result) -> None:
        self.results.take(result)
        self._changed()

    def _take_changes(self) -> None:
        """The next ones are taken after as long as this takes: half of the time is left for what a
        person does, however many rows a VM changes. An open menu has the desktop's keys."""
        began = monotonic()
        self._update()
        self._redraw.setInterval(min(round((monotonic() - began) * 1000), REDRAW_MAX_MS))

    def _update(self) -> None:
        now = {row.ref: row for section in self._controller.view.sections for row in section.rows}
        if not self._is_open:
            # Ahead of time, so that it opens at once.
            self._pool += [Row(self, row) for row in list(now.values())[len(self._pool) :]]
            return
        if not self._rows and now and not self.query.text:
            # Opened before there was anything, so there is no device to be hit in another's place.
            with self.held():
                self._put_all()
            self.back_onto_screen()
            return
        with self.held():
            for ref, made in self._rows.items():
                row = now.pop(ref, None)
                if row is not None:
                    self._say_row(made, row)
                elif not made.vms.is_gone:
                    self._say_gone(made)
            self._add_new(list(now.values()))
            self._say_empty()
            self.say_heading()
            self.show_found()

    def _say_gone(self, made: Row) -> None:
        made.entry.say(gone_text(made.vms.row), indent=made.vms.row.indent)
        made.entry.setEnabled(False)
        made.vms.show_row(None)

    def _say_empty(self) -> None:
        """Why a class has no devices, or that they came meanwhile."""
        for section in self._controller.view.sections:
            if (entry := self._empty.get(section.device_class)) is not None:
                has_new = _("Some have come since this menu was opened.")
                entry.say(has_new if section.rows else section.empty)

    def _add_new(self, rows: list[DeviceRow]) -> None:
        self._unshown = 0
        for number, row in enumerate(rows):
            added: list[QtGui.QAction] = [self._put(row).entry]
            if not self._has_new_section:
                section = QtGui.QAction(_("New"), self)
                section.setSeparator(True)
                added.insert(0, section)
            if self.add_if_it_fits(added):
                self._has_new_section = True
            else:
                del self._rows[row.ref]
                for heading in added[:-1]:
                    heading.deleteLater()
                # Nor do the others, which are as high. To try each of hundreds at each change
                # would keep the menu, which has the desktop's keys, from all else for seconds.
                self._unshown = len(rows) - number
                break

    # Input.

    def touched(self) -> None:
        """Somebody uses the menu, or a submenu."""
        self._idle.start()

    def elsewhere(self, _place: QtCore.QPoint) -> None:
        """The pointer has arrived in a submenu."""
        self._settle.stop()

    def _hovered(self, action: QtGui.QAction) -> None:
        """Ask for the VMs before the submenu opens, which it does after a moment."""
        ref = next((ref for ref, made in self._rows.items() if made.entry is action), None)
        if ref is not None and (row := self._rows[ref].vms.row).enabled and row.vms is None:
            self._controller.look(ref)

    def _pointed_at(self, place: QtCore.QPoint) -> None:
        self._pointer = place
        self._settle.start()

    def leaveEvent(self, event: Any) -> None:  # noqa: N802 - Qt's name
        super().leaveEvent(event)
        if not self.geometry().contains(QtGui.QCursor.pos()):  # a submenu that closes takes it away
            self._settle.stop()

    def _settled(self) -> None:
        """The pointer rests: the entry under it is the active one, as everywhere else."""
        action = self.actionAt(self._pointer)
        if action is not None and action is not self.activeAction() and not action.isSeparator():
            self.mark_in_place(action, self._pointer)

    def _close_unused(self) -> None:
        self.close()

    def _hidden(self) -> None:
        self._is_open = False
        for timer in (self._idle, self._settle, self._redraw):
            timer.stop()
        self.results.seen()


def _timer(parent: QtCore.QObject, interval_ms: int, callback: Callable[[], None]) -> QtCore.QTimer:
    timer = QtCore.QTimer(parent)
    timer.setSingleShot(True)
    timer.setInterval(interval_ms)
    timer.timeout.connect(callback)
    return timer
