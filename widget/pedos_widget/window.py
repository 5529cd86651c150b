"""The same rows as a window: where there is no tray, on Wayland, and for reading at leisure why
something cannot be attached."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pedos_widget.i18n import _
from pedos_widget.icons import application_icon, icon
from pedos_widget.menu import texts
from pedos_widget.menu.query import Query
from pedos_widget.menu.results import Results, row_with_result, with_result
from pedos_widget.menu.vm_menu import HOLD_MS
from pedos_widget.model.view import Action
from pedos_widget.pane import Pane, PaneRow
from pedos_widget.qt import QtCore, QtGui, QtWidgets

if TYPE_CHECKING:
    from pedos_widget.menu.devices_menu import Devices
    from pedos_widget.model.view import DeviceRef, DeviceRow, Result, VmRow

SIZE = (760, 480)  # pixels: two lists of about 20 rows
SEARCH_MAX = 64  # characters, as of the menu's query


class DeviceWindow(QtWidgets.QWidget):
    """Devices on the left, the VMs for the chosen one on the right.

    Nothing is attached by a single click: a VM is chosen, and the button or Return acts on what is
    chosen then.
    """

    def __init__(self, controller: Devices) -> None:
        super().__init__()
        self._controller = controller
        self._results = Results()
        self._looked: DeviceRef | None = None
        self._was_connected = False
        self.setWindowTitle(_("Devices"))
        self.setWindowIcon(application_icon())

        self.search = QtWidgets.QLineEdit()
        self.search.setPlaceholderText(_("Type to search"))
        self.search.setAccessibleName(_("Search devices"))
        self.search.setClearButtonEnabled(True)
        self.search.setMaxLength(SEARCH_MAX)
        self.status = _label()
        self.devices = Pane(_("Devices"))
        self.subject = _label()
        self.vms = Pane(_("VMs"))
        self.detail = _label()
        self.act = QtWidgets.QPushButton(_("Attach"))
        self.buttons = QtWidgets.QHBoxLayout()
        self._lay_out()

        self.search.textChanged.connect(self._show_all)
        self.search.returnPressed.connect(self.devices.setFocus)
        self.devices.currentItemChanged.connect(self._device_chosen)
        self.devices.itemActivated.connect(lambda _item: self.vms.setFocus())
        self.vms.currentItemChanged.connect(self._vm_chosen)
        self.vms.itemActivated.connect(lambda _item: self._act())
        self.act.clicked.connect(self._act)
        self._redraw = QtCore.QTimer(self)
        self._redraw.setSingleShot(True)
        self._redraw.setInterval(0)
        self._redraw.timeout.connect(self._show_all)
        self._meant: tuple[DeviceRef, str, Action] | None = None
        self._settling = QtCore.QTimer(self)
        self._settling.setSingleShot(True)
        self._settling.setInterval(HOLD_MS)
        self._settling.timeout.connect(self._show_act)
        controller.on_change(self._changed)
        controller.on_result(self._take_result)

    def add_button(self, button: QtWidgets.QPushButton) -> None:
        """Put a button at the bottom left."""
        self.buttons.insertWidget(self.buttons.count() - 2, button)

    def show_device(self, ref: DeviceRef | None = None) -> None:
        """Show the window, in front, with this device chosen."""
        if ref is not None:
            self.search.clear()
        self._show_all()
        if ref is not None:
            self.devices.choose(ref)
        self.show()
        self.raise_()
        self.activateWindow()

    def _lay_out(self) -> None:
        right = QtWidgets.QWidget()
        column = QtWidgets.QVBoxLayout(right)
        column.setContentsMargins(0, 0, 0, 0)
        column.addWidget(self.subject)
        column.addWidget(self.vms, 1)
        column.addWidget(self.detail)
        panes = QtWidgets.QSplitter(QtCore.Qt.Orientation.Horizontal)
        panes.setChildrenCollapsible(False)
        panes.addWidget(self.devices)
        panes.addWidget(right)
        panes.setStretchFactor(0, 3)
        panes.setStretchFactor(1, 2)
        self.buttons.addStretch(1)
        self.buttons.addWidget(self.act)
        whole = QtWidgets.QVBoxLayout(self)
        whole.addWidget(self.search)
        whole.addWidget(self.status)
        whole.addWidget(panes, 1)
        whole.addLayout(self.buttons)
        self.resize(*SIZE)

    # What is shown.

    def _changed(self) -> None:
        if self.isVisible():
            self._redraw.start()

    def _take_result(self, result: Result) -> None:
        self._results.take(result)
        self._changed()

    def _show_all(self) -> None:
        view = self._controller.view
        self.status.setText(texts.plain(view.status))
        self.status.setVisible(bool(view.status))
        query = Query()
        query.text = self.search.text()
        rows: list[PaneRow] = []
        for section in view.sections:
            found = [self._device(row) for row in section.rows if query.fits(row.search)]
            if not found and query.text:
                continue
            rows.append(PaneRow(("section", section.device_class), section.title, heading=True))
            rows += found
            if not found:
                key = ("empty", section.device_class)
                rows.append(PaneRow(key, section.empty, enabled=False, indent=1))
        self.devices.show_rows(rows)
        if view.connected and not self._was_connected:
            self._looked = None
        self._was_connected = view.connected
        self._show_vms()

    def _device(self, row: DeviceRow) -> PaneRow:
        words = self._results.words(row.ref, short=True)
        return PaneRow(
            row.ref, row_with_result(row.text, words),
            spoken=with_result(row.spoken or row.text, words), detail=row.detail,
            icon=icon(row.icon), bold=row.bold, enabled=row.enabled, indent=row.indent,
        )  # fmt: skip

    def _chosen_device(self) -> DeviceRow | None:
        ref = self.devices.current_key()
        for section in self._controller.view.sections:
            for row in section.rows:
                if row.ref == ref:
                    return row
        return None

    def _chosen_vm(self) -> VmRow | None:
        row = self._chosen_device()
        key = self.vms.current_key()
        if row is None or row.vms is None:
            return None
        return next((vm for vm in row.vms if (vm.vm, vm.is_again) == key), None)

    def _show_vms(self) -> None:
        row = self._chosen_device()
        rows: list[PaneRow] = []
        if row is None:
            self.subject.setText(_("Choose a device."))
        else:
            words = self._results.words(row.ref)
            self.subject.setText(texts.plain(with_result(row.text, words)))
            if self._looked != row.ref:
                self._looked = row.ref
                self._controller.look(row.ref)
                row = self._chosen_device() or row
            if row.vms is None:
                rows.append(PaneRow("asking", _("Asking which VMs may have it..."), enabled=False))
            else:
                rows += map(_vm, row.vms)
            if row.note:
                rows.append(PaneRow("note", row.note, enabled=False))
        self.vms.show_rows(rows)
        self._show_act()

    def _show_act(self) -> None:
        row, vm = self._chosen_device(), self._chosen_vm()
        self._note_meaning(row, vm)
        is_eject = vm is not None and vm.action is Action.EJECT
        self.act.setText(_("Eject") if is_eject else _("Attach"))
        self.act.setIcon(icon("eject") if is_eject else QtGui.QIcon())
        self.act.setEnabled(row is not None and vm is not None and self._can(row, vm))
        chosen = vm.detail or vm.text if vm is not None else row.detail if row is not None else ""
        self.detail.setText("\n".join(map(texts.plain, chosen.split("\n")[: texts.LINES_MAX])))

    def _note_meaning(self, row: DeviceRow | None, vm: VmRow | None) -> None:
        """Hold the button for a moment if it is about the same as before and does another thing."""
        if row is None or vm is None:
            self._meant = None
        elif vm.action is not Action.NONE:  # that is while it works
            before, self._meant = self._meant, (row.ref, vm.vm, vm.action)
            if before is not None and before[:2] == self._meant[:2] and before != self._meant:
                self._settling.start()

    def _can(self, row: DeviceRow, vm: VmRow) -> bool:
        return (
            not self._settling.isActive()
            and row.enabled
            and vm.enabled
            and vm.action is not Action.NONE
            and not self._results.is_working(row.ref)
        )

    # What is done.

    def _device_chosen(self, *_items: Any) -> None:
        self._show_vms()

    def _vm_chosen(self, *_items: Any) -> None:
        self._show_act()

    def _act(self) -> None:
        self._show_all()  # a change may have come that is not shown yet
        row, vm = self._chosen_device(), self._chosen_vm()
        if row is None or vm is None or not self._can(row, vm):
            return
        if vm.action is Action.EJECT:
            self._controller.detach(row.ref, vm.vm)
        else:
            self._controller.attach(row.ref, vm.vm)
        self._show_all()

    # Qt's events.

    def showEvent(self, event: Any) -> None:  # noqa: N802
        super().showEvent(event)
        self._looked = None
        self._show_all()

    def hideEvent(self, event: Any) -> None:  # noqa: N802
        super().hideEvent(event)
        self._results.seen()

    def changeEvent(self, event: Any) -> None:  # noqa: N802
        super().changeEvent(event)
        if event.type() == QtCore.QEvent.Type.ActivationChange and self.isActiveWindow():
            self._controller.opened()
            self._looked = None  # who comes back to it wants to see how things are now
            self._redraw.start()

    def keyPressEvent(self, event: Any) -> None:  # noqa: N802
        if event.key() == QtCore.Qt.Key.Key_Escape:
            if self.search.text():
                self.search.clear()
            else:
                self.close()
            return
        super().keyPressEvent(event)


def _vm(vm: VmRow) -> PaneRow:
    mark = "eject" if vm.action is Action.EJECT else "ask" if vm.is_ask else ""
    return PaneRow(
        (vm.vm, vm.is_again), vm.text, detail=vm.detail, icon=icon(mark) if mark else None,
        bold=vm.bold, enabled=vm.enabled and vm.action is not Action.NONE,
    )  # fmt: skip


def _label() -> QtWidgets.QLabel:
    label = QtWidgets.QLabel()
    label.setTextFormat(QtCore.Qt.TextFormat.PlainText)
    label.setWordWrap(True)
    # A long text may be as narrow as the window.
    label.setSizePolicy(
        QtWidgets.QSizePolicy.Policy.Ignored, QtWidgets.QSizePolicy.Policy.Preferred
    )
    return label
