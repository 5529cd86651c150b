"""Our requests to one peer, and the tasks that wait for their answers."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from functools import partial
from math import ceil, inf
from typing import TYPE_CHECKING, Any

import trio
from pedos_protocol.connection import PENDING_MAX
from pedos_protocol.errors import CallError, LocalProtocolError
from pedos_protocol.events import (
    DEADLINE_MS_MAX,
    Answer,
    ErrorAnswer,
    Notice,
    Request,
)
from pedos_protocol.words import unanswered

from .first_step import effective_deadline
from .parking import Parking
from .session import CANCELLED
from .waiter import Asked, Waiter

if TYPE_CHECKING:
    from .conversation import Conversation
    from .inbox import Inbox
    from .session import Session

log = logging.getLogger(__name__)

Params = dict[str, Any]
Then = Callable[[Params | CallError], None]
GiveUp = Callable[[], None]

TIMEOUT_MAX = DEADLINE_MS_MAX / 1000  # seconds


class Caller:
    """Calls the peer at the other end of `session`; its answers arrive in `inbox`."""

    __slots__ = (
        "_connection",
        "_conversation",
        "_free_slots",
        "_inbox",
        "_last_caller",
        "_last_id",
        "_loop",
        "_outbox",
        "_session",
        "_slots",
        "_waiters",
    )

    def __init__(self, session: Session, inbox: Inbox) -> None:
        self._session = session
        self._inbox = inbox
        self._conversation = session.conversation
        self._outbox = session.outbox
        self._connection = session.connection
        self._loop = session.loop
        self._last_caller = 0  # the id() of its task; reuse of an id does no harm
        self._last_id = 0
        self._free_slots = PENDING_MAX
        self._slots = Parking()  # tasks that wait for one to become free
        self._waiters: dict[int, Waiter | Asked] = {}
        session.at_end(self)

    async def call(
        self, method: str, params: Params, *, timeout: float, until_answered: bool = False
    ) -> Params:
        """Calls `method` and returns its result.

        `timeout` is in seconds, at most a day; an earlier deadline of the caller's own counts, and
        the other side is told, also when it has passed or the caller is cancelled. CallError if it
        answers with an error, `timeout` if it does not answer in time, `unavailable` if the
        connection ends first. Waits while 128 others wait. LocalProtocolError if the request cannot
        be sent.

        An answer that has arrived is returned, also to a caller whose time is up or that is
        cancelled in the same moment: a caller that gets no answer may undo what was done for it.
        With `until_answered` a caller that is cancelled waits for the answer, which says whether
        the other side has done it or given it up; it comes soon, and `timeout` counts on.
        """
        if not 0 < timeout <= TIMEOUT_MAX:
            raise ValueError(f"a time-out of {timeout} s is not within 0 to {TIMEOUT_MAX:g} s")
        loop = self._loop
        deadline = effective_deadline(loop)
        if deadline == -inf:
            await trio.lowlevel.checkpoint()  # a cancelled caller sends no request
        now = loop.time()
        waiter = Waiter(now + timeout)
        if self._free_slots > 0 and not self._session.ended:
            self._free_slots -= 1
        else:
            await self._take_slot(method, timeout, waiter.deadline)
            deadline, now = effective_deadline(loop), loop.time()
        end = deadline if deadline < waiter.deadline else waiter.deadline
        call_id, conversation = self._start(method, params, waiter, end - now)
        try:
            if conversation is not None:
                await self._read_alone(waiter, conversation)
            await waiter.wait()
        except trio.Cancelled:
            if waiter.answer is None:
                self._say_cancelled(call_id)
                if not until_answered:
                    raise
                with trio.CancelScope(shield=True):
                    await waiter.wait()
            # else the caller notices the cancellation at its next checkpoint
        finally:
            loop.sweeper.forget(waiter)
            if waiter.answer is None:
                self._waiters.pop(call_id, None)
        answer = waiter.answer
        if type(answer) is Answer:  # `isinstance` takes long to say no to another class
            return answer.result
        raise self._error(waiter, call_id, method, timeout)

    def ask(self, method: str, params: Params, *, timeout: float, then: Then) -> GiveUp:
        """As `call`, for one who does not wait: sends the request now, and `then` is called with
        the result or the CallError, from any task, once, and not before this returns.

        It must not wait and not raise. This takes no task, and the request is on its way when it
        returns, unless 128 others wait for answers. What it returns may be called to give up: the
        other side is told, and its answer says whether it has done it by then.
        """
        if self._session.ended:
            self._loop.flusher.soon(partial(_tell, then, self._unavailable(), method))
            return _nothing
        if self._free_slots == 0:
            scope = trio.CancelScope()
            self._session.start_soon(self._ask_later, scope, method, params, timeout, then)
            return scope.cancel
        self._free_slots -= 1
        deadline = self._loop.time() + timeout
        asked = Asked(method, timeout, deadline, partial(self._answered, then))
        asked.id = self._post(method, params, asked, timeout, self._session.send)
        return partial(self._say_cancelled, asked.id)

    async def _ask_later(
        self,
        scope: trio.CancelScope,
        method: str,
        params: Params,
        timeout: float,
        then: Then,
    ) -> None:
        answer: Params | CallError = self._unavailable()
        try:
            with scope:
                answer = await self.call(method, params, timeout=timeout, until_answered=True)
        except CallError as error:
            answer = error
        finally:
            if scope.cancelled_caught:
                answer = CallError("timeout", f"{method} was cancelled")
            _tell(then, answer, method)

    def _answered(self, then: Then, asked: Asked) -> None:
        self._loop.sweeper.forget(asked)
        answer = asked.answer
        if type(answer) is Answer:
            _tell(then, answer.result, asked.method)
            return
        if answer is None:
            self._waiters.pop(asked.id, None)
        _tell(then, self._error(asked, asked.id, asked.method, asked.timeout), asked.method)

    def _error(
        self, waiter: Waiter | Asked, call_id: int, method: str, timeout: float
    ) -> CallError:
        """Why there is no result."""
        answer = waiter.answer
        if type(answer) is ErrorAnswer:
            return CallError(answer.code, answer.message, answer.data)
        if waiter.timed_out:
            self._say_cancelled(call_id)
            return CallError("timeout", unanswered(method, timeout))
        return self._unavailable()

    def take_answer(self, answer: Answer | ErrorAnswer) -> None:
        """Gives the answer to its caller."""
        self._free_slot()
        waiter = self._waiters.pop(answer.id, None)
        if waiter is not None:  # otherwise its caller has given up
            waiter.settle(answer)

    def free(self) -> None:
        """The connection has ended: no answer arrives any more."""
        waiters, self._waiters = self._waiters, {}
        for waiter in waiters.values():
            waiter.settle(None)
        self._slots.unpark_all()

    def _say_cancelled(self, call_id: int) -> None:
        """The other side knows the deadline, but not that the caller has given up before; nor that
        it has passed, if that side was paused."""
        if self._connection.is_in_flight(call_id):
            with contextlib.suppress(LocalProtocolError):
                self._session.post(Notice(CANCELLED, {"id": call_id}))
            self._outbox.flush()

    def _unavailable(self) -> CallError:
        whom = f" to {self._session.name}" if self._session.name else ""
        return CallError("unavailable", f"the connection{whom} has ended")

    async def _take_slot(self, method: str, timeout: float, deadline: float) -> None:
        """Waits for one of the places for requests in flight; CallError if none comes in time, or
        ever. The answer frees a place, even if it arrives too late for its caller: the other side
        counts the request until then."""
        with trio.CancelScope(deadline=deadline) as scope:
            if not self._session.ended:
                await self._slots.park()
        if self._session.ended:
            raise self._unavailable()
        if scope.cancelled_caught:
            raise CallError("timeout", unanswered(method, timeout))

    def _free_slot(self) -> None:
        # No task waits while a place is free, and the number is faster to look at than the tasks.
        if self._free_slots > 0 or not self._slots:
            self._free_slots += 1
        else:
            self._slots.unpark()  # handed over directly, so no later call overtakes one that waits

    def _start(
        self, method: str, params: Params, waiter: Waiter, remaining: float
    ) -> tuple[int, Conversation | None]:
        """The request's id, and the conversation in which this task sends it and reads its answer
        itself. None leaves that to the reader, and what several callers say to the flusher, which
        writes it at once."""
        call_id = self._post(method, params, waiter, remaining, self._session.post)
        task = id(trio.lowlevel.current_task())
        if task != self._last_caller:
            self._last_caller = task
        elif len(self._waiters) == 1 and self._conversation and self._inbox.may_stand_in():
            return call_id, self._conversation
        if len(self._waiters) == 1:
            self._outbox.write_now()  # others that would go with it are not to be expected
        else:
            self._outbox.flush()
        return call_id, None

    def _post(
        self,
        method: str,
        params: Params,
        waiter: Waiter | Asked,
        remaining: float,
        send: Callable[[Request], None],
    ) -> int:
        """Has the request sent, whose id this returns, in the place that the caller has taken."""
        # Not more than TIMEOUT_MAX, except for rounding.
        deadline_ms = ceil(remaining * 1000) if remaining > 0 else 1
        deadline_ms = deadline_ms if deadline_ms < DEADLINE_MS_MAX else DEADLINE_MS_MAX
        call_id = (self._last_id + 1) & 0xFFFFFFFF
        while self._connection.is_in_flight(call_id):  # only after 2^32 others
            call_id = (call_id + 1) & 0xFFFFFFFF
        try:
            send(Request(call_id, method, params, deadline_ms))
        except BaseException:
            self._free_slot()
            raise
        self._last_id = call_id
        self._waiters[call_id] = waiter
        self._loop.sweeper.watch(waiter)
        return call_id

    async def _read_alone(self, waiter: Waiter, conversation: Conversation) -> None:
        """A task that was alone the last time, too, reads its answer itself: nothing is handed from
        task to task then."""
        inbox = self._inbox
        inbox.read_answers(conversation, self.take_answer)
        while inbox.may_stand_in() and not waiter.is_settled:
            try:
                await waiter.wait_in_place(conversation)
            except trio.ClosedResourceError:
                break  # the reader finds it, too, and settles all that wait
            if inbox.may_stand_in():
                inbox.read_answers(conversation, self.take_answer)


def _nothing() -> None:
    pass


def _tell(then: Then, answer: Params | CallError, method: str) -> None:
    """A mistake in `then` ends nothing but itself: this may be the task that reads."""
    try:
        then(answer)
    except Exception:
        log.exception("what follows the answer to %s", method)
