"""The questions that wait for a person at a terminal, and what typing does to them. No I/O.

`prompt_waiting` has the rules that do not depend on a terminal.
"""

from __future__ import annotations

from pedos_cli.prompt_question import lines
from pedos_cli.prompt_waiting import Waiting

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from pedos_cli.prompt_question import Question

    class Screen(Protocol):
        """The screen that shows questions; it makes what is written harmless."""

        @property
        def width(self) -> int: ...
        @property
        def encoding(self) -> str: ...
        def line(self, text: str) -> None: ...
        def prompt(self, text: str) -> None: ...
        def bell(self) -> None: ...
        def flush_input(self) -> None: ...


ARMING_S = 0.5
"""Seconds: longer than the gap between two keys of a user who types without looking, or between two
pieces of a paste, and shorter than it takes to read a question."""

LINE_MAX = 16
"""Characters of an answer that are kept: every valid answer is shorter."""

INTERRUPT, END_OF_FILE, KILL_LINE = 0x03, 0x04, 0x15  # Ctrl-C, Ctrl-D, Ctrl-U
BACKSPACES = (0x08, 0x7F)
ENTERS = (0x0D, 0x0A)
NO = ("n", "no", "d", "deny")

ENDED = 0
ENDED_BY_INTERRUPT = 130  # 128 + SIGINT, as shells say it


