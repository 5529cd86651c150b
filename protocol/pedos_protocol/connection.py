"""One end of a connection, as a state machine without any I/O.

Bytes go into `receive_data`, which returns their events; events go into `send`, which returns their
bytes. Both ends are the same: either may call the other.
"""

from __future__ import annotations

from . import _wire
from ._wire import (
    HELLO,
    ID_IN_USE,
    NO_REQUEST,
    NOTICE,
    OUT_OF_TURN,
    REQUEST,
    RESPONSE,
    TOO_MANY_PENDING,
    frame_of,
    next_event,
    say,
)
from .codec import FRAME_MAX, HEADER_SIZE, encode
from .errors import LocalProtocolError, ProtocolError, RemoteProtocolError
from .events import (
    ERROR_MESSAGE_MAX,
    ERROR_TEXT_MAX,
    NEED_DATA,
    PROGRAM_MAX,
    Answer,
    Closed,
    ErrorAnswer,
    Event,
    Hello,
    NeedData,
    Notice,
    Request,
)
from .names import harmless_text, printable_value, shown

TYPE_CHECKING = False  # like typing's own, whose import would double the command line's start
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, ClassVar, NoReturn

#: The versions of the protocol that this module speaks: lowest, highest. The schemas mark what came
#: with a later one than the first (`fields.since`, `Spec.since`).
VERSIONS = (1, 2)

#: Requests without an answer, each way.
PENDING_MAX = _wire.PENDING_MAX

# The theory
# ----------
# A connection is two one-way conversations over one stream: ours to them, and theirs to us. Each
# goes through the states below by itself, and an event moves only the conversation of the side
# that sent it. Neither side is the server: a VM asks dom0 to attach a device, and dom0 asks the VM
# to export it, over the same connection and by the same rules, so one table serves both directions.
#
#   START   The side has sent nothing. Only Hello is allowed: a side that does not begin with it
#           speaks another protocol, or sends before its version is known. A side may end without
#           a word (a probe of whether a program listens).
#   OPEN    The side has sent hello. It need not have received the other's hello before its first
#           call; it then has to make that call in the lowest version that it offered. This saves
#           a command line one turn. A second hello is refused: the version never changes.
#   CLOSED  The side has ended, by Closed, which on the wire is the end of the stream. Their end is
#           ours as well: a vchan has no half-close, and a socket does not distinguish a program
#           that has finished sending from one that was killed, for which no work may continue. So
#           their requests get no answer any more, and are cancelled, as by call.cancelled.
#   ERROR   The side broke the protocol, here or in its bytes. No event leads out. Only their side
#           gets here: a wrong event of ours is refused before a byte of it is written.
#
# Rules that need more than a state and the type of an event are beside the table, in `say`
# (native/wire/turn.c), for both sides alike: an answer needs a request in flight; a request needs
# a free id and room below PENDING_MAX. And their Closed moves our side, too.
#
# The documentation's diagram (`diagram`) and the tests of refused events are made from this dict,
# so it is the only place to change.

START = "START"
OPEN = "OPEN"
CLOSED = "CLOSED"
ERROR = "ERROR"

TRANSITIONS: dict[str, dict[type[Event], str]] = {
    START: {
        Hello: OPEN,
        Closed: CLOSED,
    },
    OPEN: {
        Request: OPEN,
        Answer: OPEN,
        ErrorAnswer: OPEN,
        Notice: OPEN,
        Closed: CLOSED,
    },
    CLOSED: {
        Closed: CLOSED,
    },
    ERROR: {},
}


def diagram() -> str:
    """`TRANSITIONS` as a Mermaid state diagram, for the documentation."""
    lines = ["stateDiagram-v2", f"    [*] --> {START}"]
    for state, transitions in TRANSITIONS.items():
        by_target: dict[str, list[str]] = {}
        for event_type, target in transitions.items():
            by_target.setdefault(target, []).append(event_type.__name__)
        for target, names in by_target.items():
            lines.append(f"    {state} --> {target}: {', '.join(names)}")
    for state in TRANSITIONS:
        if state != ERROR:
            lines.append(f"    {state} --> {ERROR}: anything else")
    return "\n".join(lines) + "\n"


