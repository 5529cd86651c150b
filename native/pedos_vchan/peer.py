"""A trio shell around the protocol's state machine: calls, answers, notices and quotas.

All that decides what is legal is in `pedos_protocol.connection`; here are only the stream, the
tasks and the clock.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
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
    know_methods,
)
from pedos_protocol.names import shown
from pedos_protocol.words import request_to, unanswered

from .calls import Gate, Waiter, effective_deadline, first_step, rest
from .event_loop import event_loop
from .outbox import Outbox
from .quota import BYTES_PER_FRAME, FRAMES_PER_SECOND, Quota
from .stream import VchanStream
from .throttle import throttle

#: Seconds within which the other side has to say hello: a VM that boots is slow, and one that
#: never speaks must not hold a place for ever.
HELLO_TIMEOUT = 5

#: Bytes that wait for a peer that does not read. Sixteen of the largest frames.
OUT_MAX = 1024 * 1024

#: Seconds that a peer is served in one go before other tasks get their turn: about what two short
#: calls take, so that one VM which floods us does not make the others wait longer than that.
TURN_SECONDS = 0.0001

#: The notice {"id"} that the caller of that request has given up: the handler is cancelled, if it
#: may be. Said at the deadline, too, which a side that was paused meanwhile does not know to have
#: passed. A program that does not know this notice ignores it.
CANCELLED = "call.cancelled"

#: Bytes asked for at once: a control channel's ring.
RECEIVE_SIZE = 65536

Params = dict[str, Any]
Handler = Callable[["Peer", Params], Coroutine[Any, Any, Params | None]]
Begun = tuple[Coroutine[Any, Any, Params | None], object]  # a handler after its first step
DefaultHandler = Callable[["Peer", str, Params], Coroutine[Any, Any, Params | None]]

log = logging.getLogger(__name__)


class Peer:
    """The program at the other end of `stream`.

    `handlers` maps methods to what serves them: requests concurrently, each under the deadline
    that it carries (trio.current_effective_deadline()), and cancelled when its caller is; notices
    in order and inline, so a handler of notices must not call this same peer. With `notices` these
    have a table of their own, so that what is meant to be answered is not done without an answer.
    `default_handler` gets requests that are in no table; without one they are answered
    `unknown_method`. A handler answers with a map (None is an empty one) or raises CallError; any
    other exception is logged and answered `failed`.

    `name` is what the log calls the peer. `frames_per_second` is for benchmarks, which do
    nothing else.
    """

    def __init__(
        self,
        stream: trio.abc.Stream,
        *,
        program: str,
        handlers: Mapping[str, Handler],
        notices: Mapping[str, Handler] | None = None,
        default_handler: DefaultHandler | None = None,
        name: str = "",
        frames_per_second: float = FRAMES_PER_SECOND,
    ) -> None:
        self.name = name
        self._stream = stream
        self._program = program
        self._handlers = handlers
        self._notices = handlers if notices is None else notices
        know_methods(handlers)
        know_methods(self._notices)
        self._default_handler = default_handler
        self._connection = Connection()
        self._nursery: trio.Nursery | None = None
        self._failure: Exception | None = None
        self._ended = False
        self._opened = trio.Event()  # set when both hellos are said, or never will be
        # The same stream, if turns can be taken on it; other streams are read and written by tasks.
        self._turns = stream if isinstance(stream, VchanStream) else None
        self._turn_end = 0.0
        self._reader_waits = False  # the reader is in `wait`, so its place can be taken
        self._behind = trio.lowlevel.ParkingLot()  # who waits until it has read what has come
        self._unread: Event | None = None  # what one who took its place has left for it
        self._is_piece = False  # what came last completed no frame
        self._last_caller = 0  # the id() of its task; that of an ended one may come back, no matter
        self._free_slots = PENDING_MAX
        self._slots = trio.lowlevel.ParkingLot()  # who waits for one to become free
        self._waiters: dict[int, Waiter] = {}
        self._serving: dict[int, trio.CancelScope] = {}  # their requests whose handlers wait
        loop = event_loop()
        self._sweeper = loop.sweeper
        self._outbox = Outbox(stream, loop.flusher)
        self._gate = Gate(loop.flusher)
        self._last_id = 0
        self._quota = Quota(frames_per_second)

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
                self._nursery = nursery
                self._outbox.open(nursery)
                if self._ended or self._failure is not None:
                    nursery.cancel_scope.cancel()
                try:
                    self._post(Hello(VERSIONS, self._program))
                    await self._greet()
                    task_status.started()
                    self._opened.set()
                    await self._read(nursery)
                    await trio.sleep_forever()  # it was a handler's at last, and others read
                except (RemoteProtocolError, trio.BrokenResourceError) as error:
                    self._fail(error)
                except trio.ClosedResourceError:
                    pass  # the stream was closed on this side: as good as close()
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
        self._cancel()

    def _end(self) -> None:
        """Frees all that wait: nothing will come any more."""
        self._ended = True
        self._opened.set()
        self._outbox.close()
        waiters, self._waiters = self._waiters, {}
        for waiter in waiters.values():
            waiter.settle(None)
        self._slots.unpark_all()
        self._behind.unpark_all()

    def fail(self, error: RemoteProtocolError) -> None:
        """Ends the connection because of what only a handler could see: `run` raises `error`.

        A handler does not raise it, as one that talks to other peers could not say whose fault
        it means.
        """
        self._fail(error)

    def close(self) -> None:
        """Ends the connection from this side. What waits to be written may be lost."""
        self._end()
        self._cancel()

    def _cancel(self) -> None:
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel()

    # What comes in

    async def _next_event(self) -> Event:
        while True:
            event = self._unread or self._connection.next_event()
            self._unread = None
            if not isinstance(event, NeedData):
                self._is_piece = False
                return event
            if self._turns is None:
                self._outbox.flush()
                self._has_caught_up()
                received = bytes(await self._stream.receive_some(RECEIVE_SIZE))
                self._reader_waits = False
                self._receive(received)
                continue
            if self._is_piece and time.perf_counter() > self._turn_end:
                await self._let_others_run()  # a frame may come byte by byte, as fast as we look
            while (data := self._outbox.turn(self._turns)) is None:
                self._has_caught_up()
                try:
                    await self._turns.wait()
                finally:
                    self._reader_waits = False
                    self._turn_end = time.perf_counter() + TURN_SECONDS
                if self._unread is not None:
                    break
            else:
                self._receive(data)

    def _has_caught_up(self) -> None:
        self._reader_waits = True
        if self._behind:
            self._behind.unpark_all()

    async def caught_up(self) -> None:
        """Returns when all that has come is read; on a stream that is no channel, all that came
        with the last bytes that were received.

        For handlers, before what cannot be undone: if this program was paused, that the caller has
        given up may stand right behind its request. The handler is cancelled then.
        """
        if self._reader_waits and self._turns is not None:
            self._reader_waits = False
            self._turns.wake()
        if self._reader_waits or self._ended:
            await trio.lowlevel.checkpoint()
        else:
            await self._behind.park()

    def _receive(self, data: bytes) -> None:
        # A piece that completes nothing woke us for nothing: it costs as much as a frame, or a
        # frame that comes byte by byte would be 65,536 wake-ups for the price of 256 frames.
        self._quota.spend(len(data) / BYTES_PER_FRAME + self._is_piece)
        self._is_piece = True
        self._connection.receive_data(data)

    async def _greet(self) -> None:
        with trio.move_on_after(HELLO_TIMEOUT) as scope:
            event = await self._next_event()
        if scope.cancelled_caught:
            raise RemoteProtocolError(f"no hello came within {HELLO_TIMEOUT} s")
        if isinstance(event, Closed):
            raise trio.BrokenResourceError("the other side ended before its hello")

    async def _read(self, nursery: trio.Nursery) -> None:
        """Reads, and serves what need not wait. With the first handler that has to, the task is
        that handler's and another one reads: so all that a handler opens stays in one task."""
        request: Request | None = None  # whose handler has this task
        try:
            with trio.CancelScope() as scope:  # without a deadline as long as it reads
                while not isinstance(event := await self._next_event(), Closed):
                    if time.perf_counter() > self._turn_end:
                        await self._let_others_run()
                    if isinstance(event, Request):
                        self._quota.spend(1)
                        begun = self._begin(event)
                        if begun is not None:
                            request = event
                            scope.deadline = trio.current_time() + request.deadline_ms / 1000
                            nursery.start_soon(self._read, nursery)
                            self._answer(request, await self._finish(request, scope, begun))
                            break
                    elif isinstance(event, (Answer, ErrorAnswer)):
                        self._take_answer(event)
                    elif isinstance(event, Notice):
                        self._quota.spend(1)
                        await self._take_notice(event)
            if scope.cancelled_caught and request is not None:
                late = trio.current_time() >= scope.deadline
                why = f"not done within {request.deadline_ms / 1000:g} s" if late else "cancelled"
                raise CallError("timeout", f"{request.method} was {why}")
        except Exception as error:
            if request is not None:
                self._answer_error(request, error)
            else:
                self._stop_reading(error)
        if request is None:
            self.close()
        else:
            self._outbox.flush()

    def _stop_reading(self, error: Exception) -> None:
        if isinstance(error, (RemoteProtocolError, trio.BrokenResourceError)):
            self._fail(error)
        elif not isinstance(error, trio.ClosedResourceError):
            raise error
        # else the stream was closed on this side: as good as close()

    async def _let_others_run(self) -> None:
        await trio.lowlevel.checkpoint()
        self._turn_end = time.perf_counter() + TURN_SECONDS

    def _take_answer(self, answer: Answer | ErrorAnswer) -> None:
        self._free_slot()
        waiter = self._waiters.pop(answer.id, None)
        if waiter is not None:  # otherwise its caller has given up
            waiter.settle(answer)

    async def _take_notice(self, notice: Notice) -> None:
        if notice.method == CANCELLED:
            untrusted_id = notice.params.get("id")
            # It may have been answered meanwhile; what is no id at all was never served either.
            if type(untrusted_id) is int and untrusted_id in self._serving:
                self._serving[untrusted_id].cancel()
            return
        handler = self._notices.get(notice.method)
        if handler is None:
            log.debug("%s: notice %s has no handler", self.name, notice.method)
            return
        try:
            work = handler(self, notice.params)
            trap = first_step(work)
            self._outbox.flush()
            await rest(work, trap)
        except StopIteration:
            pass
        except CallError as error:  # a refusal, for which a notice has no answer
            log.debug("%s: the notice %s was refused: %s", self.name, notice.method, error.message)
        except Exception as error:
            self._log_failure(f"handling of the notice {notice.method}", error)

    def _begin(self, request: Request) -> Begun | None:
        """Runs the handler as far as it comes; None if it is answered already."""
        try:
            handler = self._handlers.get(request.method)
            if handler is not None:
                work = handler(self, request.params)
            elif self._default_handler is not None:
                work = self._default_handler(self, request.method, request.params)
            else:
                raise CallError("unknown_method", f"nobody serves {shown(request.method)} here")
            return work, first_step(work, request.deadline_ms / 1000)
        except StopIteration as done:
            self._answer(request, done.value)
        except Exception as error:
            self._answer_error(request, error)
        return None

    async def _finish(
        self, request: Request, scope: trio.CancelScope, begun: Begun
    ) -> Params | None:
        """The rest of what was begun; until then the caller may have `scope` cancelled."""
        self._serving[request.id] = scope
        try:
            return await rest(*begun, self._gate)
        finally:
            del self._serving[request.id]

    def _answer(self, request: Request, result: Params | None) -> None:
        try:
            self._post(Answer(request.id, {} if result is None else result))
        except LocalProtocolError as error:
            log.error("%s: the answer to %s: %s", self.name, request.method, error)
            self._post(ErrorAnswer(request.id, "failed", "the answer could not be sent", {}))

    def _answer_error(self, request: Request, error: Exception) -> None:
        if isinstance(error, CallError):
            answer = ErrorAnswer(
                request.id, error.code, error.message[:ERROR_MESSAGE_MAX], error.data
            )
        else:
            self._log_failure(request.method, error)
            message = f"{request_to(request.method)} failed unexpectedly"
            answer = ErrorAnswer(request.id, "failed", message, {})
        try:
            self._post(answer)
        except LocalProtocolError as wrong:  # its data cannot be said
            log.error("%s: the answer to %s: %s", self.name, request.method, wrong)
            self._post(ErrorAnswer(request.id, "failed", "the answer could not be sent", {}))

    def _log_failure(self, what: str, error: Exception) -> None:
        """A mistake of ours, whose traceback tells most. The peer may cause it again and again."""
        more = throttle.more(f"{self.name}: {what}")
        if more is not None:
            log.error("%s: %s failed%s", self.name, what, more, exc_info=error)

    # What goes out

    def _post(self, event: Event) -> None:
        """Queues `event`; LocalProtocolError if it cannot be sent. A turn or a flush follows. After
        the end it is dropped, as it has no receiver any more."""
        if self._ended:
            return
        frame = self._connection.send(event)
        self._outbox.put(frame)
        if self._outbox.size > OUT_MAX:
            self._outbox.clear()
            self._fail(RemoteProtocolError(f"it does not read: over {OUT_MAX} bytes wait for it"))

    async def notify(self, method: str, params: Params) -> None:
        """Queues a notice; it is dropped if the connection has ended.

        LocalProtocolError if it cannot be sent (too large, or before hello).
        """
        await trio.lowlevel.checkpoint()
        self._post(Notice(method, params))
        self._outbox.flush()

    async def drained(self, below: int) -> None:
        """Returns when fewer than `below` bytes wait to be written, or the connection has ended.

        For senders of notices that would rather wait than be too much for a peer that reads slowly.
        """
        await self._outbox.drained(below)

    async def call(self, method: str, params: Params, *, timeout: float) -> Params:
        """Calls `method` and returns its result.

        `timeout` is in seconds, at most 1200; an earlier deadline of the caller's own counts, and
        the other side is told, also when it has passed or the caller is cancelled. CallError if it
        answers with an error, `timeout` if it does not answer in time, `unavailable` if the
        connection ends first. Waits while 128 others wait. LocalProtocolError if the request cannot
        be sent.

        An answer that has come is returned, also to a caller whose time is up or that is cancelled
        in the same moment: a caller that gets no answer may undo what was done for it.
        """
        if not 0 < timeout <= DEADLINE_MS_MAX / 1000:
            raise ValueError(
                f"a time-out of {timeout} s is not within 0 to {DEADLINE_MS_MAX / 1000:g} s"
            )
        await trio.lowlevel.checkpoint_if_cancelled()  # who is cancelled already asks for nothing
        now = trio.current_time()
        waiter = Waiter(now + timeout)
        if self._free_slots > 0 and not self._ended:
            self._free_slots -= 1
        else:
            await self._take_slot(waiter)
            now = trio.current_time()
        if not waiter.timed_out:
            call_id = self._start_call(method, params, waiter, now)
            try:
                await self._until_settled(waiter)
            except trio.Cancelled:
                if waiter.answer is None:
                    self._say_cancelled(call_id)
                    raise
                # else the caller hears of the cancellation at its next checkpoint
            finally:
                self._waiters.pop(call_id, None)
                self._sweeper.forget(waiter)
            if waiter.timed_out and waiter.answer is None:
                self._say_cancelled(call_id)
        answer = waiter.answer
        if answer is None:
            if waiter.timed_out:
                raise CallError("timeout", unanswered(method, timeout))
            raise self._unavailable()
        if isinstance(answer, ErrorAnswer):
            raise CallError(answer.code, answer.message, answer.data)
        return answer.result

    def _say_cancelled(self, call_id: int) -> None:
        """The other side knows the deadline, but not that the caller has given up before; nor that
        it has passed, if that side was paused."""
        if self._connection.is_in_flight(call_id):
            with contextlib.suppress(LocalProtocolError):
                self._post(Notice(CANCELLED, {"id": call_id}))
            self._outbox.flush()

    def _unavailable(self) -> CallError:
        whom = f" to {self.name}" if self.name else ""
        return CallError("unavailable", f"the connection{whom} has ended")

    async def _take_slot(self, waiter: Waiter) -> None:
        """Waits for one of the places for requests in flight, or the waiter times out. A place is
        given back by the answer, even if that comes too late for its caller: the other side counts
        the request until then."""
        if not self._ended:
            with trio.CancelScope(deadline=waiter.deadline) as scope:
                await self._slots.park()
            waiter.timed_out = scope.cancelled_caught
        if self._ended:
            raise self._unavailable()

    def _free_slot(self) -> None:
        if self._slots:
            self._slots.unpark()  # handed over directly, so no later call overtakes one that waits
        else:
            self._free_slots += 1

    def _start_call(self, method: str, params: Params, waiter: Waiter, now: float) -> int:
        remaining = min(waiter.deadline, effective_deadline()) - now
        deadline_ms = max(1, min(DEADLINE_MS_MAX, math.ceil(max(remaining, 0) * 1000)))
        call_id = self._last_id
        while True:  # an id may still be in use only after 2^32 others, or never
            call_id = (call_id + 1) & 0xFFFFFFFF
            if not self._connection.is_in_flight(call_id):
                break
        try:
            self._post(Request(call_id, method, params, deadline_ms))
        except BaseException:
            self._free_slot()
            raise
        self._last_id = call_id
        self._waiters[call_id] = waiter
        self._sweeper.watch(waiter)
        return call_id

    async def _until_settled(self, waiter: Waiter) -> None:
        """Waits for the answer. A caller that is alone reads itself: nothing is handed from task to
        task then. Several leave the reading to the reader, and their writing to the writer, which
        writes what they all said at once."""
        turns = self._turns
        task = id(trio.lowlevel.current_task())
        same, self._last_caller = task == self._last_caller, task
        if turns is not None and same and len(self._waiters) == 1 and self._may_read():
            self._read_answers(turns)
            while self._may_read() and not waiter.is_settled:
                try:
                    await waiter.wait_in_place(turns)
                except trio.ClosedResourceError:
                    break  # the reader finds it, too, and settles all that wait
                if self._may_read():
                    self._read_answers(turns)
        else:
            self._outbox.flush()
        await waiter.wait()

    def _may_read(self) -> bool:
        return self._reader_waits and not self._ended

    def _read_answers(self, turns: VchanStream) -> None:
        """A turn in the reader's place. All but answers is left for the reader itself."""
        try:
            data = self._outbox.turn(turns)
            if data is None:
                return
            if data:
                is_armed = turns.is_armed()
                self._receive(data)
                while isinstance(event := self._connection.next_event(), (Answer, ErrorAnswer)):
                    self._is_piece = False
                    self._take_answer(event)
                if not isinstance(event, NeedData):
                    self._unread = event
                elif is_armed:
                    return
        except RemoteProtocolError as error:
            self._fail(error)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # as is an end: the reader finds it, too
        self._reader_waits = False
        turns.wake()


@contextlib.asynccontextmanager
async def open_peer(
    stream: trio.abc.Stream,
    *,
    program: str,
    handlers: Mapping[str, Handler],
    notices: Mapping[str, Handler] | None = None,
    default_handler: DefaultHandler | None = None,
    name: str = "",
) -> AsyncIterator[Peer]:
    """A `Peer` that is served for as long as the `async with` lasts, and closed then.

    Raises what `Peer.run` raises, if hello fails or at the end of a block that succeeded although
    the connection had failed. Exceptions of the block come out as they are, not in a group.
    """
    peer = Peer(
        stream,
        program=program,
        handlers=handlers,
        notices=notices,
        default_handler=default_handler,
        name=name,
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
