"""One end of a connection, as a state machine without any I/O.

Bytes go in by `receive_data`, events come out of `next_event`; events go in by `send`, bytes
come out of it. Both ends are the same: either may call the other.
"""

from __future__ import annotations

from .codec import FRAME_MAX, HEADER_SIZE, decode, encode, frame_size
from .errors import LocalProtocolError, RemoteProtocolError
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

TYPE_CHECKING = False  # as typing's own, whose import would double the command line's start
if TYPE_CHECKING:
    from typing import Any

#: The versions of the protocol that this module speaks: lowest, highest.
VERSIONS = (1, 1)

#: Requests without an answer, each way. Enough that no honest program waits for it, few enough
#: that what a VM can make dom0 remember stays small.
PENDING_MAX = 128

# The theory
# ----------
# A connection is two one-way conversations over one stream: ours to them, and theirs to us. Each
# goes through the states below by itself, and an event moves only the one of the side that sent
# it. Neither side is the server: a VM asks dom0 to attach a device, and dom0 asks the VM to export
# it, over the same connection and by the same rules, so one table serves both directions.
#
#   START   nothing was said. Hello is the only frame there is: a side that does not begin with it
#           is not speaking this protocol, or tries to be heard before its version is known.
#           To end without a word is allowed (a probe of whether anyone listens).
#   OPEN    hello was said. A side need not have heard the other's hello to make its first call;
#           then it has to make it in the lowest version that it offered. This saves a command
#           line one turn. A second hello is refused: the version never changes.
#   CLOSED  the side has ended: by Closed, which on the wire is the end of the stream. Their end is
#           ours as well: a vchan has no half-close, and on a socket a program that has said its
#           last word cannot be told from one that was killed, for which nothing may go on. So no
#           answer is given any more, and what they asked for is cancelled, as by call.cancelled.
#   ERROR   the side broke the protocol, here or in its bytes. There is no way out. Only their side
#           gets here: a wrong event of ours is refused before a byte of it is written.
#
# What depends on more than a state and the type of an event is not in the table but beside it:
# an answer needs a request in flight, a request an id that is free and room below PENDING_MAX, and
# their Closed moves our side, too.
#
# The documentation's diagram (`diagram`) and the tests of what is refused are made from this
# dict, so it is the only place to change.

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

_REQUEST = 0  # first item of a frame, as in MessagePack-RPC
_RESPONSE = 1
_NOTICE = 2


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