class _Side:
    """What one side has sent so far, and so what it may send next."""

    __slots__ = ("in_flight", "state")

    error: type[ProtocolError]
    words: ClassVar[dict[int, str]]  # by the rule that is broken

    def __init__(self) -> None:
        self.state = START
        self.in_flight: set[int] = set()  # ids of its requests that have no answer yet

    def refuse(self, rule: int, event: Any) -> NoReturn:
        """Raises `error`: this side may not say `event` now."""
        if rule == OUT_OF_TURN:
            raise self.error(self.out_of_turn(type(event)))
        raise self.error(self.words[rule].format(event.id))

    def out_of_turn(self, event_type: type[Event]) -> str:
        """The sentence that such an event is not allowed in this state."""
        raise NotImplementedError


class _Ours(_Side):
    __slots__ = ()

    error = LocalProtocolError
    words: ClassVar = {
        ID_IN_USE: "a request with the id {} is in flight already",
        TOO_MANY_PENDING: f"{PENDING_MAX} requests are in flight already",
        NO_REQUEST: "no request with the id {} waits for an answer",
    }

    def out_of_turn(self, event_type: type[Event]) -> str:
        return f"{event_type.__name__} cannot be sent in state {self.state}"


class _Theirs(_Side):
    __slots__ = ()

    error = RemoteProtocolError
    words: ClassVar = {
        ID_IN_USE: "a second request came with the id {}",
        TOO_MANY_PENDING: f"more than {PENDING_MAX} requests are in flight",
        NO_REQUEST: "an answer came to no request: id {}",
    }

    def out_of_turn(self, event_type: type[Event]) -> str:
        if event_type is Hello:
            return "hello came a second time"
        return f"{event_type.__name__} came in state {self.state}"


class Connection:
    """One end of a connection.

    `their_hello` is None until it has arrived; `version` is the highest that both sides speak, None
    until then.
    """

    __slots__ = (
        "_buffer",
        "_eof",
        "_failure",
        "_ours",
        "_taken",
        "_theirs",
        "their_hello",
        "version",
    )

    def __init__(self) -> None:
        self.their_hello: Hello | None = None
        self.version: int | None = None
        self._ours = _Ours()
        self._theirs = _Theirs()
        # Bytes that have arrived and were not taken yet start at _taken. They are the caller's own
        # object as long as it holds whole frames, and a buffer that grows once a frame arrives in
        # pieces.
        self._buffer: bytes | bytearray = b""
        self._taken = 0
        self._eof = False
        self._failure = ""

    @property
    def our_state(self) -> str:
        """A key of `TRANSITIONS`: what this side may send."""
        return self._ours.state

    @property
    def their_state(self) -> str:
        """A key of `TRANSITIONS`: what the other side may send."""
        return self._theirs.state

    @property
    def ours_in_flight(self) -> int:
        """The number of our requests without an answer."""
        return len(self._ours.in_flight)

    @property
    def theirs_in_flight(self) -> int:
        """The number of their requests without an answer."""
        return len(self._theirs.in_flight)

    def is_in_flight(self, call_id: int) -> bool:
        """Does a request of ours with this id wait for its answer?"""
        return call_id in self._ours.in_flight

    def send(self, event: Event) -> bytes:
        """The bytes of `event` (none for Closed: that is the end of the stream).

        LocalProtocolError if it may not be sent now, or not at all. Then nothing has changed, and
        the connection is still usable.
        """
        frame = frame_of(event)
        if frame is None:
            frame = _frame(event)
        say(TRANSITIONS, self._ours, self._theirs, event)
        return frame

    def receive_data(self, data: bytes | bytearray | memoryview) -> Iterator[Event]:
        """Takes bytes that arrived; b"" means that the stream has ended. Returns the events that
        are complete by now.

        Each event is decoded when it is taken: it counts as received only then, and others may be
        sent in between. After the end of the stream the last one is Closed. RemoteProtocolError
        comes in place of an event if the bytes break the protocol, and from then on always.

        All events have to be taken before more bytes go in: so at most one frame and one `data` are
        held. LocalProtocolError, from this call, if they were not, or after the end.
        """
        if self._eof:
            raise LocalProtocolError("data came after the end of the stream")
        left = len(self._buffer) - self._taken
        if left >= HEADER_SIZE + FRAME_MAX:
            raise LocalProtocolError("events that came have to be taken out before more data")
        if not data:
            self._eof = True
        elif left == 0:
            self._buffer = bytes(data)
            self._taken = 0
        else:
            if type(self._buffer) is not bytearray:
                self._buffer = bytearray(self._buffer)
            del self._buffer[: self._taken]
            self._taken = 0
            self._buffer += data
        return self._events()

    def next_event(self) -> Event | NeedData:
        """The next of the events that `receive_data` returns, or NEED_DATA; for callers that take
        one at a time. After the end of the stream it is Closed at every call."""
        return next(self._events(), NEED_DATA)

    def _events(self) -> Iterator[Event]:
        theirs = self._theirs
        if theirs.state == ERROR:
            raise RemoteProtocolError(self._failure)
        try:
            while (heard := next_event(self._buffer, self._taken)) is not None:
                event, self._taken = heard
                if type(event) is list:
                    event = _parse(event)
                say(TRANSITIONS, theirs, self._ours, event)
                if type(event) is Hello:
                    self._take_hello(event)
                yield event
            if self._taken == len(self._buffer):
                self._buffer = b""  # an idle connection keeps nothing
                self._taken = 0
            elif self._eof:
                raise RemoteProtocolError("the stream ended within a frame")
            if self._eof:
                event = Closed()
                say(TRANSITIONS, theirs, self._ours, event)
                self._ours.state = CLOSED
                yield event
        except (RemoteProtocolError, LocalProtocolError) as error:
            # Local: an event that cannot be made.
            theirs.state = ERROR
            self._failure = str(error)
            self._buffer = b""
            self._taken = 0
            raise RemoteProtocolError(self._failure) from None

    def _take_hello(self, hello: Hello) -> None:
        low, high = hello.versions
        if low > VERSIONS[1] or high < VERSIONS[0]:
            raise RemoteProtocolError(
                f"versions {low} to {high} are offered, and {VERSIONS[0]} to {VERSIONS[1]} "
                "are spoken here"
            )
        self.version = min(high, VERSIONS[1])
        self.their_hello = hello


