"""The submenu of one device: the VMs that it may be attached to, and the one that has it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pedos_widget.i18n import _, ngettext
from pedos_widget.icons import icon
from pedos_widget.menu.results import Results, gone_text, with_result
from pedos_widget.menu.steady import Entry, SteadyMenu
from pedos_widget.model.view import Action
from pedos_widget.qt import QtCore, QtGui

if TYPE_CHECKING:
    from pedos_widget.model.view import DeviceRef, DeviceRow, VmRow


HOLD_MS = 1000
"""What is under the pointer does nothing for so long after it has come to do another thing by
itself: a click that was on its way to attach a device would eject it."""


class VmMenu(SteadyMenu):
    """Filled when it opens, and kept up to date while it is open.

    `look(ref)` asks for the VMs, `choose(ref, row)` does what a row says, `why(ref)` shows what is
    greyed in a window.
    """

    def __init__(
        self,
        parent: SteadyMenu,
        *,
        row: DeviceRow,
        results: Results,
        on_input: Callable[[], None],
        on_pointer: Callable[[QtCore.QPoint], None],
        look: Callable[[DeviceRef], None],
        choose: Callable[[DeviceRef, VmRow], None],
        why: Callable[[DeviceRef], None],
    ) -> None:
        super().__init__(parent, on_input, on_pointer)
        self.row = row
        self.is_gone = False
        self._results = results
        self._look, self._choose, self._why = look, choose, why
        self._of: dict[Entry, VmRow] = {}
        self._asking: Entry | None = None
        self._note: Entry | None = None
        self._reasons: Entry | None = None
        self._has_note = self._has_greyed = False
        self._meant: dict[Entry, Action] = {}
        self._changed: set[Entry] = set()  # that do another thing since a moment
        self._hold = QtCore.QTimer(self)
        self._hold.setSingleShot(True)
        self._hold.setInterval(HOLD_MS)
        self._hold.timeout.connect(self._held_long_enough)
        self.aboutToShow.connect(self._fill)
        self.triggered.connect(self._chosen)

    def heading_text(self) -> str:
        """The device, so that a wrong one is seen before the click, and what is done with it."""
        if self.query.text:
            return _("{device} - search: {query}").format(
                device=self.row.text, query=self.query.text
            )
        if self.is_gone:
            return gone_text(self.row)
        return with_result(self.row.text, self._results.words(self.row.ref))

    def show_found(self) -> None:
        """As the menu's, with the last entries."""
        super().show_found()
        self._show_last(is_filling=False)

    def show_row(self, row: DeviceRow | None) -> None:
        """What the device is now; None if it has gone."""
        self.is_gone = row is None
        if row is not None:
            self.row = row
            self.setAccessibleName(row.spoken or row.text)
        if self.isVisible():
            with self.held():
                self._update()

    def _fill(self) -> None:
        self._look(self.row.ref)
        self.begin()
        self._of.clear()
        self._meant.clear()
        self._changed.clear()
        self._asking = self._note = self._reasons = None
        if self.row.vms is None:
            self._asking = self.add(
                Entry(self, _("Asking which VMs may have it..."), enabled=False)
            )
        else:
            self._fill_vms(self.row.vms)
        self.settle_width()

    def _fill_vms(self, vms: tuple[VmRow, ...]) -> None:
        for vm in vms:
            self._of[self.add(self._entry(vm))] = vm
        self._note = self.add(Entry(self, self.row.note, enabled=False))
        self._reasons = self.add(Entry(self))
        self._show_last(is_filling=True)

    def _entry(self, vm: VmRow) -> Entry:
        entry = Entry(self)
        entry.searched = vm.text.casefold()
        self._say_vm(entry, vm, enabled=vm.enabled)
        return entry

    def _say_vm(self, entry: Entry, vm: VmRow, *, enabled: bool) -> None:
        if vm.action is not Action.NONE:
            if self._meant.get(entry, vm.action) is not vm.action:
                self._changed.add(entry)
                self._hold.start()
            self._meant[entry] = vm.action
        entry.say(vm.text, detail=vm.detail, bold=vm.bold)
        mark = "eject" if vm.action is Action.EJECT else "ask" if vm.is_ask else ""
        entry.setIcon(icon(mark) if mark else QtGui.QIcon())
        # One thing is done with a device at a time.
        can = enabled and vm.action is not Action.NONE and entry not in self._changed
        entry.setEnabled(can and not self._results.is_working(self.row.ref))

    def _held_long_enough(self) -> None:
        self._changed.clear()
        if self.isVisible():
            with self.held():
                self._update()

    def _update(self) -> None:
        """The submenu is open: entries keep their places, whatever becomes of their VMs."""
        self.say_heading()
        vms = self.row.vms
        if vms is not None and self._asking is not None and not self.is_gone:
            # Nothing to click was there, so all of it may change its place.
            self.removeAction(self._asking)
            self._asking.deleteLater()
            self._asking = None
            self._fill_vms(vms)
            self.settle_width()
            self.search()
            self.back_onto_screen()
            return
        if vms is None or self.is_gone:  # the device has gone, or come back and is asked about
            if self._asking is not None:
                self._asking.setVisible(not self.is_gone)
            for entry, vm in self._of.items():
                self._say_vm(entry, vm, enabled=False)
            if self._reasons is not None:
                self._reasons.setEnabled(False)  # the window has nothing on it, either
            return
        now = {(vm.vm, vm.is_again): vm for vm in vms}
        for entry, before in list(self._of.items()):
            current = now.pop((before.vm, before.is_again), None)
            if current is None:
                entry.say(_lapsed(before))
                entry.setEnabled(False)
            else:
                self._of[entry] = current
                self._say_vm(entry, current, enabled=current.enabled)
        for vm in now.values():
            entry = self._entry(vm)
            if not self.add_if_it_fits([entry]):
                break  # there the next time that this opens
            self._of[entry] = vm
        self._show_last(is_filling=False)

    def _show_last(self, *, is_filling: bool) -> None:
        """The note and the question why; later on they neither come nor go, because that would move
        what has been added after them."""
        if self._note is None or self._reasons is None:
            return
        greyed = sum(not vm.enabled for vm in self._of.values())
        if is_filling:
            self._has_note, self._has_greyed = bool(self.row.note), greyed > 0
        if self.row.note:
            self._note.say(self.row.note)
        if greyed:
            self._reasons.say(
                ngettext("Why is {n} greyed?", "Why are {n} greyed?", greyed).format(n=greyed)
            )
        self._reasons.setEnabled(greyed > 0)
        self._note.setVisible(self._has_note and not self.query.text)
        self._reasons.setVisible(self._has_greyed and not self.query.text)

    def _chosen(self, action: QtGui.QAction) -> None:
        if action is self._reasons:
            self._why(self.row.ref)
        elif isinstance(action, Entry) and (vm := self._of.get(action)) is not None:
            self._choose(self.row.ref, vm)


def _lapsed(vm: VmRow) -> str:
    """A row that is no choice any more. To attach it again cannot be chosen while something has it,
    while its VM may well run."""
    if vm.is_again:
        return _("{choice} (not possible now)").format(choice=vm.text)
    return _("{vm} (not running any more)").format(vm=vm.vm)
