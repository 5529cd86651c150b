"""Requests and notices of one peer, and the handlers that serve them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from pedos_host.throttle import throttle
from pedos_protocol.errors import CallError, LocalProtocolError
from pedos_protocol.events import (
    ERROR_MESSAGE_MAX,
    Answer,
    ErrorAnswer,
    Notice,
    Request,
    know_methods,
)
from pedos_protocol.names import shown
from pedos_protocol.words import request_to

from .first_step import Gate, rest
from .later import Later
from .session import CANCELLED

if TYPE_CHECKING:
    import trio

    from .session import Session

P = TypeVar("P")  # the peer, which a handler is given with what it asks for
Params = dict[str, Any]
Result = Params | Later | None
Work = Coroutine[Any, Any, Result]
Begun = tuple[Work, object]  # a handler after its first step

log = logging.getLogger(__name__)


class Server(Generic[P]):
    """Serves the peer at the other end of `session`; see `Peer` for the tables."""

    __slots__ = (
        "_default_handler",
        "_gate",
        "_loop",
        "_notices",
        "_result_in",
        "_serving",
        "_session",
        "handlers",
    )

    def __init__(
        self,
        session: Session,
        handlers: Mapping[str, Callable[[P, Params], Work]],
        notices: Mapping[str, Callable[[P, Params], Work]] | None,
        default_handler: Callable[[P, str, Params], Work] | None,
        result_in: Callable[[int, str, Params], Params] | None,
    ) -> None:
        self._session = session
        self._loop = session.loop
        self.handlers = handlers
        self._notices = handlers if notices is None else notices
        know_methods(handlers)
        know_methods(self._notices)
        self._default_handler = default_handler
        self._result_in = result_in
        #: Their requests whose handlers wait, or have an answer to say later.
        self._serving: dict[int, trio.CancelScope | Later] = {}
        self._gate = Gate(session.loop.flusher)
        session.at_end(self)

    def begin(self, peer: P, request: Request) -> Begun | None:
        """Runs the handler until it waits; None if it is answered already."""
        try:
            handler = self.handlers.get(request.method)
            if handler is not None:
                work = handler(peer, request.params)
            elif self._default_handler is not None:
                work = self._default_handler(peer, request.method, request.params)
            else:
                raise CallError("unknown_method", f"{shown(request.method)} is not served here")
            self._loop.step_seconds = request.deadline_ms / 1000
            return work, work.send(None)
        except StopIteration as done:
            self.answer(request, done.value)
        except Exception as error:
            self.answer_error(request, error)
        finally:
            self._loop.step_seconds = inf
        return None

    async def finish(self, request: Request, scope: trio.CancelScope, begun: Begun) -> Result:
        """The rest of a handler that has begun; until its end the caller may have `scope`
        cancelled."""
        self._serving[request.id] = scope
        self._gate.waiting += 1
        try:
            return await rest(*begun, self._gate)
        finally:
            self._gate.waiting -= 1
            del self._serving[request.id]

    def answer(self, request: Request, result: Result, deadline: float = inf) -> None:
        """Queues the answer; `failed` is the answer if `result` cannot be sent. The one of a
        `Later` follows, until `deadline` or, without one, as long as the request said."""
        try:
            if type(result) is Later:
                self._owe(request, result, deadline)
                return
            result = {} if result is None else result
            version = self._session.connection.version
            if self._result_in is not None and version is not None:
                result = self._result_in(version, request.method, result)
            self._session.post(Answer(request.id, result))
        except LocalProtocolError as error:
            self._answer_unsendable(request, error)
        except Exception as error:
            self.answer_error(request, error)

    def _owe(self, request: Request, later: Later, deadline: float) -> None:
        if deadline == inf:
            deadline = self._loop.time() + request.deadline_ms / 1000
        later.owe(partial(self._settle, request), partial(given_up, request), deadline)
        if not later.is_over:
            self._serving[request.id] = later
            self._loop.sweeper.watch(later)
            if self._session.ended:
                later.cancel()

    def _settle(
        self, request: Request, later: Later, outcome: Params | None | Exception, more: bool
    ) -> None:
        if self._serving.pop(request.id, None) is not None:
            self._loop.sweeper.forget(later)
        if isinstance(outcome, Exception):
            self.answer_error(request, outcome)
        else:
            self.answer(request, outcome)
        if not more:
            self._session.outbox.write_now()

    def free(self) -> None:
        """The connection has ended: nobody waits for an answer any more."""
        for each in list(self._serving.values()):
            if type(each) is Later:  # handlers that wait are cancelled with their tasks
                each.cancel()

    def answer_error(self, request: Request, error: Exception) -> None:
        """Queues an error answer, and logs what is no CallError."""
        if isinstance(error, CallError):
            answer = ErrorAnswer(
                request.id, error.code, error.message[:ERROR_MESSAGE_MAX], error.data
            )
        else:
            self._log_failure(request.method, error)
            message = f"{request_to(request.method)} failed unexpectedly"
            answer = ErrorAnswer(request.id, "failed", message, {})
        try:
            self._session.post(answer)
        except LocalProtocolError as wrong:  # its data cannot be sent
            self._answer_unsendable(request, wrong)

    def _answer_unsendable(self, request: Request, error: LocalProtocolError) -> None:
        log.error("%s: the answer to %s: %s", self._session.name, request.method, error)
        self._session.post(ErrorAnswer(request.id, "failed", "the answer could not be sent", {}))

    async def take_notice(self, peer: P, notice: Notice) -> None:
        """Runs its handler to the end, and does not raise what that raises."""
        if notice.method == CANCELLED:
            untrusted_id = notice.params.get("id")
            # It may have been answered meanwhile; an invalid id was never served either.
            if type(untrusted_id) is int and untrusted_id in self._serving:
                self._serving[untrusted_id].cancel()
            return
        name = self._session.name
        handler = self._notices.get(notice.method)
        if handler is None:
            log.debug("%s: notice %s has no handler", name, notice.method)
            return
        try:
            work = handler(peer, notice.params)
            trap = work.send(None)
            self._session.outbox.flush()
            await rest(work, trap)
        except StopIteration:
            pass
        except CallError as error:  # a refusal, for which a notice has no answer
            log.debug("%s: the notice %s was refused: %s", name, notice.method, error.message)
        except Exception as error:
            self._log_failure(f"handling of the notice {notice.method}", error)

    def _log_failure(self, what: str, error: Exception) -> None:
        """A bug of ours, whose traceback tells most. The peer may cause it again and again."""
        more = throttle.more(f"{self._session.name}: {what}")
        if more is not None:
            log.error("%s: %s failed%s", self._session.name, what, more, exc_info=error)


def given_up(request: Request, is_late: bool) -> CallError:
    """What a request is answered that is not done."""
    why = f"not done within {request.deadline_ms / 1000:g} s" if is_late else "cancelled"
    return CallError("timeout", f"{request.method} was {why}")