def _frame(event: Event) -> bytes:
    """The bytes of an `event` that `frame_of` does not know."""
    if isinstance(event, ErrorAnswer):
        error = {"code": event.code, "message": event.message, "data": event.data}
        return encode([RESPONSE, event.id, error, None])
    if isinstance(event, Hello):
        hello = {"versions": list(event.versions), "program": event.program}
        return encode([NOTICE, HELLO, hello])
    return b""


def _parse(untrusted_message: list[Any]) -> Event:
    """The event of a message that `next_event` has left; one of the two protocol errors if it has
    none."""
    untrusted_kind = untrusted_message[0] if untrusted_message else None
    # Compared with == alone, False would be 0, True 1 and 2.0 a notice.
    if type(untrusted_kind) is int:
        if len(untrusted_message) == 4:
            _, untrusted_id, untrusted_second, untrusted_third = untrusted_message
            if untrusted_kind == REQUEST:
                raise RemoteProtocolError("a request's parameters are not a map")
            is_error = untrusted_third is None and type(untrusted_second) is dict
            if untrusted_kind == RESPONSE and is_error:
                return _parse_error(untrusted_id, untrusted_second)
        elif untrusted_message[:2] == [NOTICE, HELLO] and len(untrusted_message) == 3:
            return _parse_hello(untrusted_message[2])
    raise RemoteProtocolError("a frame is neither a request, nor a response, nor a notice")


def _parse_error(untrusted_id: Any, untrusted_error: dict[str, Any]) -> ErrorAnswer:
    """Its texts go to logs, terminals and other errors. They are made harmless here, once and for
    all: one printable line each, also those in the data."""
    if untrusted_error.keys() != {"code", "message", "data"}:
        raise RemoteProtocolError("an error does not consist of code, message and data")
    untrusted_message = untrusted_error["message"]
    is_bounded = isinstance(untrusted_message, str) and len(untrusted_message) <= ERROR_MESSAGE_MAX
    return ErrorAnswer(
        untrusted_id,
        untrusted_error["code"],
        printable_value(untrusted_message, ERROR_MESSAGE_MAX) if is_bounded else untrusted_message,
        printable_value(untrusted_error["data"], ERROR_TEXT_MAX),
    )


def _parse_hello(untrusted_hello: Any) -> Hello:
    """Unknown keys are ignored: only this frame is read before the version is known, so later
    versions may add keys to it."""
    if type(untrusted_hello) is not dict:
        raise RemoteProtocolError("hello does not hold a map")
    untrusted_versions = untrusted_hello.get("versions")
    untrusted_program = untrusted_hello.get("program")
    if type(untrusted_versions) is not list:
        raise RemoteProtocolError("hello says no versions")
    if type(untrusted_program) is not str:
        raise RemoteProtocolError(f"hello says {shown(untrusted_program)} instead of a program")
    return Hello(tuple(untrusted_versions), harmless_text(untrusted_program, PROGRAM_MAX))
