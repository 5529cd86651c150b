"""What calling, serving and reading share of one connection: its state machine, what waits to be
written, and how it ends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeVarTuple

import trio
from pedos_protocol.connection import Connection
from pedos_protocol.errors import RemoteProtocolError

from .event_loop import event_loop
from .outbox import Outbox
from .parking import Parking
from .stream import VchanStream

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from pedos_protocol.events import Event

Ts = TypeVarTuple("Ts")

#: Bytes that wait for a peer that does not read: sixteen of the largest frames.
OUT_MAX = 1024 * 1024

#: The notice {"id"} that the caller of that request has given up: the handler is cancelled, if it
#: may be. It is sent at the deadline, too, because a side that was paused does not know that the
#: deadline has passed. A program that does not know this notice ignores it.
CANCELLED = "call.cancelled"


class Part(Protocol):
    """A part of a connection in which tasks wait for what the other side sends."""

    def free(self) -> None:
        """The connection has ended: frees them, as nothing will come."""


class Patience:
    """Fails the connection of `session` after so many seconds because of `why`, unless it ends.

    (trio would keep a cancel scope until its deadline for each of the many VMs that connect when
    dom0's service starts.)
    """

    __slots__ = ("_session", "_why", "deadline")

    def __init__(self, session: Session, seconds: float, why: str) -> None:
        self._session = session
        self._why = why
        self.deadline = trio.current_time() + seconds
        session.loop.sweeper.watch(self)

    def end(self) -> None:
        """What was waited for has come, or will not. Idempotent."""
        self._session.loop.sweeper.forget(self)

    def expire(self) -> None:
        self._session.fail(RemoteProtocolError(self._why))


class Session:
    """One connection over `stream`; `name` is what the log calls the other side."""

    __slots__ = (
        "_nursery",
        "_parts",
        "connection",
        "conversation",
        "ended",
        "failure",
        "loop",
        "name",
        "opening",
        "outbox",
        "stream",
    )

    def __init__(self, stream: trio.abc.Stream, name: str) -> None:
        self.stream = stream
        self.name = name
        # Other streams than a channel's are read and written by tasks.
        self.conversation = stream.conversation if isinstance(stream, VchanStream) else None
        self.connection = Connection()
        self.loop = event_loop()
        self.outbox = Outbox(stream, self.conversation, self.loop.flusher)
        self.opening = Parking()  # who waits until both hellos are said, or never will be
        self.ended = False
        self.failure: Exception | None = None
        self._nursery: trio.Nursery | None = None
        self._parts: tuple[Part, ...] = ()

    def at_end(self, part: Part) -> None:
        """`part` is freed once, at the end."""
        self._parts += (part,)

    def open(self, nursery: trio.Nursery) -> None:
        """`nursery` has the connection's tasks: it is cancelled when the connection ends."""
        self._nursery = nursery
        self.outbox.open(nursery)
        if self.ended or self.failure is not None:
            nursery.cancel_scope.cancel()

    def start_soon(self, work: Callable[[*Ts], Awaitable[object]], *arguments: *Ts) -> None:
        """Starts a task that is cancelled when the connection ends; only while it is open."""
        assert self._nursery is not None
        self._nursery.start_soon(work, *arguments)

    def post(self, event: Event) -> None:
        """Queues `event`; LocalProtocolError if it cannot be sent. A turn or a flush follows. After
        the end it is dropped, as it has no receiver any more."""
        if not self.ended and self.outbox.put(self.connection.send(event)) > OUT_MAX:
            self._is_not_read()

    def send(self, event: Event) -> None:
        """As `post`; it is on its way when this returns."""
        if not self.ended and self.outbox.send(self.connection.send(event)) > OUT_MAX:
            self._is_not_read()

    def _is_not_read(self) -> None:
        self.outbox.clear()
        self.fail(RemoteProtocolError(f"it does not read: over {OUT_MAX} bytes wait for it"))

    def fail(self, error: Exception) -> None:
        """Ends the connection because of `error`; the first error counts."""
        if self.failure is None and not self.ended:
            self.failure = error
        self._cancel()

    def end(self) -> None:
        """Frees all waiting tasks: nothing will come any more. The tasks go on."""
        self.ended = True
        self.opening.unpark_all()
        self.outbox.close()
        parts, self._parts = self._parts, ()
        for part in parts:
            part.free()

    def close(self) -> None:
        """Ends the connection from this side. What waits to be written may be lost."""
        self.end()
        self._cancel()

    def _cancel(self) -> None:
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel()
