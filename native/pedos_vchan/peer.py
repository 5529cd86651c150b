"""A trio shell around the protocol's state machine: calls, answers, notices and quotas.

`pedos_protocol.connection` decides what is legal; `Peer` and its parts contain only the stream, the
tasks and the clock.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from typing import Any, Final, TypeVarTuple

import trio
from pedos_protocol.connection import VERSIONS
from pedos_protocol.errors import RemoteProtocolError
from pedos_protocol.events import Hello, Notice

from .calling import Caller
from .inbox import Inbox
from .later import Later
from .quota import FRAMES_PER_SECOND, Quota
from .reading import Reader
from .serving import Server
from .session import Patience, Session

Params = dict[str, Any]
Ts = TypeVarTuple("Ts")
Handler = Callable[["Peer", Params], Coroutine[Any, Any, Params | Later | None]]
DefaultHandler = Callable[["Peer", str, Params], Coroutine[Any, Any, Params | Later | None]]


class Peer:
    """The program at the other end of `stream`.

    `handlers` maps methods to their handlers. Requests run concurrently, each under the deadline
    that it carries (trio.current_effective_deadline()), and are cancelled with their caller;
    notices run in order and inline, so a handler of notices must not call this same peer. With
    `notices` these have a table of their own, so that a request sent as a notice is not carried out
    without an answer. `default_handler` gets requests that no table has; without one they are
    answered `unknown_method`. A handler answers with a map (None is an empty one), or returns a
    `Later`, or raises CallError; any other exception is logged and answered `failed`. `result_in`
    makes of a result of a method what a peer of this version knows.

    `name` is the peer's name in the log. `frames_per_second` is how much it may send: `NO_LIMIT`
    if it is trusted.
    """

    __slots__ = (
        "_caller",
        "_connection",
        "_inbox",
        "_program",
        "_reader",
        "_server",
        "_session",
        "ask",
        "call",
        "name",
    )

    def __init__(
        self,
        stream: trio.abc.Stream,
        *,
        program: str,
        handlers: Mapping[str, Handler],
        notices: Mapping[str, Handler] | None = None,
        default_handler: DefaultHandler | None = None,
        name: str = "",
        result_in: Callable[[int, str, Params], Params] | None = None,
        frames_per_second: float = FRAMES_PER_SECOND,
    ) -> None:
        self.name = name
        self._program = program
        quota = Quota(frames_per_second)
        self._session = Session(stream, name)
        self._connection = self._session.connection
        self._inbox = Inbox(self._session, quota)
        self._caller = Caller(self._session, self._inbox)
        self._server: Server[Peer] = Server(
            self._session, handlers, notices, default_handler, result_in
        )
        self._reader: Reader[Peer] = Reader(
            self._session, self._inbox, quota, self._caller, self._server
        )
        #: `await peer.call(method, params, timeout=seconds)`: see `Caller.call`. (Not a method of
        #: this class, which would be one Python call more in each.)
        self.call: Final = self._caller.call
        #: `peer.ask(method, params, timeout=seconds, then=function)`: see `Caller.ask`.
        self.ask: Final = self._caller.ask

    @property
    def their_hello(self) -> Hello | None:
        """The other side's hello; None until then. Its `program` is for logs alone."""
        return self._connection.their_hello

    @property
    def version(self) -> int:
        """The highest version of the protocol that both sides speak; before the other's hello, the
        lowest that this side offers."""
        return self._connection.version or VERSIONS[0]

    @property
    def is_open(self) -> bool:
        """Have both sides said hello, and has the connection not ended since?"""
        return self._connection.their_hello is not None and not self._session.ended

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serves the connection until it ends, and closes the stream; `started` after both hellos.

        Returns when the other side has closed cleanly, or after `close`. RemoteProtocolError when
        it broke the protocol or a quota, trio.BrokenResourceError when the connection broke or
        ended before hello. These two come as they are, never in a group.
        """
        session = self._session
        try:
            async with trio.open_nursery() as nursery:
                session.open(nursery)
                try:
                    session.post(Hello(VERSIONS, self._program))
                    await self._reader.greet()
                    task_status.started()
                    session.opening.unpark_all()
                    await self._reader.read(self, nursery)
                    await trio.sleep_forever()  # it became a handler's, and another task reads
                except (RemoteProtocolError, trio.BrokenResourceError) as error:
                    session.fail(error)
                except trio.ClosedResourceError:
                    pass  # the stream was closed on this side: as good as close()
                finally:
                    # Now, not when all handlers are done: one that undoes things under a shield may
                    # itself wait for an answer of this peer.
                    session.end()
                nursery.cancel_scope.cancel()
        finally:
            await trio.aclose_forcefully(session.stream)
        if session.failure is not None:
            raise session.failure

    def start_soon(self, work: Callable[[*Ts], Awaitable[object]], *arguments: *Ts) -> None:
        """Starts a task that is cancelled when the connection ends; only while `run` serves it."""
        self._session.start_soon(work, *arguments)

    def patience(self, seconds: float, why: str) -> Patience:
        """Fails the connection because of `why`, a breach of the protocol, after so many seconds,
        unless the caller ends what this returns."""
        return Patience(self._session, seconds, why)

    def fail(self, error: RemoteProtocolError) -> None:
        """Ends the connection because of something that only a handler could see: `run` raises
        `error`. The first error counts.

        A handler does not raise it, because one that talks to other peers could not tell whose
        fault it means.
        """
        self._session.fail(error)

    def close(self) -> None:
        """Ends the connection from this side. What waits to be written may be lost."""
        self._session.close()

    async def notify(self, method: str, params: Params) -> None:
        """Queues a notice; it is dropped if the connection has ended.

        LocalProtocolError if it cannot be sent (too large, or before hello).
        """
        await trio.lowlevel.checkpoint()
        self.notify_now(method, params)

    def notify_now(self, method: str, params: Params) -> None:
        """As `notify`, where nothing may wait; it is on its way when this returns."""
        self._session.send(Notice(method, params))

    async def drained(self, below: int) -> None:
        """Returns when fewer than `below` bytes wait to be written, or the connection has ended.

        For senders of notices that wait rather than overload a peer that reads slowly.
        """
        await self._session.outbox.drained(below)

    async def caught_up(self) -> None:
        """For this peer's handlers. Returns when everything that has arrived is read; on a stream
        that is no channel, everything of the last bytes that were received.

        For handlers, before a step that cannot be undone: if this program was paused, the caller's
        cancellation may stand right behind its request. The handler is cancelled then.
        """
        await self._inbox.caught_up()


@contextlib.asynccontextmanager
async def open_peer(
    stream: trio.abc.Stream,
    *,
    program: str,
    handlers: Mapping[str, Handler],
    notices: Mapping[str, Handler] | None = None,
    default_handler: DefaultHandler | None = None,
    name: str = "",
    frames_per_second: float = FRAMES_PER_SECOND,
) -> AsyncIterator[Peer]:
    """A `Peer` that is served for as long as the `async with` lasts, and closed then.

    Raises what `Peer.run` raises, if hello fails or at the end of a block that succeeded although
    the connection had failed. Exceptions of the block are raised as they are, not in a group.
    """
    peer = Peer(
        stream,
        program=program,
        handlers=handlers,
        notices=notices,
        default_handler=default_handler,
        name=name,
        frames_per_second=frames_per_second,
    )
    failure: Exception | None = None
    block_error: Exception | None = None

    async def run() -> None:
        nonlocal failure
        try:
            await peer.run()
        except (RemoteProtocolError, trio.BrokenResourceError) as error:
            failure = error

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await peer._session.opening.park()
        if peer.their_hello is not None:
            try:
                yield peer
            except Exception as error:
                block_error = error
        peer.close()
    if block_error is not None:
        raise block_error
    if failure is not None:
        raise failure
