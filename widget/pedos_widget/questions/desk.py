"""The questions of dom0 to the person at this desktop: which waits, which is shown, how each ends.
`prompt_waiting` has the rules, `dialog` the window."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import trio
from pedos_cli.prompt_question import METHODS, Question, parse
from pedos_cli.prompt_waiting import Full, Waiting
from pedos_protocol.errors import CallError

from pedos_widget.qt import QtCore, QtWidgets
from pedos_widget.questions.dialog import QuestionDialog

# Seconds in which the window must have had the keyboard, without a key, until an answer counts: it
# appears unasked among other windows, so longer than on a terminal that only asks questions.
ARMING_S: Final = 1.0

# Seconds for which the window says why the question on the screen has gone: for a person who was
# reading it, and short, because nothing is to be done.
FAREWELL_S: Final = 5.0

# Seconds in which a no does not count either once a question has taken the place of another: a
# double click on Deny, or a click that was on its way, is no answer to one that nobody has read.
NO_AFTER_S: Final = 0.5

# Milliseconds until a question is shown again that went away when the program was to quit: longer
# than it takes to end. Another window may have refused to close, for what is not saved in it.
BACK_MS: Final = 500

GONE: Final = "the caller has gone"
LATE: Final = "no answer came in time"
ENDED: Final = "the connection has ended"


class _Asked:
    """A question that waits for its end: a VM, a no, or an error."""

    def __init__(self) -> None:
        self.ended = trio.Event()
        self.target: str | None = None
        self.error: CallError | None = None


class QuestionDesk:
    """A prompter, with a window. Everything runs in the one thread of trio and Qt."""

    def __init__(
        self,
        parent: QtWidgets.QWidget | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._waiting = Waiting(ARMING_S)
        self._asked: dict[int, _Asked] = {}
        self._numbers = itertools.count(1)
        self._no_from = 0.0  # when a no counts
        #: Why the last one has gone, and until when that is said.
        self._farewell: tuple[str, float] | None = None
        self.dialog = QuestionDialog(parent)
        self.dialog.answered.connect(self._answered)
        self.dialog.disturbed.connect(self._disturbed)
        self.dialog.activated.connect(self._activated)
        self.dialog.put_away.connect(self._put_away)
        self._timer = QtCore.QTimer(self.dialog)
        self._timer.setSingleShot(True)
        self._timer.setTimerType(QtCore.Qt.TimerType.PreciseTimer)
        self._timer.timeout.connect(self.tick)
        self._back = QtCore.QTimer(self.dialog)
        self._back.setSingleShot(True)
        self._back.setInterval(BACK_MS)
        self._back.timeout.connect(self._come_back)

    # What comes from the service

    async def ask(self, method: str, untrusted_params: Mapping[str, object]) -> dict[str, Any]:
        """Puts a question of dom0 to the person; returns a PromptAnswer's map.

        CallError: `usage` for a question that is malformed, `unavailable` if too many wait or the
        service has gone, `timeout` if it ended without an answer, which is no no.
        """
        question = self._parsed(method, untrusted_params)
        try:
            self._waiting.add(question)
        except Full:
            raise CallError("unavailable", "too many questions wait here") from None
        asked = self._asked[question.call_id] = _Asked()
        self.tick()
        try:
            await asked.ended.wait()
        finally:
            if question.call_id in self._asked:  # the caller does not wait any more
                self._withdraw([question], CallError("timeout", GONE), GONE)
        if asked.error is not None:
            raise asked.error
        verdict = "deny" if asked.target is None else "allow"
        return {"verdict": verdict, "target": asked.target}

    def _parsed(self, method: str, untrusted_params: Mapping[str, object]) -> Question:
        if method not in METHODS:
            raise CallError("unknown_method", f"a prompter knows {' and '.join(METHODS)}")
        now = self._clock()
        try:
            question = parse(next(self._numbers), untrusted_params, now, method)
        except ValueError as error:
            raise CallError("usage", f"the question is malformed: {error}") from None
        callers = trio.current_effective_deadline() - trio.current_time()
        question.deadline = min(question.deadline, now + max(0.0, callers))
        return question

    def cancel(self, request: str, reason: str) -> None:
        """Withdraws the questions of a request; fine if there are none."""
        error = CallError("timeout", f"the question was withdrawn: {reason}")
        self._withdraw(self._waiting.of(request), error, reason)

    def gone(self) -> None:
        """Withdraws all questions: the connection to those who asked them has ended."""
        self._withdraw(list(self._waiting), CallError("unavailable", ENDED), ENDED)

    def hide(self) -> None:
        """Withdraws all questions, and says nothing of it: nobody looks here any more."""
        self.gone()
        self._farewell = None
        self._go_on(self._clock())

    # What comes from the person and the clock

    def tick(self) -> None:
        """Lets time pass: deadlines, arming, the seconds that are shown."""
        now = self._clock()
        for question in self._waiting.overdue(now):
            self._end(question, error=CallError("timeout", LATE), withdrawn=LATE)
        self._go_on(now)

    def _answered(self, target: str | None) -> None:
        if not self._waiting.is_shown:
            return
        question, now = self._waiting.first, self._clock()
        if target is None and now < self._no_from:
            self._disturbed()
        elif target is None or (self._waiting.is_armed and target in question.candidates):
            self._end(question, target=target)
            self._go_on(now)

    def _disturbed(self) -> None:
        now = self._clock()
        self._waiting.disturb(now)
        self._go_on(now)

    def _activated(self, is_active: bool) -> None:
        now = self._clock()
        if self._waiting.is_shown:
            if is_active:
                self._waiting.disarm(now)
            else:
                self._waiting.pause()
        self._go_on(now)

    def _put_away(self) -> None:
        self._back.start()

    def _come_back(self) -> None:
        if self._waiting.is_shown and not self.dialog.isVisible():
            self._waiting.hide()
            self._go_on(self._clock())

    # Internals

    def _withdraw(self, questions: list[Question], error: CallError, why: str) -> None:
        for question in questions:
            self._end(question, error=error, withdrawn=why)
        self._go_on(self._clock())

    def _end(
        self,
        question: Question,
        *,
        target: str | None = None,
        error: CallError | None = None,
        withdrawn: str | None = None,
    ) -> None:
        """`withdrawn` is why it is; None if it was answered."""
        if question is self._waiting.first and self._waiting.is_shown:
            until = self._clock() + FAREWELL_S
            self._farewell = None if withdrawn is None else (withdrawn, until)
        self._waiting.remove(question, withdrawn=withdrawn is not None)
        asked = self._asked.pop(question.call_id)
        asked.target, asked.error = target, error
        asked.ended.set()

    def _go_on(self, now: float) -> None:
        """Shows the first question and what there is to say of it, and wakes when that changes."""
        why, until = self._farewell or ("", now)
        if not self._waiting:
            if now < until:
                self.dialog.show_withdrawn(why)
                self._wake_at(until, now)
            else:
                self._timer.stop()
                self.dialog.take_away()
            return
        if not self._waiting.is_shown:
            self._waiting.show(now)
            self._no_from = now + NO_AFTER_S if self.dialog.isVisible() else now
            self.dialog.show_question(self._waiting.first, before=why if now < until else "")
            if not self.dialog.isActiveWindow():
                self._waiting.pause()
        self._waiting.arm(now)
        self.dialog.show_state(
            self._waiting.seconds_left(now),
            len(self._waiting) - 1,
            is_armed=self._waiting.is_armed,
        )
        wake_at = self._waiting.wake_at(now)
        if wake_at is not None:
            self._wake_at(wake_at, now)

    def _wake_at(self, at: float, now: float) -> None:
        self._timer.start(max(0, math.ceil((at - now) * 1000)))