class QuestionQueue:
    """Holds the questions. `leaving` is the exit status once the person wants to end."""

    def __init__(
        self,
        screen: Screen,
        answer: Callable[[Question, str | None], None],
        lapse: Callable[[Question], None],
        *,
        once: bool = False,
    ) -> None:
        """For each question that ends, one of the two is called, once: `answer` with the VM, or
        None for no, or `lapse` if it ended without an answer.

        `once`: leave after one question, however it ended.
        """
        self._screen = screen
        self._answer = answer
        self._lapse = lapse
        self._once = once
        self._questions = Waiting(ARMING_S)
        self._line = ""
        self._prompt = ""
        self.leaving: int | None = None

    @property
    def waiting(self) -> int:
        """The number of questions, the one on the screen included."""
        return len(self._questions)

    # What comes from dom0

    def ask(self, question: Question, now: float) -> None:
        """Put a question behind those that wait. Raises Full."""
        self._questions.add(question)
        self._go_on(now)

    def withdraw(self, request: str, reason: str, now: float) -> None:
        """Withdraw the questions of a request; fine if there are none."""
        for question in self._questions.of(request):
            self._take_away(question, reason)
        self._go_on(now)

    def withdraw_all(self, reason: str) -> None:
        """Withdraw every question: the service that asked them has gone."""
        for question in list(self._questions):
            self._take_away(question, reason)

    # What comes from the person and the clock

    def typed(self, data: bytes, now: float) -> None:
        """Take the keys that were typed, in the order in which they were read."""
        if not self._questions:
            for byte in data:
                if byte in (INTERRUPT, END_OF_FILE):
                    self.leaving = ENDED_BY_INTERRUPT if byte == INTERRUPT else ENDED
                    return
        elif not self._questions.is_armed:
            self._questions.disturb(now)
        else:
            self._type(data, now)

    def interrupt(self, now: float) -> None:
        """Deny the question on the screen, or leave if there is none: a signal cannot be typed
        ahead, so this needs no arming."""
        if self._questions:
            self._decide(None, now)
        else:
            self.leaving = ENDED_BY_INTERRUPT

    def resume(self, now: float) -> None:
        """Show the question again: another program had the screen meanwhile."""
        self._questions.hide()
        self._go_on(now)

    def tick(self, now: float) -> None:
        """Let time pass: deadlines, arming, the displayed seconds."""
        for question in self._questions.overdue(now):
            self._take_away(question, "no answer came in time, so it is denied")
        self._go_on(now)
        if self._questions.arm(now):
            self._screen.flush_input()
        self._show_prompt(now)

    def wake_at(self, now: float) -> float | None:
        """When `tick` has something to do next; None if time alone changes nothing."""
        return self._questions.wake_at(now)

    # Internals

    def _go_on(self, now: float) -> None:
        """Show the first question if it is not on the screen."""
        if self._questions.is_shown or not self._questions or self.leaving is not None:
            return
        question = self._questions.first
        for line in lines(question, self._screen.width, self._screen.encoding):
            self._screen.line(line)
        self._screen.bell()
        self._questions.show(now)
        self._disarm(now)
        self._show_prompt(now)

    def _disarm(self, now: float) -> None:
        """Input up to now, and input that is still arriving, answers nothing."""
        self._questions.disarm(now)
        self._line = ""
        self._screen.flush_input()

    def _show_prompt(self, now: float) -> None:
        if not self._questions.is_shown:
            return
        question = self._questions.first
        left = f"{self._questions.seconds_left(now)} s"
        if len(self._questions) > 1:
            left += f", {len(self._questions) - 1} more"
        if self._questions.is_armed:
            prompt = f"[{left}] {_choices(question)}: {self._line}"
        else:
            prompt = f"[{left}] ..."
        if prompt != self._prompt:
            self._screen.prompt(prompt)
            self._prompt = prompt

    def _type(self, data: bytes, now: float) -> None:
        for at, byte in enumerate(data):
            if byte == INTERRUPT:
                self._decide(None, now)
                return
            if byte == END_OF_FILE:
                self.leaving = ENDED
                return
            if byte in ENTERS:
                if data[at + 1 :]:
                    # No person types that fast. The first line of a paste is chance.
                    self._ask_again("several lines came at once, and none of them counts", now)
                else:
                    self._enter(now)
                return
            if byte in BACKSPACES:
                self._line = self._line[:-1]
            elif byte == KILL_LINE:
                self._line = ""
            else:
                # A character that is no letter still changes the line: an arrow key and Enter are
                # not Enter alone.
                char = chr(byte) if 0x20 <= byte < 0x7F else "?"
                self._line = (self._line + char)[:LINE_MAX]
        self._show_prompt(now)

    def _enter(self, now: float) -> None:
        question = self._questions.first
        text = self._line.strip().lower()
        numbers = {str(number): vm for number, vm in enumerate(question.candidates, 1)}
        if self._line == "" and question.default is not None:
            self._decide(question.default, now)
        elif self._line == "":
            self._ask_again(f"nothing is preselected: {_choices(question)}", now)
        elif text in NO:
            self._decide(None, now)
        elif text in numbers:
            self._decide(numbers[text], now)
        else:
            self._ask_again(f"'{self._line}' is not a choice: {_choices(question)}", now)

    def _ask_again(self, why: str, now: float) -> None:
        self._say(why)
        self._disarm(now)
        self._show_prompt(now)

    def _decide(self, target: str | None, now: float) -> None:
        question = self._questions.first
        self._say(f"{question.request}: " + ("denied" if target is None else f"yes, {target}"))
        self._end(question, withdrawn=False)
        self._answer(question, target)
        self._go_on(now)

    def _take_away(self, question: Question, reason: str) -> None:
        if self._questions.is_shown and question is self._questions.first:
            self._say(f"{question.request}: withdrawn: {reason}")
        else:
            self._say(
                f"{question.request}: {question.source} asked to {question.doing}, and that was "
                f"withdrawn before it was shown: {reason}"
            )
        self._end(question, withdrawn=True)
        self._lapse(question)

    def _end(self, question: Question, *, withdrawn: bool) -> None:
        self._questions.remove(question, withdrawn=withdrawn)
        if self._once and self.leaving is None:
            self.leaving = ENDED

    def _say(self, text: str) -> None:
        self._screen.line(text)
        self._prompt = ""  # its line is gone


def _choices(question: Question) -> str:
    count = len(question.candidates)
    numbers = "1" if count == 1 else f"1-{count}"
    if question.default is None:
        return f"{numbers} or n"
    return f"{numbers}, n, or Enter for {question.candidates.index(question.default) + 1}"
