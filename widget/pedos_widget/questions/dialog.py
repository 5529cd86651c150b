"""The window in which one question of dom0 is shown.

It is shown without taking the keyboard from whoever types, and stays on top. What was meant for
another window, or for the question before, must not answer this one: until the question is armed
(`prompt_waiting`), keys are swallowed in the whole window, except Escape, which is a no. Return
never does anything, because a window that appears under a person's fingers must not be answered by
the end of a line. All texts are plain text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pedos_widget import plain
from pedos_widget.i18n import _
from pedos_widget.qt import QtCore, QtGui, QtWidgets, Signal
from pedos_widget.questions import beside, words
from pedos_widget.questions.texts import ElidedLabel, WholeLabel
from pedos_widget.quitting import is_quitting

if TYPE_CHECKING:
    from pedos_cli.prompt_question import Question

WIDTH = 520
"""Pixels at first: an identity of usual length fits."""

LINES_MIN, LINES_MAX = 2, 8
"""VMs that the list shows without scrolling."""

_ANY_HEIGHT = (1 << 24) - 1  # QWIDGETSIZE_MAX

_Event = QtCore.QEvent.Type
_KEYS = (_Event.KeyPress, _Event.KeyRelease, _Event.InputMethod, _Event.Shortcut)
_CLICKS = (_Event.MouseButtonPress, _Event.MouseButtonDblClick)
_RETURNS = (QtCore.Qt.Key.Key_Return, QtCore.Qt.Key.Key_Enter)
_VM = QtCore.Qt.ItemDataRole.UserRole


class QuestionDialog(QtWidgets.QDialog):
    """Shows what it is told to, and tells what a person does.

    `answered` carries the chosen VM, or None for no. `disturbed`: a key or a click that does not
    count. `activated`: whether keys go to this window, from now on. `put_away`: it was closed
    because the program is to quit, which is no answer.
    """

    answered = Signal(object)
    disturbed = Signal()
    activated = Signal(bool)
    put_away = Signal()

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        self._question: Question | None = None
        self._pressed_on: Question | None = None  # what was shown when a button went down
        self._is_armed = False
        self._why_gone = ""
        self.setWindowTitle(_("Question of dom0"))
        self.setAttribute(QtCore.Qt.WidgetAttribute.WA_ShowWithoutActivating)
        self.setWindowFlag(QtCore.Qt.WindowType.WindowStaysOnTopHint)
        self.setWindowFlag(QtCore.Qt.WindowType.WindowContextHelpButtonHint, False)
        self.before = plain.label("")
        self.heading = plain.label("")
        font = self.heading.font()
        font.setBold(True)
        self.heading.setFont(font)
        self._fields = QtWidgets.QWidget(self)
        self.choosing = plain.label("")
        self.choices = QtWidgets.QListWidget(self)
        self.choices.setAccessibleName(_("VMs to choose from"))
        self.choices.setUniformItemSizes(True)
        self.choices.itemSelectionChanged.connect(self._enable)
        self.state = plain.label("")
        self.time_left = plain.label("")
        self.others = plain.label("")
        self.deny = QtWidgets.QPushButton(_("&Deny"), self)
        self.allow = QtWidgets.QPushButton(_("&Allow"), self)
        self.deny.clicked.connect(self.reject)
        self.allow.clicked.connect(self._allow)
        for button in (self.deny, self.allow):
            button.setAutoDefault(False)
            button.setDefault(False)
        self._lay_out()
        self.resize(WIDTH, self.height())
        self._watch(self)

    def _lay_out(self) -> None:
        buttons = QtWidgets.QHBoxLayout()
        buttons.addWidget(self.time_left, 1)
        buttons.addWidget(self.deny)
        buttons.addWidget(self.allow)
        self._column = QtWidgets.QVBoxLayout(self)
        for each in (self.before, self.heading, self._fields, self.choosing, self.choices):
            self._column.addWidget(each)
        self._column.setStretchFactor(self.choices, 1)
        self._column.addWidget(self.state)
        self._column.addLayout(buttons)
        self._column.addWidget(self.others)

    def _watch(self, widget: QtWidgets.QWidget) -> None:
        """Sees all keys and clicks of a widget and of what is in it before they do."""
        widget.installEventFilter(self)
        child: QtWidgets.QWidget
        for child in widget.findChildren(QtWidgets.QWidget):
            child.installEventFilter(self)

    # What is shown

    def show_question(self, question: Question, before: str = "") -> None:
        """Shows it in place of any other; it is not armed. `before` is why the one before it has
        gone, if that was withdrawn a moment ago."""
        self._question = question
        self._is_armed = False
        self._why_gone = ""
        self.before.setText(words.withdrawn_before(before) if before else "")
        self.before.setVisible(bool(before))
        self.heading.setText(words.heading(question))
        self.choosing.setText(words.choosing(question))
        self._show_fields(question)
        self._show_choices(question)
        self._enable()
        self.choices.setFocus()
        self.resize(self.width(), self.sizeHint().height())
        if not self.isVisible():
            beside.show(self)
        self.raise_()
        QtWidgets.QApplication.alert(self)  # a mark in the panel, for who does not look here

    def _show_fields(self, question: Question) -> None:
        fields = QtWidgets.QWidget(self)
        form = QtWidgets.QFormLayout(fields)
        form.setContentsMargins(0, 0, 0, 0)
        form.setFieldGrowthPolicy(QtWidgets.QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        for label, text, is_whole in words.fields(question):
            name = plain.label(label)
            name.setWordWrap(False)
            form.addRow(name, (WholeLabel if is_whole else ElidedLabel)(text, fields))
        self._column.replaceWidget(self._fields, fields)
        self._fields.hide()
        self._fields.deleteLater()
        self._fields = fields
        self._watch(fields)

    def _show_choices(self, question: Question) -> None:
        self.choices.clear()
        for vm in question.candidates:
            item = QtWidgets.QListWidgetItem(words.choice(question, vm))
            item.setData(_VM, vm)
            self.choices.addItem(item)
        if question.default is None:
            # Qt would otherwise take the first for the current one as soon as the list has keys.
            self.choices.setCurrentIndex(QtCore.QModelIndex())
        else:
            self.choices.setCurrentRow(question.candidates.index(question.default))
        lines = min(max(len(question.candidates), LINES_MIN), LINES_MAX)
        height = self.choices.sizeHintForRow(0) * lines + 2 * self.choices.frameWidth()
        self.choices.setMinimumHeight(height)
        is_all = lines >= len(question.candidates)
        self.choices.setMaximumHeight(height if is_all else _ANY_HEIGHT)

    def show_state(self, seconds_left: int, more: int, *, is_armed: bool) -> None:
        """Shows how long it can be answered, how many wait, and whether an answer counts."""
        self._is_armed = is_armed
        self.time_left.setText(words.time_left(seconds_left))
        self.others.setText(words.others(more))
        self.others.setVisible(more > 0)
        self._enable()

    def show_withdrawn(self, why: str) -> None:
        """Shows for a moment why the question has gone, in case somebody was reading it."""
        self._question = None
        self._is_armed = False
        self._why_gone = words.withdrawn(why)
        self.time_left.setText("")
        self.others.hide()
        self._enable()

    def take_away(self) -> None:
        """Shows no question any more."""
        self._question = None
        self._is_armed = False
        self._enable()
        self.hide()

    @property
    def chosen(self) -> str | None:
        """The VM that is selected."""
        selected = self.choices.selectedItems()
        return str(selected[0].data(_VM)) if selected else None

    def _enable(self) -> None:
        is_chosen = self.chosen is not None
        self.deny.setEnabled(self._question is not None)
        self.allow.setEnabled(self._is_armed and is_chosen)
        state = words.state(
            is_active=self.isActiveWindow(), is_armed=self._is_armed, is_chosen=is_chosen
        )
        self.state.setText(self._why_gone or state)

    # What a person does

    def _allow(self) -> None:
        if self._is_armed and self._question is not None and self.chosen is not None:
            self.answered.emit(self.chosen)

    def reject(self) -> None:
        """Is a no: by the button, by Escape, or by closing the window."""
        if self._question is not None:
            self.answered.emit(None)
        else:
            self.hide()

    def closeEvent(self, event: QtGui.QCloseEvent) -> None:  # noqa: N802 - Qt's name
        if is_quitting():
            event.accept()
            self.put_away.emit()
        else:
            super().closeEvent(event)

    def changeEvent(self, event: QtCore.QEvent) -> None:  # noqa: N802 - Qt's name
        super().changeEvent(event)
        if event.type() == _Event.ActivationChange:
            self.activated.emit(self.isActiveWindow())

    def eventFilter(self, watched: QtCore.QObject, event: QtCore.QEvent) -> bool:  # noqa: N802
        kind = event.type()
        if kind in _CLICKS:
            self._pressed_on = self._question
            if not self._is_armed:
                self.disturbed.emit()  # meant for what was here before, perhaps
        elif kind == _Event.MouseButtonRelease and self._is_another(watched):
            self.disturbed.emit()
            return True
        elif kind == _Event.ShortcutOverride and self._is_swallowed(event):
            event.accept()  # no shortcut: it comes again as a key
            return True
        elif kind in _KEYS and self._is_swallowed(event):
            if not self._is_armed:
                self.disturbed.emit()
            return True
        return super().eventFilter(watched, event)

    def _is_another(self, watched: QtCore.QObject) -> bool:
        """Whether a button was pressed when another question was shown, and held since."""
        if watched not in (self.allow, self.deny) or self._pressed_on is self._question:
            return False
        for button in (self.allow, self.deny):
            button.setDown(False)
        return True

    def _is_swallowed(self, event: QtCore.QEvent) -> bool:
        if not isinstance(event, QtGui.QKeyEvent):
            return not self._is_armed
        if event.key() == QtCore.Qt.Key.Key_Escape:
            return event.isAutoRepeat()  # held down it is one no, and not one to each question
        return not self._is_armed or event.key() in _RETURNS
