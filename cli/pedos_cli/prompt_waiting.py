"""The rules that every prompter follows, in a terminal or a window: which questions wait, which one
is shown, and when what a person does counts as an answer. No I/O; times are of any one clock.

One question is shown at a time; the others wait in order. The danger is an answer that was meant
for something else: typed ahead, pasted, or aimed at the previous question. Therefore input counts
only once the question is *armed*: it has been shown, and the keyboard silent, for a while. Input
that comes earlier is discarded and restarts the silence.
"""

from __future__ import annotations

from math import ceil

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from pedos_cli.prompt_question import Question

ARMING_AFTER_WITHDRAWAL_S = 2.0
"""Seconds, if the question shown before was withdrawn: its answer may be half given, and the user
does not know yet that it would go to another question."""

QUESTIONS_MAX = 64
"""Questions that wait at most; dom0 has 32 open at most, so this guards against a faulty dom0."""


class Full(Exception):  # noqa: N818 - a state of affairs
    """Too many questions wait."""


class Waiting:
    """The questions that wait. `is_shown` and `is_armed` are about the first."""

    def __init__(self, arming_s: float) -> None:
        """`arming_s`: seconds without a key after which an answer counts."""
        self._questions: list[Question] = []
        self._arming_s = arming_s
        self._silence = arming_s
        self._silent_since: float | None = None
        self.is_shown = False
        self.is_armed = False

    def __len__(self) -> int:
        """Return the number of questions, the one that is shown included."""
        return len(self._questions)

    def __iter__(self) -> Iterator[Question]:
        return iter(self._questions)

    @property
    def first(self) -> Question:
        """The question to show; only while there is one."""
        return self._questions[0]

    def seconds_left(self, now: float) -> int:
        """The whole seconds in which the first can be answered."""
        return max(0, ceil(self.first.deadline - now))

    # Which questions there are

    def add(self, question: Question) -> None:
        """Put a question behind those that wait. Raises Full."""
        if len(self._questions) >= QUESTIONS_MAX:
            raise Full
        self._questions.append(question)

    def of(self, request: str) -> list[Question]:
        """Return the questions of a request."""
        return [each for each in self._questions if each.request == request]

    def overdue(self, now: float) -> list[Question]:
        """Return the questions whose time is up."""
        return [each for each in self._questions if each.deadline <= now]

    def remove(self, question: Question, *, withdrawn: bool) -> None:
        """Remove a question that was answered, or withdrawn."""
        is_first = question is self._questions[0]
        if not withdrawn:
            self._silence = self._arming_s
        elif is_first and self.is_shown:
            self._silence = ARMING_AFTER_WITHDRAWAL_S
        if is_first:
            self.hide()
        self._questions.remove(question)

    # Whether input counts

    def show(self, now: float) -> None:
        """Tell that a person sees the first question from now on."""
        self.is_shown = True
        self.disarm(now)

    def hide(self) -> None:
        """Tell that nobody sees it any more."""
        self.is_shown = False
        self.pause()

    def disarm(self, now: float) -> None:
        """Make input count only after the silence that begins now."""
        self.is_armed = False
        self._silent_since = now

    def pause(self) -> None:
        """Make input not count until `disarm` has the silence begin: it goes elsewhere."""
        self.is_armed = False
        self._silent_since = None

    def disturb(self, now: float) -> None:
        """Tell of a key that does not count, and restarts the silence."""
        if self._silent_since is not None:
            self.disarm(now)

    def arm(self, now: float) -> bool:
        """Let time pass. Return True if the question is armed from now on, and was not before."""
        arms_at = self._arms_at
        if arms_at is None or now < arms_at:
            return False
        self.is_armed = True
        return True

    def wake_at(self, now: float) -> float | None:
        """Return when time alone changes something: a deadline, the seconds that are left, the
        arming. None if there is no question."""
        if not self._questions:
            return None
        times = [each.deadline for each in self._questions]
        left = self.first.deadline - now
        times.append(now + (left - (ceil(left) - 1)))  # the next whole second of the countdown
        if (arms_at := self._arms_at) is not None:
            times.append(arms_at)
        return min(times)

    @property
    def _arms_at(self) -> float | None:
        if self.is_armed or not self._questions or self._silent_since is None:
            return None
        return self._silent_since + self._silence