class Connection:
    """One end of a connection.

    `our_state` and `their_state` are keys of `TRANSITIONS`. `their_hello` is None until it came;
    `version` is the highest that both sides speak, None until then.
    """

    def __init__(self) -> None:
        self.our_state = START
        self.their_state = START
        self.their_hello: Hello | None = None
        self.version: int | None = None
        # What came and was not taken out yet starts at _taken. It is the caller's bytes as long as
        # they hold whole frames, and a buffer that grows once a frame comes in pieces.
        self._buffer: bytes | bytearray = b""
        self._taken = 0
        self._eof = False
        self._ours_in_flight: set[int] = set()
        self._theirs_in_flight: set[int] = set()
        self._failure = ""

    @property
    def ours_in_flight(self) -> int:
        """How many of our requests have no answer yet."""
        return len(self._ours_in_flight)

    @property
    def theirs_in_flight(self) -> int:
        """How many of their requests have no answer yet."""
        return len(self._theirs_in_flight)

    def is_in_flight(self, call_id: int) -> bool:
        """Does a request of ours with this id wait for its answer?"""
        return call_id in self._ours_in_flight

    def send(self, event: Event) -> bytes:
        """The bytes that say `event` (none for Closed: that is the end of the stream).

        LocalProtocolError if it may not be said now or cannot be said at all. Then nothing has
        changed, and the connection is as good as before.
        """
        target = TRANSITIONS[self.our_state].get(type(event))
        if target is None:
            raise LocalProtocolError(
                f"{type(event).__name__} cannot be sent in state {self.our_state}"
            )
        frame = b""
        if isinstance(event, Request):
            if event.id in self._ours_in_flight:
                raise LocalProtocolError(f"a request with the id {event.id} is in flight already")
            if len(self._ours_in_flight) >= PENDING_MAX:
                raise LocalProtocolError(f"{PENDING_MAX} requests are in flight already")
            params = {**event.params, "deadline_ms": event.deadline_ms}
            frame = encode([_REQUEST, event.id, event.method, params])
            self._ours_in_flight.add(event.id)
        elif isinstance(event, (Answer, ErrorAnswer)):
            if event.id not in self._theirs_in_flight:
                raise LocalProtocolError(f"no request with the id {event.id} waits for an answer")
            if isinstance(event, Answer):
                frame = encode([_RESPONSE, event.id, None, event.result])
            else:
                error = {"code": event.code, "message": event.message, "data": event.data}
                frame = encode([_RESPONSE, event.id, error, None])
            self._theirs_in_flight.remove(event.id)
        elif isinstance(event, Notice):
            frame = encode([_NOTICE, event.method, event.params])
        elif isinstance(event, Hello):
            hello = {"versions": list(event.versions), "program": event.program}
            frame = encode([_NOTICE, "hello", hello])
        self.our_state = target
        return frame

    def receive_data(self, data: bytes | bytearray | memoryview) -> None:
        """Takes bytes that came; none at all (b"") says that the stream has ended.

        Events have to be taken out, until NEED_DATA, before more goes in: so never more than one
        frame and one `data` is held. LocalProtocolError if they were not, or after the end.
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

    def next_event(self) -> Event | NeedData:
        """The next event that has come whole, or NEED_DATA.

        After the end of the stream it is Closed, however often one asks. RemoteProtocolError if
        what came breaks the protocol, and from then on always.
        """
        if self.their_state == ERROR:
            raise RemoteProtocolError(self._failure)
        try:
            untrusted_payload = self._next_payload()
            if untrusted_payload is None:
                if not self._eof:
                    return NEED_DATA
                event: Event = Closed()
            else:
                untrusted_message = decode(untrusted_payload)
                event = _parse(untrusted_message, is_first=self.their_state == START)
            self._accept(event)
        except (RemoteProtocolError, LocalProtocolError) as error:
            # Local: an event that refused to be made.
            self.their_state = ERROR
            self._failure = str(error)
            self._buffer = b""
            self._taken = 0
            raise RemoteProtocolError(self._failure) from None
        return event

    def _next_payload(self) -> bytes | bytearray | None:
        """What the next frame holds; None if none is whole."""
        buffer = self._buffer
        start = self._taken
        left = len(buffer) - start
        if left >= HEADER_SIZE:
            end = start + frame_size(buffer[start : start + HEADER_SIZE])
            if end <= len(buffer):
                self._taken = end
                return buffer[start + HEADER_SIZE : end]
        if left == 0:
            self._buffer = b""  # an idle connection keeps nothing
            self._taken = 0
        elif self._eof:
            raise RemoteProtocolError("the stream ended within a frame")
        return None

    def _accept(self, event: Event) -> None:
        """Moves their state; RemoteProtocolError if `event` may not come now."""
        target = TRANSITIONS[self.their_state].get(type(event))
        if target is None:
            raise RemoteProtocolError(f"{type(event).__name__} came in state {self.their_state}")
        if isinstance(event, Request):
            if event.id in self._theirs_in_flight:
                raise RemoteProtocolError(f"a second request came with the id {event.id}")
            if len(self._theirs_in_flight) >= PENDING_MAX:
                raise RemoteProtocolError(f"more than {PENDING_MAX} requests are in flight")
            self._theirs_in_flight.add(event.id)
        elif isinstance(event, (Answer, ErrorAnswer)):
            if event.id not in self._ours_in_flight:
                raise RemoteProtocolError(f"an answer came to no request: id {event.id}")
            self._ours_in_flight.remove(event.id)
        elif isinstance(event, Hello):
            low, high = event.versions
            if low > VERSIONS[1] or high < VERSIONS[0]:
                raise RemoteProtocolError(
                    f"versions {low} to {high} are offered, and {VERSIONS[0]} to {VERSIONS[1]} "
                    "are spoken here"
                )
            self.version = min(high, VERSIONS[1])
            self.their_hello = event
        elif isinstance(event, Closed):
            self.our_state = CLOSED
        self.their_state = target


def _parse(untrusted_message: list[Any], *, is_first: bool) -> Event:
    """The event that a decoded frame says; one of the two protocol errors if it says none."""
    untrusted_kind = untrusted_message[0] if untrusted_message else None
    # By == alone, False would be 0, True 1 and 2.0 a notice.
    if type(untrusted_kind) is int:
        if untrusted_kind == _NOTICE and len(untrusted_message) == 3:
            _, untrusted_method, untrusted_params = untrusted_message
            if untrusted_method != "hello":
                return Notice(untrusted_method, untrusted_params)
            if not is_first:
                raise RemoteProtocolError("hello came a second time")
            return _parse_hello(untrusted_params)
        if len(untrusted_message) == 4:
            _, untrusted_id, untrusted_second, untrusted_third = untrusted_message
            if untrusted_kind == _REQUEST:
                return _parse_request(untrusted_id, untrusted_second, untrusted_third)
            if untrusted_kind == _RESPONSE and untrusted_second is None:
                return Answer(untrusted_id, untrusted_third)
            is_error = untrusted_third is None and type(untrusted_second) is dict
            if untrusted_kind == _RESPONSE and is_error:
                return _parse_error(untrusted_id, untrusted_second)
    raise RemoteProtocolError("a frame is neither a request, nor a response, nor a notice")


def _parse_request(untrusted_id: Any, untrusted_method: Any, untrusted_params: Any) -> Request:
    if type(untrusted_params) is not dict:
        raise RemoteProtocolError("a request's parameters are not a map")
    untrusted_deadline = untrusted_params.pop("deadline_ms", None)
    return Request(untrusted_id, untrusted_method, untrusted_params, untrusted_deadline)


def _parse_error(untrusted_id: Any, untrusted_error: dict[str, Any]) -> ErrorAnswer:
    """Its words go to logs, terminals and other errors. They are made fit for that here, once and
    for all: one printable line each, also those in the data."""
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
    """Keys that are not known are passed over: this is the one frame that is read before the
    version is known, so later versions may say more in it."""
    if type(untrusted_hello) is not dict:
        raise RemoteProtocolError("hello does not hold a map")
    untrusted_versions = untrusted_hello.get("versions")
    untrusted_program = untrusted_hello.get("program")
    if type(untrusted_versions) is not list:
        raise RemoteProtocolError("hello says no versions")
    if type(untrusted_program) is not str:
        raise RemoteProtocolError(f"hello says {shown(untrusted_program)} instead of a program")
    return Hello(tuple(untrusted_versions), harmless_text(untrusted_program, PROGRAM_MAX))
