"""Puts questions to dom0's user through the connected prompters, and waits for an answer.

All prompters show a question at once, also one that connects while it is open, and the first answer
counts: a prompter that is silent, or that nobody looks at, keeps it from nobody. A question ends in
one way only: an answer, the deadline, no prompter (any more) that takes it, or the end of the
command that asked. In each case the prompters are told when their answer does not matter any more,
and the audit log has both the question and its end. A VM's question that was not granted is not
asked again at once.
"""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Any, Protocol

import attrs
import trio
from pedos_host.throttle import throttle
from pedos_protocol.errors import CallError, LocalProtocolError
from pedos_protocol.messages import SCHEMA, PromptCancel, to_wire
from pedos_protocol.names import printable_text

from pedos_dom0.access import questions
from pedos_dom0.access.callers import DESKTOP
from pedos_dom0.access.questions import (
    CoolDowns,
    NotNow,
    Outcome,
    Prompts,
    Question,
    judge,
    time_given,
)
from pedos_dom0.errors import failure

if TYPE_CHECKING:
    from pedos_dom0.access.callers import Caller, CallerKind
    from pedos_dom0.audit.throttle import AuditThrottle

logger = logging.getLogger(__name__)

# Characters of a prompter's message about its failure.
_SAID_MAX = 200
# Seconds before a deadline that count as after it: two timers of one moment.
_AT_ONCE = 0.05


class Prompter(Protocol):
    """The part of a Peer that a prompter needs; compared by identity."""

    @property
    def is_open(self) -> bool: ...

    @property
    def version(self) -> int: ...

    async def call(
        self, method: str, params: dict[str, Any], *, timeout: float
    ) -> dict[str, Any]: ...

    async def notify(self, method: str, params: dict[str, Any]) -> None: ...


class Prompters:
    """Serves prompter.register, and asks. One of these serves all."""

    def __init__(self, throttle: AuditThrottle) -> None:
        self._throttle = throttle
        self._prompts: Prompts[Prompter] = Prompts()
        self._cool_downs = CoolDowns()
        self._standing: set[_Standing] = set()

    @property
    def prompts(self) -> Prompts[Prompter]:
        return self._prompts

    def register(
        self, prompter: Prompter, background: trio.Nursery, caller: Caller, *, calls: bool = False
    ) -> None:
        """`prompter`, which is the caller's, is asked from now on, with `calls` also about calls of
        services, until the end of its connection, whose nursery is `background`."""
        known, is_desktops = prompter in self._prompts, caller.kind is DESKTOP
        if not self._prompts.register(
            prompter, calls=calls, who=caller.audited, is_desktops=is_desktops
        ):
            most = questions.DESKTOP_PROMPTERS_MAX if is_desktops else questions.PROMPTERS_MAX
            raise failure("quota", f"{most} prompters are connected already")
        if not known:
            _log(caller, "has registered: it shows questions")
            background.start_soon(self._until_gone, prompter, caller)
        for standing in self._standing:
            standing.wake()

    async def _until_gone(self, prompter: Prompter, caller: Caller) -> None:
        try:
            await trio.sleep_forever()
        finally:
            self._prompts.unregister(prompter)
            _log(caller, f"has gone: {len(self._prompts)} are left")

    async def ask(self, question: Question, asker_gone: trio.Event, kind: CallerKind) -> Outcome:
        """Asks, and returns the outcome within ASK_TIMEOUT seconds; never raises.

        `asker_gone` is set when the caller, who is of that `kind`, does not wait any more.
        """
        began = trio.current_time()
        outcome = Outcome(None, "the service ended")
        try:
            outcome = await self._ask_once(question, asker_gone, kind)
        except NotNow as error:
            outcome = Outcome(None, str(error))
        finally:
            is_denied = outcome.target is None
            # A yes that comes to nothing can be had again and again by who gives it to itself.
            may_be_counted = is_denied or self._throttle.wait(question.audited) > 0
            self._throttle.write(
                "answered",
                of=question.audited,
                throttled=may_be_counted and kind.throttled,
                say=_said(question, outcome) if is_denied and not kind.sees_rules else None,
                request=question.request,
                caller=question.audited,
                **question.names,
                verdict=outcome.verdict,
                target=outcome.target,
                by=outcome.by,
                reason=outcome.reason,
                seconds=round(trio.current_time() - began, 3),
            )
        await trio.lowlevel.checkpoint()
        return outcome

    async def _ask_once(
        self, question: Question, asker_gone: trio.Event, kind: CallerKind
    ) -> Outcome:
        """Asks, unless too many questions are open already: then NotNow."""
        # Naming another VM for a device does not make it another device.
        source, thing = question.source, question.subject
        outcome: Outcome | None = None
        if kind.cools_down:
            self._cool_downs.hold(source, thing, trio.current_time())
        try:
            self._prompts.open(question.audited, kind.name)
            try:
                outcome = await self._ask_while_wanted(question, asker_gone, kind)
            finally:
                self._prompts.close(question.audited, kind.name)
        finally:
            if kind.cools_down:
                self._cool_downs.release(source, thing, outcome, trio.current_time())
        return outcome

    async def _ask_while_wanted(
        self, question: Question, asker_gone: trio.Event, kind: CallerKind
    ) -> Outcome:
        standing = _Standing(question, trio.current_time() + questions.ASK_TIMEOUT)
        self._standing.add(standing)
        try:
            async with trio.open_nursery() as nursery:

                async def until_gone() -> None:
                    await asker_gone.wait()
                    nursery.cancel_scope.cancel()

                nursery.start_soon(until_gone)
                await self._ask_all(standing, nursery, kind)
                nursery.cancel_scope.cancel()
        finally:
            self._standing.discard(standing)
        return standing.outcome or Outcome(None, questions.ASKER_GONE)

    async def _ask_all(self, standing: _Standing, nursery: trio.Nursery, kind: CallerKind) -> None:
        """Shows it to all prompters, also to those that come while it is open, until one of them
        has the outcome. Each has a task in `nursery`, which withdraws it there when that is
        cancelled."""
        question = standing.question
        while standing.outcome is None:
            for prompter in self._prompts.able(question.method):
                if prompter not in standing.shown:
                    if not standing.shown:
                        self._write_asked(standing, kind)
                    standing.shown.add(prompter)
                    nursery.start_soon(self._ask_one, standing, prompter)
            if len(standing.dropped) == len(standing.shown):
                standing.outcome = Outcome(None, self._why_nobody(standing))
                return
            await standing.wait()

    def _why_nobody(self, standing: _Standing) -> str:
        """Why no prompter has the question."""
        if why := [why for why in standing.dropped.values() if why is not None]:
            return why[-1]
        if standing.dropped:
            return questions.PROMPTER_GONE
        if len(self._prompts):
            about = standing.question.subject
            return f"no prompter that is running takes questions about {about}"
        return questions.NO_PROMPTER

    def _write_asked(self, standing: _Standing, kind: CallerKind) -> None:
        question = standing.question
        self._throttle.write(
            "asked",
            of=question.audited,
            throttled=kind.throttled,
            request=question.request,
            caller=question.audited,
            **question.names,
            **question.shown,
            read_only=question.read_only,
            candidates=list(question.candidates),
            default=question.default,
            timeout_s=time_given(standing.left()),
        )

    async def _ask_one(self, standing: _Standing, prompter: Prompter) -> None:
        """Shows it to one prompter: notes its answer, or why it gives none."""
        question, who = standing.question, self._prompts.who(prompter)
        is_shown = True
        try:
            params = question.params(standing.left())
            params = SCHEMA.params_in(prompter.version, question.method, params)
            untrusted_answer = await prompter.call(question.method, params, timeout=standing.left())
            is_shown = False
            standing.ends(attrs.evolve(judge(question, untrusted_answer), by=who))
        except CallError as error:
            # Also a program may say "timeout"; then there is time left.
            is_shown = error.code == "timeout" and standing.left() < _AT_ONCE
            if is_shown:
                standing.ends(Outcome(None, questions.LATE))
            elif error.code == "unavailable":
                standing.drops(prompter, None)
            else:
                said = printable_text(error.message, _SAID_MAX)
                standing.drops(prompter, f"the prompter could not ask: {said}")
        except LocalProtocolError as error:
            is_shown = False
            logger.error("a question could not be sent: %s", error)
            standing.drops(prompter, "the question could not be put to the prompter")
        finally:
            if is_shown and prompter.is_open:
                with trio.CancelScope(shield=True), contextlib.suppress(LocalProtocolError):
                    # Only queued: this does not wait for the prompter.
                    notice = PromptCancel(question.request, standing.why_withdrawn())
                    await prompter.notify("prompt.cancel", to_wire(notice))


