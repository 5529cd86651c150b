"""The policy window: it asks the service and shows what it says. All that it can change is to end
a call."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio
from pedos_cli.devices import TIMEOUT_S, device_pages
from pedos_protocol.device_classes import CLASSES, VERBS
from pedos_protocol.errors import CallError

from pedos_widget.calls import everything, refusal, vm_names
from pedos_widget.i18n import _
from pedos_widget.plain import (
    after_closing,
    choice,
    fill,
    fitting,
    label,
    lines_view,
    scrolled,
    set_lines,
    table,
)
from pedos_widget.policy_window import editing, model
from pedos_widget.policy_window.calls_box import CallsBox
from pedos_widget.qt import QtCore, QtGui, QtWidgets, Signal
from pedos_widget.tasks import Tasks

if TYPE_CHECKING:
    from pedos_widget.calls import Watched
    from pedos_widget.policy_window.model import Audit, AuditLine, Choice, Question
    from pedos_widget.tasks import StartSoon

PAUSE_S = 0.25
"""Seconds between two looks at what the service has: devices change in bursts."""

CALLS_S = 2.0
"""Seconds between two looks at the calls that run, of which nothing tells; only while a person has
the window in front."""

SIZE = (820, 960)
VERB = "attach"
"""What people ask about most."""


class PolicyWindow(QtWidgets.QWidget):
    """Which rule decides, what is wrong with the policy, which calls run, and what was decided
    last. `closed` comes once nothing in it is needed any more."""

    closed = Signal()

    def __init__(self, controller: Watched, start_soon: StartSoon) -> None:
        super().__init__()
        self._controller = controller
        self._tasks = Tasks(start_soon, self._found, self._end)
        self._is_loading = self._is_stale = self._is_closed = False
        self._asking: trio.CancelScope | None = None
        self._following: trio.CancelScope | None = None
        self._audit: Audit | None = None
        self._found_last = ""
        self.setWindowTitle(_("Device policy"))
        self._make_parts()
        self.resize(fitting(self, SIZE))
        self._tell_no_more = controller.on_change(self._changed)
        self.reload()

    def _make_parts(self) -> None:
        self.status = label("")
        self.status.setAccessibleName(_("What happened last"))
        self.refresh_button = QtWidgets.QPushButton(_("Re&fresh"))
        self.close_button = QtWidgets.QPushButton(_("&Close"))
        buttons = QtWidgets.QHBoxLayout()
        buttons.addWidget(self.status, 1)
        buttons.addWidget(self.refresh_button)
        buttons.addWidget(self.close_button)
        self.calls = CallsBox(self._controller, self._tasks, self.say)
        parts = scrolled(
            (self._decision_box(), 3), (self._policy_box(), 1), (self.calls, 1),
            (self._audit_box(), 3),
        )  # fmt: skip
        layout = QtWidgets.QVBoxLayout(self)
        layout.addWidget(parts, 1)
        layout.addLayout(buttons)
        self.refresh_button.clicked.connect(lambda: self.reload())
        self.close_button.clicked.connect(lambda: self.close())
        for key, slot in (
            (QtGui.QKeySequence.StandardKey.Cancel, self.close),
            (QtGui.QKeySequence.StandardKey.Refresh, self.reload),
        ):
            QtGui.QShortcut(QtGui.QKeySequence(key), self).activated.connect(slot)

    def _decision_box(self) -> QtWidgets.QGroupBox:
        self.device = choice(_("Device"))
        self.vm = choice(_("VM that would get the device"))
        self.verb = choice(_("What is asked for"))
        self.verb.addItems(VERBS)
        self.verb.setCurrentText(VERB)
        self.source = choice(_("Who asks"))
        self.decision = lines_view(_("Decision, and why"), fixed=True)
        form = QtWidgets.QFormLayout()
        for name, combo in (
            (_("&Device:"), self.device),
            (_("&VM:"), self.vm),
            (_("&Request:"), self.verb),
            (_("&Asked by:"), self.source),
        ):
            form.addRow(label(name, combo), combo)
            combo.activated.connect(lambda _index: self._asked())
        box = QtWidgets.QGroupBox(_("Which rule decides"))
        layout = QtWidgets.QVBoxLayout(box)
        layout.addLayout(form)
        layout.addWidget(self.decision)
        return box

    def _policy_box(self) -> QtWidgets.QGroupBox:
        self.policy = lines_view(_("State of the policy"), fixed=True)
        self.edit_button = QtWidgets.QPushButton(_("&Edit in a terminal"))
        self.edit_button.clicked.connect(lambda: self.edit())
        box = QtWidgets.QGroupBox(_("Policy in force"))
        layout = QtWidgets.QVBoxLayout(box)
        layout.addWidget(self.policy)
        layout.addWidget(self.edit_button, 0, QtCore.Qt.AlignmentFlag.AlignLeft)
        return box

    def _audit_box(self) -> QtWidgets.QGroupBox:
        self.only_device = QtWidgets.QCheckBox(_("&Only what is about this device"))
        self.audit = table(_("Last lines of the audit log"), model.AUDIT_HEADER)
        self.audit.horizontalHeader().setStretchLastSection(True)
        self.sentences = lines_view(_("What the chosen line says"))
        self.audit_note = label("")
        self.only_device.clicked.connect(lambda _checked: self.reload())
        self.audit.itemSelectionChanged.connect(self._show_sentences)
        box = QtWidgets.QGroupBox(_("What was decided and done last"))
        layout = QtWidgets.QVBoxLayout(box)
        layout.addWidget(self.only_device)
        layout.addWidget(self.audit, 2)
        layout.addWidget(self.sentences, 1)
        layout.addWidget(self.audit_note)
        return box

    def say(self, text: str) -> None:
        """Show what happened last."""
        if not self._is_closed:
            self.status.setText(text)

    def _found(self, text: str) -> None:
        """Show what a look has found, in place of what the look before did; if that is nothing,
        what came of a click stays."""
        if text or self.status.text() == self._found_last:
            self.say(text)
        self._found_last = text

    # What the service says

    def _changed(self) -> None:
        if not self._is_closed:
            self.reload()

    def reload(self) -> None:
        """Ask for everything again; as soon as the answers to the last question are there."""
        self._is_stale = True
        if not self._controller.view.connected:
            self._found(self._controller.view.status or _("The service is not reached."))
        elif not self._is_loading:
            self._is_loading = True
            self._tasks.start(self._look)

    async def _look(self) -> None:
        try:
            while self._is_stale and self._controller.view.connected:
                self._is_stale = False
                self._found("")
                await self._look_once()
                await trio.sleep(PAUSE_S)
        finally:
            self._is_loading = False

    async def _look_once(self) -> None:
        call = self._controller.call
        answer = await call("service.status", {}, timeout_s=TIMEOUT_S)
        set_lines(self.policy, model.status(answer))
        names = vm_names(await call("vm.list", {}, timeout_s=TIMEOUT_S))
        devices: list[dict[str, object]] = []
        troubles = []
        for each in CLASSES:
            pages = device_pages(each.name)
            try:
                devices += (await everything(self._controller, pages, TIMEOUT_S))[0]
            except CallError as error:  # this service does not have the class
                troubles.append(f"{each.many}: {refusal(error)}")
        found = model.choices(devices)
        is_first = not self.vm.count()
        for combo, entries in (
            (self.device, [(each.text, each) for each in found[: model.CHOICES_MAX]]),
            (self.vm, [(name, name) for name in names]),
            (self.source, [(name, name) for name in ("dom0", *names)]),
        ):
            fill(combo, entries, combo.currentData())
        if is_first and (device := self.device.currentData()) is not None:
            others = [index for index, name in enumerate(names) if name != device.backend]
            self.vm.setCurrentIndex(others[0] if others else 0)
        if more := model.left_out(found):
            troubles.append(more)
        if troubles:
            self._found("\n".join(troubles))
        self._asked()
        await self.calls.look()
        await self._look_at_audit()

    async def _follow_calls(self) -> None:
        while self.isActiveWindow():
            await trio.sleep(CALLS_S)
            if self._controller.view.connected and not self._is_loading:
                await self.calls.look()

    async def _look_at_audit(self) -> None:
        device: Choice | None = self.device.currentData()
        params: dict[str, object] = {"count": model.RECENT, "device": None}
        if self.only_device.isChecked() and device is not None:
            params["device"] = device.name
        try:
            answer = await self._controller.call("audit.recent", params, timeout_s=TIMEOUT_S)
        except CallError as error:
            self.audit_note.setText(refusal(error))
            return
        self._show_audit(model.audit(answer))

    # Which rule decides

    @property
    def question(self) -> Question | None:
        """What is asked now; None as long as there is no device or no VM."""
        device, vm = self.device.currentData(), self.vm.currentData()
        source = self.source.currentData()
        if device is None or vm is None or source is None:
            return None
        return model.Question(self.verb.currentText(), device, vm, source)

    def _asked(self) -> None:
        if self._asking is not None:
            self._asking.cancel()  # that was another question
        question = self.question
        if question is None:
            set_lines(self.decision, [_("There is no device to ask about.")])
            return

        async def explain() -> None:
            try:
                answer = await self._controller.call(
                    "device.explain", question.params, timeout_s=TIMEOUT_S
                )
            except CallError as error:
                set_lines(self.decision, [refusal(error)])
            else:
                set_lines(self.decision, model.explanation(question, answer))

        self._asking = self._tasks.start(explain)

    # What was decided last

    def _show_audit(self, audit: Audit) -> None:
        self.audit_note.setText(audit.note)
        if audit == self._audit:
            return
        chosen = self._chosen_lines()
        self._audit = audit
        with QtCore.QSignalBlocker(self.audit):
            self.audit.clearSelection()
            self.audit.setRowCount(len(audit.lines))
            for number, line in enumerate(audit.lines):
                for column, text in enumerate(line.cells):
                    self.audit.setItem(number, column, QtWidgets.QTableWidgetItem(text))
                if line in chosen:
                    self.audit.selectRow(number)
        self.audit.resizeColumnsToContents()
        self._show_sentences()

    def _chosen_lines(self) -> list[AuditLine]:
        rows = {item.row() for item in self.audit.selectedItems()}
        return [] if self._audit is None else [self._audit.lines[row] for row in rows]

    def _show_sentences(self) -> None:
        set_lines(self.sentences, [line.sentences for line in self._chosen_lines()])

    # Editing

    def edit(self) -> None:
        """Open `qvm-policy edit` in a terminal, or say how else."""
        command = editing.terminal_command()
        if command is None:
            self.say(editing.no_terminal())
            return
        started = QtCore.QProcess.startDetached(command[0], command[1:])
        # One binding tells the process's id as well.
        if started[0] if isinstance(started, tuple) else started:
            self.say(_("The policy is open in a terminal."))
        else:
            self.say(_("{program} cannot be started.").format(program=command[0]))

    # Qt

    def _end(self) -> None:
        self.close()

    def changeEvent(self, event: QtCore.QEvent) -> None:  # noqa: N802 - Qt's name
        """Look again when a person comes back, perhaps from the editor."""
        super().changeEvent(event)
        if event.type() == QtCore.QEvent.Type.ActivationChange and self.isActiveWindow():
            self.reload()
            if self._following is not None:
                self._following.cancel()
            self._following = self._tasks.start(self._follow_calls)

    def closeEvent(self, event: QtGui.QCloseEvent) -> None:  # noqa: N802 - Qt's name
        """Nothing here is to be saved."""
        self._is_closed = True
        self._tell_no_more()
        self._tasks.close()
        event.accept()
        after_closing(self, self.closed.emit)
