"""Puts questions to dom0's user through the connected prompters, and waits for an answer.

A question ends in one way only: a valid answer, the deadline, no prompter (any more), or the end of
the command that asked. In each case the prompter is told when its answer does not matter any more,
and the audit log has both the question and its end. A VM's question that was not granted is not
asked again at once.
"""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Any, Protocol

import attrs
import trio
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
            logger.info("a prompter of %s has registered: questions go to it", caller.audited)
            background.start_soon(self._until_gone, prompter)

    async def _until_gone(self, prompter: Prompter) -> None:
        try:
            await trio.sleep_forever()
        finally:
            self._prompts.unregister(prompter)
            logger.info("a prompter has gone: %d are left", len(self._prompts))

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
            self._throttle.write(
                "answered",
                of=question.source,
                throttled=is_denied and kind.throttled,
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
            self._prompts.open(question.audited)
            try:
                outcome = await self._ask_while_wanted(question, asker_gone, kind)
            finally:
                self._prompts.close(question.audited)
        finally:
            if kind.cools_down:
                self._cool_downs.release(source, thing, outcome, trio.current_time())
        return outcome

    async def _ask_while_wanted(
        self, question: Question, asker_gone: trio.Event, kind: CallerKind
    ) -> Outcome:
        outcome = Outcome(None, questions.ASKER_GONE)
        async with trio.open_nursery() as nursery:

            async def until_gone() -> None:
                await asker_gone.wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(until_gone)
            outcome = await self._ask_each(question, kind)
            nursery.cancel_scope.cancel()
        return outcome

    async def _ask_each(self, question: Question, kind: CallerKind) -> Outcome:
        """Asks the last prompter; if it goes away, the one before, with the time that is left."""
        deadline = trio.current_time() + questions.ASK_TIMEOUT
        tried: list[Prompter] = []
        while (prompter := self._prompts.last(tried, question.method)) is not None:
            left = deadline - trio.current_time()
            if left <= 0:
                return Outcome(None, questions.LATE)
            tried.append(prompter)
            self._throttle.write(
                "asked",
                of=question.source,
                throttled=kind.throttled,
                request=question.request,
                caller=question.audited,
                **question.names,
                **question.shown,
                read_only=question.read_only,
                candidates=list(question.candidates),
                default=question.default,
                timeout_s=time_given(left),
            )
            outcome = await self._ask_one(prompter, question, left)
            if outcome is not None:
                return outcome
        if any(prompter not in tried for prompter in self._prompts):
            return Outcome(
                None, f"no prompter that is running takes questions about {question.subject}"
            )
        if tried:
            return Outcome(None, questions.PROMPTER_GONE)
        return Outcome(None, questions.NO_PROMPTER)

    async def _ask_one(self, prompter: Prompter, question: Question, left: float) -> Outcome | None:
        """The outcome, or None if this prompter has gone."""
        lapsed: str | None = questions.ASKER_GONE  # if this is cancelled
        who = self._prompts.who(prompter)
        try:
            params = SCHEMA.params_in(prompter.version, question.method, question.params(left))
            untrusted_answer = await prompter.call(question.method, params, timeout=left)
            lapsed = None
            return attrs.evolve(judge(question, untrusted_answer), by=who)
        except CallError as error:
            lapsed = None
            if error.code == "unavailable":
                return None
            if error.code == "timeout":
                lapsed = questions.LATE
                return Outcome(None, questions.LATE)
            said = printable_text(error.message, _SAID_MAX)
            return Outcome(None, f"the prompter could not ask: {said}")
        except LocalProtocolError as error:
            lapsed = None
            logger.error("a question could not be sent: %s", error)
            return Outcome(None, "the question could not be put to the prompter")
        finally:
            if lapsed is not None and prompter.is_open:
                with trio.CancelScope(shield=True), contextlib.suppress(LocalProtocolError):
                    # Only queued: this does not wait for the prompter.
                    notice = PromptCancel(request=question.request, reason=lapsed)
                    await prompter.notify("prompt.cancel", to_wire(notice))


def _said(question: Question, outcome: Outcome) -> str:
    """A denial of a VM's request, for the service's log."""
    return (
        f"denied: {question.source} asked for {question.subject.wish}: "
        f"{outcome.reason} ({question.request})"
    )
