"""The loop of `qvm-prompt`: one terminal, one connection, signals, and the clock."""

from __future__ import annotations

import select
import time

from pedos_protocol.errors import CallError, RemoteProtocolError
from pedos_protocol.events import REFUSED, Answer, ErrorAnswer, Notice, Request, refusal

from pedos_cli.client import Unreachable
from pedos_cli.prompt_link import REGISTER_S
from pedos_cli.prompt_question import METHODS, parse
from pedos_cli.prompt_queue import QuestionQueue
from pedos_cli.prompt_waiting import Full

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pedos_protocol.events import Event

    from pedos_cli.prompt_link import Link
    from pedos_cli.prompt_question import Question
    from pedos_cli.prompt_signals import Signals
    from pedos_cli.prompt_terminal import Terminal

RETRY_FIRST_S = 0.25
RETRY_MAX_S = 5.0
"""Seconds between attempts to reach a service that went away: a restart takes about one, and a
machine without a service is asked a dozen times a minute."""


class Loop:
    """Passes input from all sources to one `QuestionQueue`, one turn at a time."""

    def __init__(
        self,
        terminal: Terminal,
        link: Link,
        connect: Callable[[], Link],
        *,
        signals: Signals | None = None,
        clock: Callable[[], float] = time.monotonic,
        once: bool = False,
        quiet: bool = False,
    ) -> None:
        """`link` is connected and not registered yet; `connect` makes another one later."""
        self.questions = QuestionQueue(terminal, self._answer, self._lapse, once=once)
        self._terminal = terminal
        self._link: Link | None = link
        self._answers: list[Callable[[Link], None]] = []  # not sent yet
        self._connect = connect
        self._signals = signals
        self._clock = clock
        self._quiet = quiet
        self._is_registered = False
        self._was_registered = False
        self._register_by = clock() + REGISTER_S
        self._retry_at = 0.0
        self._retry_s = RETRY_FIRST_S

    def run(self) -> int:
        """Serve until the person ends it; return the exit status.

        Raises CallError if the service refuses the registration, and Unreachable or
        RemoteProtocolError if the first connection fails.
        """
        while self.questions.leaving is None:
            self.turn()
        if self.questions.waiting:
            left = (
                "1 question is" if self.questions.waiting == 1 else f"{self.questions.waiting} are"
            )
            self._say(f"{left} left to another prompter, or denied if there is none")
        return self.questions.leaving

    def close(self) -> None:
        """Hang up."""
        if self._link is not None:
            self._link.close()
            self._link = None

    def turn(self, longest: float | None = None) -> None:
        """Wait until something happens, at most `longest` seconds, and act on it."""
        poll = select.poll()
        poll.register(self._terminal.fileno(), select.POLLIN)
        if self._link is not None:
            poll.register(self._link.fileno(), select.POLLIN)
        if self._signals is not None:
            poll.register(self._signals.fileno(), select.POLLIN)
        wait = self._wait(longest)
        found = dict(poll.poll(None if wait is None else max(0, wait) * 1000))
        now = self._clock()
        self._take_all(found, now)
        if self.questions.leaving is None:
            self._mind_link(now)
            self.questions.tick(now)
        if self._answers:
            self._guarded(self._send_answers, now)

    def _take_all(self, found: dict[int, int], now: float) -> None:
        """Take the input of the descriptors that poll found."""
        if self._signals is not None and self._signals.fileno() in found:
            self._take_signals(now)
        # Keys before questions: keys from before a question are not meant for it.
        if (state := found.get(self._terminal.fileno())) is not None:
            self.questions.typed(self._terminal.read(), now)
            if state & ~select.POLLIN and self.questions.leaving is None:
                self.questions.leaving = 0  # the terminal was closed
        if self.questions.leaving is not None:
            return
        if self._link is not None and self._link.fileno() in found:
            self._guarded(self._receive, now)

    def _wait(self, longest: float | None) -> float | None:
        """Seconds until something has to be done without an event."""
        now = self._clock()
        times = [self.questions.wake_at(now)]
        if self._link is None:
            times.append(self._retry_at)
        elif not self._is_registered:
            times.append(self._register_by)
        waits = [each - now for each in times if each is not None]
        if longest is not None:
            waits.append(longest)
        return min(waits, default=None)

    def _take_signals(self, now: float) -> None:
        assert self._signals is not None
        for taken in self._signals.take():
            if taken == "interrupt":
                self.questions.interrupt(now)
            elif taken == "resume":
                self._terminal.take()
                self.questions.resume(now)
            else:
                self.questions.leaving = int(taken)

    # The connection

    def _receive(self, now: float) -> None:
        assert self._link is not None
        for event in self._link.receive():
            self._take(event, now)

    def _take(self, event: Event, now: float) -> None:
        assert self._link is not None
        if isinstance(event, Answer):
            self._registered()
        elif isinstance(event, ErrorAnswer) and event.code == "usage" and not self._link.is_older:
            self._link.register_as_before()
        elif isinstance(event, ErrorAnswer):
            if event.code == "unavailable" and self._was_registered:
                raise Unreachable(self._link.path, event.message)  # it starts or ends
            raise CallError(event.code, event.message, event.data)
        elif isinstance(event, Request) and event.method in METHODS:
            self._ask(event, now)
        elif isinstance(event, Request):
            self._link.refuse(
                event.id, "unknown_method", f"a prompter knows {' and '.join(METHODS)}"
            )
        elif isinstance(event, Notice) and event.method == REFUSED:
            error = refusal(event.params)
            if self._was_registered:
                raise Unreachable(self._link.path, error.message)  # there may be room again soon
            raise error
        elif isinstance(event, Notice) and event.method == "prompt.cancel":
            request, reason = event.params.get("request"), event.params.get("reason")
            if isinstance(request, str):
                self.questions.withdraw(request, reason if isinstance(reason, str) else "", now)

    def _registered(self) -> None:
        again = self._was_registered
        self._is_registered = self._was_registered = True
        self._retry_s = RETRY_FIRST_S
        self._say(
            "connected again: questions are shown here"
            if again
            else "questions of dom0 are shown here; Ctrl-C ends"
        )

    def _ask(self, event: Request, now: float) -> None:
        assert self._link is not None
        try:
            question = parse(event.id, event.params, now, event.method)
        except ValueError as error:
            self._link.refuse(event.id, "usage", f"the question is malformed: {error}")
            return
        question.deadline = min(question.deadline, now + event.deadline_ms / 1000)
        try:
            self.questions.ask(question, now)
        except Full:
            self._link.refuse(event.id, "unavailable", "too many questions wait here")

    def _answer(self, question: Question, target: str | None) -> None:
        self._answers.append(lambda link: link.answer(question.call_id, target))

    def _lapse(self, question: Question) -> None:
        """Only an answer makes room for another question. This one is not a person's no."""
        why = "no answer came in time"
        self._answers.append(lambda link: link.refuse(question.call_id, "timeout", why))

    def _send_answers(self, now: float) -> None:
        while self._answers:
            send = self._answers.pop(0)
            if self._link is not None:
                send(self._link)

    def _guarded(self, act: Callable[[float], None], now: float) -> None:
        """Do something with the connection, and drop the connection if that fails."""
        try:
            act(now)
        except (Unreachable, RemoteProtocolError) as error:
            self._lose(error, now)

    def _lose(self, error: Unreachable | RemoteProtocolError, now: float) -> None:
        if not self._was_registered:
            raise error  # the first connection: let the user correct the fault
        why = error.why if isinstance(error, Unreachable) else str(error)
        was_there = self._is_registered
        self.close()
        self._is_registered = False
        if was_there:
            self.questions.withdraw_all("the service has gone")
            self._answers.clear()
            self._say(f"the service has gone: {why}; it is tried again until it is back")
        self._retry_at = now + self._retry_s
        self._retry_s = min(2 * self._retry_s, RETRY_MAX_S)

    def _mind_link(self, now: float) -> None:
        if self._link is None:
            if now >= self._retry_at:
                self._guarded(self._reconnect, now)
        elif not self._is_registered and now >= self._register_by:
            late = Unreachable(self._link.path, f"no answer within {REGISTER_S:g} s")
            self._lose(late, now)

    def _reconnect(self, now: float) -> None:
        self._link = self._connect()
        self._register_by = now + REGISTER_S

    def _say(self, text: str) -> None:
        if not self._quiet:
            self._terminal.line(text)
