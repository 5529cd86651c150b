"""The tasks that read from one peer, and pass each event on to where it is served."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Generic, TypeVar

import trio
from pedos_protocol.errors import RemoteProtocolError
from pedos_protocol.events import Answer, Closed, ErrorAnswer, Notice, Request

from .serving import given_up
from .session import Patience

if TYPE_CHECKING:
    from .calling import Caller
    from .inbox import Inbox
    from .quota import Quota
    from .serving import Server
    from .session import Session

P = TypeVar("P")

#: Seconds within which the other side has to say hello: a VM that boots is slow, and one that never
#: speaks must not hold a place for ever.
HELLO_TIMEOUT = 5


class Reader(Generic[P]):
    """Takes events out of `inbox`: answers go to the caller, everything else costs `quota` and goes
    to the server."""

    __slots__ = (
        "_caller",
        "_inbox",
        "_quota",
        "_server",
        "_session",
    )

    def __init__(
        self, session: Session, inbox: Inbox, quota: Quota, caller: Caller, server: Server[P]
    ) -> None:
        self._session = session
        self._inbox = inbox
        self._quota = quota
        self._caller = caller
        self._server = server

    async def greet(self) -> None:
        """Reads the other side's hello. RemoteProtocolError, trio.BrokenResourceError; the
        connection fails when it does not come in time."""
        patience = Patience(self._session, HELLO_TIMEOUT, f"no hello came within {HELLO_TIMEOUT} s")
        try:
            event = await self._inbox.next_event()
        finally:
            patience.end()
        if isinstance(event, Closed):
            raise trio.BrokenResourceError("the other side ended before its hello")

    async def read(self, peer: P, nursery: trio.Nursery) -> None:
        """Reads, and serves handlers that need not wait. When a handler has to wait, it keeps this
        task, and another one, in `nursery`, reads: so everything that a handler opens stays in one
        task. Handlers get `peer`."""
        inbox, server, connection = self._inbox, self._server, self._session.connection
        request: Request | None = None  # whose handler has this task
        try:
            with trio.CancelScope() as scope:  # without a deadline as long as it reads
                reads = True
                while reads:
                    for event in inbox.events:
                        # `isinstance` takes long to say no.
                        if type(event) is Answer:
                            self._caller.take_answer(event)
                        elif type(event) is Request:
                            self._quota.spend(1)
                            begun = server.begin(peer, event)
                            if begun is not None:
                                request, reads = event, False
                                scope.deadline = trio.current_time() + event.deadline_ms / 1000
                                nursery.start_soon(self.read, peer, nursery)
                                result = await server.finish(event, scope, begun)
                                server.answer(event, result, scope.deadline)
                                break
                        elif type(event) is Notice:
                            self._quota.spend(1)
                            await server.take_notice(peer, event)
                        elif type(event) is ErrorAnswer:
                            self._caller.take_answer(event)
                        else:  # Closed
                            reads = False
                            break
                        # Not before the event is handled: once it is taken, the connection's state
                        # has it already, and others must not see one that has half ended. Nor when
                        # it was the last one: then this waits, or looks at the time again.
                        if connection.has_more and perf_counter() > inbox.turn_end:
                            await inbox.let_others_run()
                    else:
                        event = None  # what came last is not kept for as long as this waits
                        await inbox.read_more()
            if scope.cancelled_caught and request is not None:
                raise given_up(request, is_late=trio.current_time() >= scope.deadline)
        except Exception as error:
            self._fail(request, error)
        self._end(request)

    def _end(self, request: Request | None) -> None:
        if request is None:
            self._session.close()
        else:
            self._session.outbox.write_now()

    def _fail(self, request: Request | None, error: Exception) -> None:
        if request is not None:
            self._server.answer_error(request, error)
        elif isinstance(error, (RemoteProtocolError, trio.BrokenResourceError)):
            self._session.fail(error)
        elif not isinstance(error, trio.ClosedResourceError):
            raise error
        # else the stream was closed on this side: as good as close()
