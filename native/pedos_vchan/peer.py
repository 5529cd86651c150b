"""A trio shell around the protocol's state machine: calls, answers, notices and quotas.

All that decides what is legal is in `pedos_protocol.connection`; here are only the stream, the
tasks and the clock.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import trio
from pedos_protocol.connection import PENDING_MAX, VERSIONS, Connection
from pedos_protocol.errors import CallError, LocalProtocolError, RemoteProtocolError
from pedos_protocol.events import (
    DEADLINE_MS_MAX,
    ERROR_MESSAGE_MAX,
    Answer,
    Closed,
    ErrorAnswer,
    Event,
    Hello,
    NeedData,
    Notice,
    Request,
)
from pedos_protocol.names import shown

#: Seconds within which the other side has to say hello: a VM that boots is slow, and one that
#: never speaks must not hold a place for ever.
HELLO_TIMEOUT = 5

#: Bytes that wait for a peer that does not read. Sixteen of the largest frames.
OUT_MAX = 1024 * 1024

#: Requests and notices a second that a peer may send in the long run, and how many at once before
#: that. A person or a script makes some tens; at the full rate a hostile VM takes about a tenth of
#: one processor. Answers do not count: there are never more of them than we asked for.
FRAMES_PER_SECOND = 2000
FRAMES_BURST = 8000

#: Bytes that count as one frame more, answers too: reading a frame of 64 KiB costs some hundred
#: times what reading a short one does.
BYTES_PER_FRAME = 256

#: Events taken from one batch of bytes before other tasks get a turn. Short frames cost 20 us each
#: and some hundred bytes hold ten of them, so a full ring would hold the event loop for 40 ms.
EVENTS_PER_TURN = 32

#: Bytes asked for at once: a control channel's ring.
RECEIVE_SIZE = 65536

Params = dict[str, Any]
Handler = Callable[["Peer", Params], Awaitable[Params | None]]
DefaultHandler = Callable[["Peer", str, Params], Awaitable[Params | None]]

log = logging.getLogger(__name__)


class _Waiter:
    """A call of ours that waits for its answer."""

    __slots__ = ("answer", "done")

    def __init__(self) -> None:
        self.done = trio.Event()
        self.answer: Answer | ErrorAnswer | None = None  # None when done: the connection ended


class Peer:
    """The program at the other end of `stream`.

    `handlers` maps methods to what serves them: requests concurrently, each under the deadline
    that it carries (trio.current_effective_deadline()); notices in order and inline, so a
    handler of notices must not call this same peer. `default_handler` gets requests that are in
    no table; without one they are answered `unknown_method`. A handler answers with a map (None
    is an empty one) or raises CallError; any other exception is logged and answered `failed`.

    `name` is what the log calls the peer. `frames_per_second` is for benchmarks, which do
    nothing else.
    """

    def __init__(
        self,
        stream: trio.abc.Stream,
        *,
        program: str,
        handlers: Mapping[str, Handler],
        default_handler: DefaultHandler | None = None,
        name: str = "",
        frames_per_second: float = FRAMES_PER_SECOND,
    ) -> None:
        self.name = name
        self._stream = stream
        self._program = program
        self._handlers = handlers
        self._default_handler = default_handler
        self._connection = Connection()
        self._scope = trio.CancelScope()
        self._failure: Exception | None = None
        self._ended = False
        self._opened = trio.Event()  # set when both hellos are said, or never will be
        self._out = bytearray()
        self._sending = 0  # bytes that left _out and are not written yet
        self._out_wanted = trio.Event()
        self._out_written = trio.Event()  # set, and made anew, when what was sent is written
        self._slots = trio.Semaphore(PENDING_MAX)
        self._waiters: dict[int, _Waiter] = {}
        self._last_id = 0
        self._events_in_turn = 0
        self._rate = frames_per_second
        self._budget = float(FRAMES_BURST)
        self._budget_time = trio.current_time()

    @property
    def their_hello(self) -> Hello | None:
        """What the other side said first; None until then. Its `program` is for logs alone."""
        return self._connection.their_hello

    @property
    def is_open(self) -> bool:
        """Have both sides said hello, and has the connection not ended since?"""
        return self.their_hello is not None and not self._ended

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serves the connection until it ends, and closes the stream; `started` after both hellos.

        Returns when the other side has closed cleanly, or after `close`. RemoteProtocolError when
        it broke the protocol or a quota, trio.BrokenResourceError when the connection broke or
        ended before hello. These two come as they are, never in a group.
        """
        try:
            async with trio.open_nursery() as nursery:
                with self._scope:
                    nursery.start_soon(self._write)
                    self._send(Hello(VERSIONS, self._program))
                    try:
                        await self._greet()
                        task_status.started()
                        self._opened.set()
                        await self._serve(nursery)
                    except (RemoteProtocolError, trio.BrokenResourceError) as error:
                        self._fail(error)
                    except trio.ClosedResourceError:
                        pass  # somebody on this side closed the stream: as good as close()
                    finally:
                        # Now, not when all handlers are done: one that is undoing things under
                        # a shield may itself wait for an answer of this peer.
                        self._end()
                nursery.cancel_scope.cancel()
        finally:
            await trio.aclose_forcefully(self._stream)
        if self._failure is not None:
            raise self._failure

    def _fail(self, error: Exception) -> None:
        """Ends the connection because of `error`; the first error counts."""
        if self._failure is None and not self._ended:
            self._failure = error
        self._scope.cancel()

    def _end(self) -> None:
        """Frees all that wait: nothing will come any more."""
        self._ended = True
        self._opened.set()
        self._out_written.set()
        waiters, self._waiters = self._waiters, {}
        for waiter in waiters.values():
            waiter.done.set()
        for _ in range(self._slots.statistics().tasks_waiting):
            self._slots.release()

    def fail(self, error: RemoteProtocolError) -> None:
        """Ends the connection because of what only a handler could see: `run` raises `error`.

        A handler does not raise it, as one that talks to other peers could not say whose fault
        it means.
        """
        self._fail(error)

    def close(self) -> None:
        """Ends the connection from this side. What waits to be written may be lost."""
        self._end()
        self._scope.cancel()

    # What comes in

    async def _next_event(self) -> Event:
        if self._events_in_turn >= EVENTS_PER_TURN:
            self._events_in_turn = 0
            await trio.lowlevel.checkpoint()
        more = 0
        while True:
            event = self._connection.next_event()
            if not isinstance(event, NeedData):
                self._events_in_turn += 1
                return event
            data = await self._stream.receive_some(RECEIVE_SIZE)
            self._events_in_turn = 0
            # A piece that completes nothing woke us for nothing: it costs as much as a frame, or a
            # frame that comes byte by byte would be 65,536 wake-ups for the price of 256 frames.
            self._spend(len(data) / BYTES_PER_FRAME + more)
            more = 1
            self._connection.receive_data(data)

    async def _greet(self) -> None:
        with trio.move_on_after(HELLO_TIMEOUT) as scope:
            event = await self._next_event()
        if scope.cancelled_caught:
            raise RemoteProtocolError(f"no hello came within {HELLO_TIMEOUT} s")
        if isinstance(event, Closed):
            raise trio.BrokenResourceError("the other side ended before its hello")

    async def _serve(self, nursery: trio.Nursery) -> None:
        while True:
            event = await self._next_event()
            if isinstance(event, (Answer, ErrorAnswer)):
                self._slots.release()
                waiter = self._waiters.pop(event.id, None)
                if waiter is not None:  # otherwise its caller has given up
                    waiter.answer = event
                    waiter.done.set()
            elif isinstance(event, Request):
                self._spend(1)
                nursery.start_soon(self._answer, event)
            elif isinstance(event, Notice):
                self._spend(1)
                await self._take_notice(event)
            elif isinstance(event, Closed):
                return

    def _spend(self, frames: float) -> None:
        """Takes so much out of the peer's budget, a bucket that is refilled when it is empty: so
        the clock is read once in a burst, not once a frame."""
        self._budget -= frames
        if self._budget < 0:
            now = trio.current_time()
            refill = (now - self._budget_time) * self._rate
            self._budget = min(self._budget + refill, FRAMES_BURST)
            self._budget_time = now
            if self._budget < 0:
                raise RemoteProtocolError(
                    f"flood: it sends more than {self._rate:g} requests and notices a second "
                    f"({BYTES_PER_FRAME} bytes count as one)"
                )

    async def _take_notice(self, notice: Notice) -> None:
        handler = self._handlers.get(notice.method)
        if handler is None:
            log.debug("%s: notice %s is handled by nobody", self.name, notice.method)
            return
        try:
            await handler(self, notice.params)
        except Exception:
            log.exception("%s: handling of the notice %s failed", self.name, notice.method)

    async def _answer(self, request: Request) -> None:
        event = await self._outcome(request)
        try:
            self._send(event)
        except LocalProtocolError as error:
            log.error("%s: the answer to %s: %s", self.name, request.method, error)
            self._send(ErrorAnswer(request.id, "failed", "the answer could not be sent", {}))

    async def _outcome(self, request: Request) -> Event:
        method = request.method
        try:
            with trio.move_on_after(request.deadline_ms / 1000) as scope:
                handler = self._handlers.get(method)
                if handler is not None:
                    result = await handler(self, request.params)
                elif self._default_handler is not None:
                    result = await self._default_handler(self, method, request.params)
                else:
                    raise CallError("unknown_method", f"nobody serves {shown(method)} here")
            if scope.cancelled_caught:
                raise CallError(
                    "timeout", f"{method} was not done within {request.deadline_ms / 1000:g} s"
                )
            return Answer(request.id, {} if result is None else result)
        except CallError as error:
            message = error.message[:ERROR_MESSAGE_MAX]
            return ErrorAnswer(request.id, error.code, message, error.data)
        except Exception:
            log.exception("%s: %s failed", self.name, method)
            return ErrorAnswer(request.id, "failed", f"{method} failed unexpectedly", {})

    # What goes out

    def _send(self, event: Event) -> None:
        """Queues `event`; LocalProtocolError if it cannot be sent."""
        self._out += self._connection.send(event)
        if len(self._out) + self._sending > OUT_MAX:
            self._out.clear()
            self._fail(RemoteProtocolError(f"it does not read: over {OUT_MAX} bytes wait for it"))
        self._out_wanted.set()

    async def _write(self) -> None:
        while True:
            await self._out_wanted.wait()
            self._out_wanted = trio.Event()
            out, self._out = self._out, bytearray()
            self._sending = len(out)
            try:
                await self._stream.send_all(out)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return  # the reader finds out whether the other side closed or broke
            self._sending = 0
            self._out_written.set()
            self._out_written = trio.Event()

    async def notify(self, method: str, params: Params) -> None:
        """Queues a notice; it is dropped if the connection has ended.

        LocalProtocolError if it cannot be sent (too large, or before hello).
        """
        await trio.lowlevel.checkpoint()
        if not self._ended:
            self._send(Notice(method, params))

    async def drained(self, below: int) -> None:
        """Returns when fewer than `below` bytes wait to be written, or the connection has ended.

        For who sends notices as they come up and would rather wait than be too much for a peer
        that reads slowly.
        """
        await trio.lowlevel.checkpoint()
        while not self._ended and len(self._out) + self._sending >= below:
            await self._out_written.wait()

    async def call(self, method: str, params: Params, *, timeout: float) -> Params:
        """Calls `method` and returns its result.

        `timeout` is in seconds, at most 600; an earlier deadline of the caller's own counts, and
        the other side is told. CallError if it answers with an error, `timeout` if it does not
        answer in time, `unavailable` if the connection ends first. Waits while 128 others wait.
        LocalProtocolError if the request cannot be sent.
        """
        if not 0 < timeout <= DEADLINE_MS_MAX / 1000:
            raise ValueError(f"a time-out of {timeout} s is not within 0 to 600 s")
        waiter = _Waiter()
        call_id = None
        with trio.move_on_after(timeout) as scope:
            try:
                await self._take_slot()
                call_id = self._start_call(method, params, waiter)
                await waiter.done.wait()
            finally:
                if call_id is not None:
                    self._waiters.pop(call_id, None)
        if scope.cancelled_caught:
            raise CallError("timeout", f"{method} was not answered within {timeout:g} s")
        answer = waiter.answer
        if answer is None:
            raise self._unavailable()
        if isinstance(answer, ErrorAnswer):
            raise CallError(answer.code, answer.message, answer.data)
        return answer.result

    def _unavailable(self) -> CallError:
        whom = f" to {self.name}" if self.name else ""
        return CallError("unavailable", f"the connection{whom} has ended")

    async def _take_slot(self) -> None:
        """One of the places for requests in flight. It is given back by the answer, even if that
        comes too late for its caller: the other side counts the request until then."""
        if self._ended:
            raise self._unavailable()
        try:
            self._slots.acquire_nowait()
        except trio.WouldBlock:
            await self._slots.acquire()
            if self._ended:
                raise self._unavailable() from None

    def _start_call(self, method: str, params: Params, waiter: _Waiter) -> int:
        remaining = trio.current_effective_deadline() - trio.current_time()
        deadline_ms = max(1, min(DEADLINE_MS_MAX, math.ceil(max(remaining, 0) * 1000)))
        call_id = self._last_id
        while True:  # an id may still be in use only after 2^32 others, or never
            call_id = (call_id + 1) & 0xFFFFFFFF
            if not self._connection.is_in_flight(call_id):
                break
        try:
            self._send(Request(call_id, method, params, deadline_ms))
        except BaseException:
            self._slots.release()
            raise
        self._last_id = call_id
        self._waiters[call_id] = waiter
        return call_id


@contextlib.asynccontextmanager
async def open_peer(
    stream: trio.abc.Stream,
    *,
    program: str,
    handlers: Mapping[str, Handler],
    default_handler: DefaultHandler | None = None,
    name: str = "",
) -> AsyncIterator[Peer]:
    """A `Peer` that is served for as long as the `async with` lasts, and closed then.

    Raises what `Peer.run` raises, if hello fails or at the end of a block that succeeded although
    the connection had failed. Exceptions of the block come out as they are, not in a group.
    """
    peer = Peer(
        stream, program=program, handlers=handlers, default_handler=default_handler, name=name
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
        await peer._opened.wait()
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
