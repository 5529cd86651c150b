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
)
from .codec import encode
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

TYPE_CHECKING = False  # like typing's own, whose import would double the command line's start
if TYPE_CHECKING:
    from typing import Any, NoReturn, Self

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
# Rules that need more than a state and the type of an event are beside the table
# (native/wire/turn.c), for both sides alike: an answer needs a request in flight; a request needs
# a free id and room below PENDING_MAX. And their Closed moves our side, too.
#
# The documentation's diagram (`diagram`) and the tests of refused events are made from this dict,
# so it is the only place to change.

START = _wire.START
OPEN = "OPEN"
CLOSED = "CLOSED"
ERROR = _wire.ERROR

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


# By the rule that is broken: of our side's events, and of theirs.
_OUR_WORDS = {
    ID_IN_USE: "a request with the id {} is in flight already",
    TOO_MANY_PENDING: f"{PENDING_MAX} requests are in flight already",
    NO_REQUEST: "no request with the id {} waits for an answer",
}
_THEIR_WORDS = {
    ID_IN_USE: "a second request came with the id {}",
    TOO_MANY_PENDING: f"more than {PENDING_MAX} requests are in flight",
    NO_REQUEST: "an answer came to no request: id {}",
}


class Connection(_wire.Machine):
    """One end of a connection.

    `their_hello` is None until it has arrived; `version` is the highest that both sides speak, None
    until then. `our_state` and `their_state` are keys of `TRANSITIONS`: what the side may send.
    `ours_in_flight` and `theirs_in_flight` are the numbers of a side's requests without an answer,
    and `is_in_flight(call_id)` tells whether a request of ours with this id is one. `has_more` is
    true while bytes that have arrived were not taken, as events.

    `send(event)` returns the bytes of `event` (none for Closed: that is the end of the stream).
    LocalProtocolError if it may not be sent now, or not at all. Then nothing has changed, and the
    connection is still usable.

    `receive_data(data)` takes bytes that arrived; b"" means that the stream has ended. It returns
    the events that are complete by now. Each event is decoded when it is taken: it counts as
    received only then, and others may be sent in between. After the end of the stream the last one
    is Closed. RemoteProtocolError comes in place of an event if the bytes break the protocol, and
    from then on always.

    All events have to be taken before more bytes go in: so at most one frame and one `data` are
    held. LocalProtocolError, from `receive_data`, if they were not, or after the end.

    All of this is in native/wire/connection.c; here is what is rare.
    """

    __slots__ = ("their_hello", "version")

    def __new__(cls) -> Self:
        return super().__new__(cls, TRANSITIONS)

    def __init__(self) -> None:
        self.their_hello: Hello | None = None
        self.version: int | None = None

    def next_event(self) -> Event | NeedData:
        """The next of the events that `receive_data` returns, or NEED_DATA; for callers that take
        one at a time. After the end of the stream it is Closed at every call."""
        return next(self._events(), NEED_DATA)

    def _refuse(self, is_ours: bool, rule: int, event: Any) -> NoReturn:
        name = type(event).__name__
        if rule != OUT_OF_TURN:
            why = (_OUR_WORDS if is_ours else _THEIR_WORDS)[rule].format(event.id)
        elif is_ours:
            why = f"{name} cannot be sent in state {self.our_state}"
        elif type(event) is Hello:
            why = "hello came a second time"
        else:
            why = f"{name} came in state {self.their_state}"
        raise (LocalProtocolError if is_ours else RemoteProtocolError)(why)

    def _heard(self, event: Event) -> None:
        """What an event that `_parse` has made changes here."""
        if type(event) is Hello:
            self._take_hello(event)

    def _take_hello(self, hello: Hello) -> None:
        low, high = hello.versions
        if low > VERSIONS[1] or high < VERSIONS[0]:
            raise RemoteProtocolError(
                f"versions {low} to {high} are offered, and {VERSIONS[0]} to {VERSIONS[1]} "
                "are spoken here"
            )
        self.version = min(high, VERSIONS[1])
        self.their_hello = hello

    @staticmethod
    def _frame(event: Event) -> bytes:
        """The bytes of an `event` that is no request, answer or notice."""
        if isinstance(event, ErrorAnswer):
            error = {"code": event.code, "message": event.message, "data": event.data}
            return encode([RESPONSE, event.id, error, None])
        if isinstance(event, Hello):
            hello = {"versions": list(event.versions), "program": event.program}
            return encode([NOTICE, HELLO, hello])
        return b""

    @staticmethod
    def _parse(untrusted_message: list[Any]) -> Event:
        """The event of a message that is no request, answer or notice; one of the two protocol
        errors if it has none."""
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
