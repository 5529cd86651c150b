"""Carries a call over a channel: stdin, stdout, stderr and an exit status, in C, in a thread of its
own.

`csrc/call_pump.h` is the pump and `pedos_protocol.call_frames` what it says on the channel.
"""

from __future__ import annotations

import enum
import errno
import os
from collections.abc import Callable, Hashable, Sequence
from functools import cache, partial
from typing import TYPE_CHECKING, Literal, NamedTuple

import trio
from pedos_host.passed import closer
from pedos_protocol.call_frames import SIGNAL_MAX, STATUSES, TEXT_MAX
from pedos_protocol.names import harmless_text

from ._native import ffi, lib
from .call_crew import crew

if TYPE_CHECKING:
    from _typeshed import HasFileno

    from .channel import Channel

Side = Literal["caller", "service"]
_SIDES = {"caller": lib.PV_CALL_CALLER, "service": lib.PV_CALL_SERVICE}

#: The kinds of an end, as messages name them. Beside them is "lost", which has no EXIT: the other
#: VM or its agent is gone.
KINDS = {
    lib.PV_CALL_EXITED: "exited",
    lib.PV_CALL_SIGNALLED: "signalled",
    lib.PV_CALL_PROBLEM: "problem",
    lib.PV_CALL_REFUSED: "refused",
    lib.PV_CALL_NOT_FOUND: "not_found",
    lib.PV_CALL_ABORTED: "aborted",
}
LOST = "lost"
_NUMBERS = {kind: number for number, kind in KINDS.items()}

#: What a lost call counts as: a local failure never ends in 0.
LOST_STATUS = 125


class EventKind(enum.IntEnum):
    """What a call tells while it runs."""

    # caller: the service's side has taken up the call. service: its keeper says that it runs
    STARTED = lib.PV_CALL_NOTE_STARTED
    MAIN_EXITED = lib.PV_CALL_NOTE_MAIN_EXITED  # caller; number: its status
    EXITED = lib.PV_CALL_NOTE_EXITED  # caller: EXIT came; output may still be written
    STDIN_ENDED = lib.PV_CALL_NOTE_STDIN_ENDED  # service; number: 0 if it wants no more of it
    STDOUT_ENDED = lib.PV_CALL_NOTE_STDOUT_ENDED  # service; number: 0 if its caller wants no more
    CALLER_GONE = lib.PV_CALL_NOTE_CALLER_GONE  # service: the calling program, or its agent or VM
    SIGNAL = lib.PV_CALL_NOTE_SIGNAL  # service; number: the signal


class Event(NamedTuple):
    """One of them."""

    kind: EventKind
    number: int = 0


Kinds = tuple[EventKind, ...] | frozenset[EventKind]
EVERY: Kinds = tuple(EventKind)
_KINDS = {kind.value: kind for kind in EVERY}


class Why(enum.StrEnum):
    """Why a channel can carry no other call; the value reads well in a log line."""

    FINE = ""
    PEER_CLOSED = "the other VM's agent closed the channel"
    PEER_DIED = "the other VM or its agent is gone"
    PEER_BROKEN = "the other VM published impossible ring indices"
    PEER_FLOODED = "the other VM flooded the channel with events"
    BREACH = "the other VM broke the protocol of calls"
    NO_END = "the other VM's agent did not finish the call within a second"
    CANCELLED = "cancelled"
    FAILED = "the pump failed"


_WHY = {getattr(lib, f"PV_CALL_{why.name}"): why.value for why in Why}
_BREACHES = {lib.PV_CALL_PEER_BROKEN, lib.PV_CALL_PEER_FLOODED, lib.PV_CALL_BREACH}


class Counts(NamedTuple):
    """Bytes of each stream."""

    stdin: int
    stdout: int
    stderr: int


class CallEnd(NamedTuple):
    """How a call ended.

    `kind` is one of `KINDS` or "lost"; `status` is the exit status, for "signalled" the signal;
    `text` says what a person should know, in harmless characters. `is_reusable`: the channel is
    open and may carry another call; else it was closed, and `reason` says why. `is_breach`: the
    other end did what no correct agent does.
    """

    kind: str
    status: int
    text: str
    stdin: int
    stdout: int
    stderr: int
    is_reusable: bool
    reason: str = ""
    is_breach: bool = False


def _nothing(_: Event) -> None:
    pass


_NO_STREAM = {
    lib.PV_FD_WRONG_END: "the wrong end of a pipe",
    lib.PV_FD_NO_STREAM: "a socket that carries no stream",
    lib.PV_FD_OTHER: "neither a pipe nor a socket",
}


def are_streams(stdin: int, stdout: int, stderr: int) -> bool:
    """Whether these can be the streams of a call; of others `no_stream` says what they are."""
    return lib.pv_fd_fit(stdin, stdout, stderr) != 0