class _Standing:
    """An open question: who has been shown it, and who of them gives no answer."""

    def __init__(self, question: Question, deadline: float) -> None:
        self.question = question
        self.outcome: Outcome | None = None
        self.shown: set[Prompter] = set()
        # With the reason; None if it has gone away.
        self.dropped: dict[Prompter, str | None] = {}
        self._deadline = deadline
        self._changed = trio.Event()

    def left(self) -> float:
        """Seconds until it is too late."""
        return max(0.0, self._deadline - trio.current_time())

    def ends(self, outcome: Outcome) -> None:
        """A prompter has the outcome; the first one counts."""
        if self.outcome is None:
            self.outcome = outcome
        self.wake()

    def drops(self, prompter: Prompter, why: str | None) -> None:
        """That prompter gives no answer."""
        self.dropped[prompter] = why
        self.wake()

    def wake(self) -> None:
        """Something has changed, or a prompter has come."""
        self._changed.set()

    async def wait(self) -> None:
        """Returns when something has changed since the last time."""
        await self._changed.wait()
        self._changed = trio.Event()

    def why_withdrawn(self) -> str:
        """What a prompter is told whose answer does not matter any more."""
        if self.outcome is None:
            return questions.ASKER_GONE
        return self.outcome.reason if self.outcome.by is None else questions.ANSWERED


def _log(caller: Caller, what: str) -> None:
    """A program may come and go as often as it likes."""
    if (more := throttle.more(f"a prompter of {caller.audited}")) is not None:
        logger.info("a prompter of %s %s%s", caller.audited, what, more)


def _said(question: Question, outcome: Outcome) -> str:
    """A denial of a VM's request, for the service's log."""
    return (
        f"denied: {question.source} asked for {question.subject.wish}: "
        f"{outcome.reason} ({question.request})"
    )
