"""What arrives from one peer, and which task reads it.

A channel is read in turns, which also write: by the reader's task, or by a caller that stands in
for it and so finds its own answer. Only the reader reads other streams.
"""

from __future__ import annotations

import itertools
import time
from math import inf
from typing import TYPE_CHECKING

import trio
from pedos_protocol.errors import RemoteProtocolError
from pedos_protocol.events import Answer, ErrorAnswer, Event

from .parking import Parking
from .quota import BYTES_PER_FRAME

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .conversation import Conversation
    from .quota import Quota
    from .session import Session

#: Seconds that a peer is served at once before other tasks get their turn: the time of some two
#: short calls, so that a VM that floods does not make the others wait longer than that.
TURN_SECONDS = 0.0001

#: Bytes asked for at once: a control channel's ring.
RECEIVE_SIZE = 65536


# The content of an idle inbox, in place of a batch that was read to its end.
_NOTHING: Iterator[Event] = iter(())


class Inbox:
    """Events of one connection, in the order in which they arrive; `quota` bounds them."""

    __slots__ = (
        "_behind",
        "_connection",
        "_conversation",
        "_is_piece",
        "_outbox",
        "_quota",
        "_session",
        "events",
        "reader_waits",
        "turn_end",
    )

    def __init__(self, session: Session, quota: Quota) -> None:
        self._session = session
        self._quota = quota
        self._conversation = session.conversation
        self._outbox = session.outbox
        self._connection = session.connection
        self.turn_end = 0.0  # of time.perf_counter(): then others get their turn
        self.reader_waits = False  # the reader is in `wait`, so its place can be taken
        self._behind = Parking()  # wait until all is read
        #: What has arrived and was not taken yet. Each event is decoded on demand, by the task that
        #: takes it; RemoteProtocolError.
        self.events: Iterator[Event] = _NOTHING
        self._is_piece = False  # what came last completed no frame
        session.at_end(self)

    async def next_event(self) -> Event:
        """The next event. RemoteProtocolError, and what the stream raises."""
        while (event := next(self.events, None)) is None:
            await self.read_more()
        return event

    async def read_more(self) -> None:
        """For the reader, once it has taken all `events`: receives what has arrived, and waits for
        it if nothing has. `events` may then be what another task has left.

        RemoteProtocolError, and what the stream raises.
        """
        if self._conversation is None:
            self._outbox.flush()
            self._has_caught_up()
            received = bytes(await self._session.stream.receive_some(RECEIVE_SIZE))
            self.reader_waits = False
            self.receive(received)
            return
        while (data := self._outbox.turn(self._conversation)) is None:
            self._has_caught_up()
            try:
                await self._conversation.wait()
            finally:
                self.reader_waits = False
                self.turn_end = time.perf_counter() + TURN_SECONDS
            if self.events is not _NOTHING:
                return
        if time.perf_counter() > self.turn_end:
            await self.let_others_run()
        self.receive(data)

    def receive(self, data: bytes) -> None:
        """Takes bytes that arrived, and charges their price. RemoteProtocolError."""
        # A piece that completes nothing is a useless wake-up: it costs as much as a frame;
        # otherwise a frame that arrives byte by byte would be 65,536 wake-ups for the price of 256
        # frames.
        self._quota.spend(len(data) / BYTES_PER_FRAME + self._is_piece)
        events = self._connection.receive_data(data)
        first = next(events, None)
        self._is_piece = first is None
        self.events = events if first is None else itertools.chain((first,), events)

    async def let_others_run(self) -> None:
        """Begins another `turn_end`, after all tasks that can run now have run."""
        await trio.lowlevel.checkpoint()
        self.turn_end = time.perf_counter() + TURN_SECONDS

    async def caught_up(self) -> None:
        """Returns when everything that has arrived is read; on a stream that is no channel,
        everything of the last bytes that were received. No checkpoint in the first step of a
        handler behind whose request nothing has come."""
        if self._is_last_in_step():
            return
        if self.reader_waits and self._conversation is not None:
            self.reader_waits = False
            self._conversation.wake()
        if self.reader_waits or self._session.ended:
            await trio.lowlevel.checkpoint()
        else:
            await self._behind.park()

    def _is_last_in_step(self) -> bool:
        """Whether the reader is just serving (`first_step`) all that has arrived."""
        return (
            self._session.loop.step_seconds != inf
            and self._conversation is not None
            and not self._connection.has_more
            and not self._conversation.has_news()
        )

    def _has_caught_up(self) -> None:
        self.events = _NOTHING
        self.reader_waits = True
        if self._behind.lot is not None:
            self._behind.unpark_all()

    def free(self) -> None:
        """The connection has ended: nothing more arrives."""
        self._behind.unpark_all()

    # In the reader's place

    def may_stand_in(self) -> bool:
        """Whether a caller may wait and read on the channel instead of the reader now."""
        return self.reader_waits and not self._session.ended

    def read_answers(
        self, conversation: Conversation, take: Callable[[Answer | ErrorAnswer], None]
    ) -> None:
        """A turn in the reader's place: `take` gets the answers. It leaves everything else to the
        reader."""
        try:
            data = self._outbox.turn(conversation)
            if data is None:
                return
            if data:
                is_armed = conversation.is_armed()
                self.receive(data)
                for event in self.events:
                    if not isinstance(event, (Answer, ErrorAnswer)):
                        self.events = itertools.chain((event,), self.events)
                        break
                    take(event)
                else:
                    if is_armed:
                        return
        except RemoteProtocolError as error:
            self._session.fail(error)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # as is an end: the reader finds it, too
        self.reader_waits = False
        conversation.wake()