def no_stream(descriptor: int, *, is_output: bool) -> str | None:
    """What a descriptor is that can be no stream of a call; None if it can. It waits for nothing,
    whatever somebody has passed."""
    kind = lib.pv_fd_look(descriptor, is_output)
    return None if kind == lib.PV_FD_FITS else _NO_STREAM[kind]


class CallPump:
    """One end of one call. Made before it runs, so that it can be told how it ends at any time."""

    def __init__(
        self,
        channel: Channel,
        side: Side,
        call: bytes,
        on_event: Callable[[Event], None] = _nothing,
    ) -> None:
        """`call` is the call's id of 16 bytes. `on_event` runs in trio's thread, and must not
        raise. ``OSError`` when no descriptor is left."""
        if len(call) != lib.PV_CALL_ID:
            raise ValueError(f"a call's id has {lib.PV_CALL_ID} bytes, and not {len(call)}")
        native = lib.pv_call_new(_SIDES[side], call)
        if not native:
            raise OSError("no memory or no descriptor for a call")
        self._native = ffi.gc(native, lib.pv_call_free)
        self._channel = channel
        self._side = side
        self._on_event = on_event
        self._keeper: HasFileno | None = (
            None  # which is not freed before the thread is done with it
        )
        #: What is told; to leave out what nobody wants spares trio's loop a wake-up each.
        self.wanted: Kinds = EVERY
        #: What is told with the call's end, or a few milliseconds after it has happened.
        self.lazily: Kinds = ()

    def begin(
        self,
        stdin: int,
        stdout: int,
        stderr: int,
        *,
        then: Callable[[CallEnd], None],
        shutdown: bool = False,
        owner: Hashable = None,
        done_with: Sequence[int] = (),
        keeper: HasFileno | None = None,
        otherwise: Callable[[int], None] | None = None,
    ) -> None:
        """Carries the call, and calls `then` when it is over, in trio's thread.

        The descriptors are FIFOs or stream sockets, and -1 where there is none: an input is then at
        its end, and an output is thrown away. They belong to the pump from here on: each is closed
        as soon as its stream is over, all are before `then`, and if this raises. Nothing about a
        description changes that other programs may share. `shutdown`: sockets are shut down as well
        as closed, because others have them open, or two of these are one.

        To close a descriptor that somebody else has passed may wait, and is the business of the
        call's thread; if there is none, that of `passed.closer`, for `owner`. It closes the at most
        three `done_with` as well, first of all.

        The service's side sends nothing before it has read the caller's first frame. So when a
        caller's call has ended with a reusable channel, the next call may begin on it at once.

        Service: with a `keeper`, the connection on which it was asked, the call follows what it
        says, and ends when the service's main process does (`csrc/call_keeper.h`). With `otherwise`
        its first word is still to come, and nothing is begun before that is `Spawned`, without
        options: `STARTED` then. So may be `Connected`: the call goes on with the service's socket
        instead of the streams, and ends with it. Any other word, or the end, stays in the
        connection, and `otherwise` is called instead of `then`, with 0, or the errno of an error
        that cannot be read again. Channel and streams are as they were then, and the streams the
        caller's once more; `done_with` is closed. The call may be begun anew. To end it while it
        waits is to end one that was never started. Until it is over, nobody else may close the
        connection or read from it; it may be shut down.

        Other descriptors are a problem with which the call ends. ``OSError`` if there is no thread:
        nothing is begun then, and `then` is not called. The loop's end is the call's.
        """
        streams = [stdin, stdout, stderr, *done_with]
        self._keeper = keeper
        if keeper is not None:
            lib.pv_keeper_follow(self._native, keeper.fileno(), otherwise is None)
        try:
            self._channel.lend()
            try:
                crew().begin(
                    self._native,
                    self._channel,
                    streams,
                    shutdown=shutdown,
                    wanted=_bits(self.wanted),
                    lazily=_bits(self.lazily),
                    hear=self._hear,
                    then=partial(self._over, then),
                    unmet=partial(self._unmet, otherwise),
                )
            except BaseException:
                self._channel.give_back()
                raise
        except BaseException:
            closer.close(owner, streams)
            lib.pv_call_release(self._native)
            raise

    def cancel(self) -> None:
        """Ends it at once, and closes the channel."""
        lib.pv_call_cancel(self._native)

    async def run(
        self,
        stdin: int,
        stdout: int,
        stderr: int,
        *,
        shutdown: bool = False,
        owner: Hashable = None,
        done_with: Sequence[int] = (),
    ) -> CallEnd:
        """As `begin`, and waits until it is over. Cancellation ends it at once."""
        task, ends = trio.lowlevel.current_task(), []

        def then(end: CallEnd) -> None:
            ends.append(end)
            trio.lowlevel.reschedule(task)

        def abort(_: object) -> trio.lowlevel.Abort:
            self.cancel()
            return trio.lowlevel.Abort.FAILED

        self.begin(
            *(stdin, stdout, stderr),
            then=then,
            shutdown=shutdown,
            owner=owner,
            done_with=done_with,
        )
        await trio.lowlevel.wait_task_rescheduled(abort)
        if ends[0].reason == Why.CANCELLED:
            await trio.lowlevel.checkpoint_if_cancelled()
        return ends[0]

    def _over(self, then: Callable[[CallEnd], None], error: int | None) -> None:
        lib.pv_call_release(self._native)
        self._channel.give_back()
        if error:  # nothing was said on the channel
            then(_not_taken(-error))
            return
        end = self._end()
        if not end.is_reusable:
            self._channel.close()
        if error is not None:
            then(end)

    def _unmet(self, otherwise: Callable[[int], None] | None, error: int) -> None:
        self._channel.give_back()
        assert otherwise is not None  # or nothing could go otherwise
        otherwise(error)

    def _hear(self, event: int, number: int) -> None:
        self._on_event(Event(_KINDS[event], number))

    def _end(self) -> CallEnd:
        result = lib.pv_call_result(self._native)
        number = result.why
        reason = _WHY[number]
        if number == lib.PV_CALL_BREACH:
            reason += f": {ffi.string(result.breach).decode()}"
        elif number == lib.PV_CALL_FAILED:
            reason += f": {os.strerror(result.error)}"
        if result.kind:
            kind, status, text = KINDS[result.kind], result.status, ""
            if result.text_length:
                raw = bytes(ffi.buffer(result.text, result.text_length))
                text = harmless_text(raw.decode("utf-8", "replace"), TEXT_MAX)
        else:
            kind, status, text = LOST, LOST_STATUS, reason
        is_fine = number == lib.PV_CALL_FINE
        native, look = self._native, lib.pv_call_bytes
        return CallEnd(
            *(kind, status, text, look(native, 0), look(native, 1), look(native, 2)),
            *(is_fine, reason, number in _BREACHES),
        )

    def counts(self) -> Counts:
        """The bytes so far."""
        native, look = self._native, lib.pv_call_bytes
        return Counts(look(native, 0), look(native, 1), look(native, 2))

    # Each of these takes effect soon, and waits for nothing.

    def signal(self, number: int) -> None:
        """Caller: a signal for the service. Those that were not sent yet are one."""
        self._is_for("caller")
        if not 1 <= number <= SIGNAL_MAX:
            raise ValueError(f"no signal has the number {number}")
        lib.pv_call_signal(self._native, number)

    def main_exited(self, status: int) -> None:
        """Service: its main process has exited, and others may still hold stdout. This only tells
        the caller, if the streams go on."""
        self._is_for("service")
        if not 0 <= status <= 255:
            raise ValueError(f"no exit status is {status}")
        lib.pv_call_main_exited(self._native, status)

    def exit(self, kind: str, status: int, text: str = "", *, now: bool = False) -> None:
        """Service: how the call ends once the service's stdout and stderr have ended; with `now`
        they are closed for that. The first time counts, before `run` too.

        With no descriptor at all (-1, -1, -1) the caller hears that nothing was started.
        """
        self._is_for("service")
        number = _NUMBERS[kind]
        least, most = STATUSES[number]
        if not least <= status <= most:
            raise ValueError(f"a call that {kind} has no status {status}")
        raw = _raw(text)
        lib.pv_call_exit(self._native, number, status, raw, len(raw), now)

    def abort(self, text: str = "") -> None:
        """Caller: the calling program is gone, and the service hears of it. Service: its streams
        end at once, and the caller hears of a problem."""
        raw = _raw(text)
        lib.pv_call_abort(self._native, raw, len(raw))

    def _is_for(self, side: Side) -> None:
        if self._side != side:
            raise ValueError(f"this is the {self._side}'s side of a call")


@cache
def _bits(events: Kinds) -> int:
    bits = 0
    for each in events:
        bits |= 1 << each
    return bits


def _not_taken(error: int) -> CallEnd:
    """The end of a call whose streams could not be taken; the channel was not touched."""
    if error == errno.EINVAL:
        text = "a call's streams are FIFOs and stream sockets"
    else:
        text = f"its streams cannot be taken: {os.strerror(error)}"
    return CallEnd("problem", LOST_STATUS, text, 0, 0, 0, is_reusable=False, reason=text)


def _raw(text: str) -> bytes:
    return harmless_text(text, TEXT_MAX).encode()
