from collections.abc import Callable
from typing import Any

from .events import Event

#: Bytes of the length in front of a payload.
HEADER_SIZE: int
#: Bytes of payload.
FRAME_MAX: int
#: Lists and maps within each other, the outermost array included.
DEPTH_MAX: int
#: Entries of one list or one map.
ITEMS_MAX: int
#: Lists and maps in one frame, the outermost array included.
CONTAINERS_MAX: int
#: The longest deadline of a request.
DEADLINE_MS_MAX: int
#: Requests without an answer, each way.
PENDING_MAX: int
#: The highest id of a call.
ID_MAX: int

# The first item of a frame.
REQUEST: int
RESPONSE: int
NOTICE: int

#: The second item of the first frame of each side. No notice has it as its method.
HELLO: str

# The rules by which `say` refuses.
OUT_OF_TURN: int
ID_IN_USE: int
TOO_MANY_PENDING: int
NO_REQUEST: int

def encode(message: list[Any], /) -> bytes:
    """The whole frame, length included, that says `message`.

    LocalProtocolError if it cannot be said: too large, too deep, or of a type that is not sent
    (tuples too: what is written should be what is read).
    """

def decode(payload: bytes | bytearray | memoryview, /) -> list[Any]:
    """The message in `payload` (a frame without its length); RemoteProtocolError if there is none.
    For tests: programs read frames with `next_event`, which does the same.

    Its values are of the types that `encode` takes, and otherwise still untrusted.
    """

def introduce(
    request: type[Event],
    answer: type[Event],
    error_answer: type[Event],
    notice: type[Event],
    known_methods: set[str],
    check_unknown_method: Callable[[object], None],
    /,
) -> None:
    """Tells of the classes of events. Methods in `known_methods` need no look; the function has it
    at all others, and raises if one is no method's name."""

def next_event(buffer: bytes | bytearray | memoryview, at: int, /) -> tuple[Any, int] | None:
    """The event that the frame says which begins `at` this place, and where the frame ends; None
    if it is not whole. A frame that is no request, answer or notice is its message, a list.

    RemoteProtocolError also for a size that no frame may have, before any of it has come;
    LocalProtocolError for an event that may not be made.
    """

def frame_of(event: Event, /) -> bytes | None:
    """The frame that says a request, an answer or a notice; None for others. LocalProtocolError as
    from `encode`."""

def say(table: dict[str, dict[type[Event], str]], side: Any, other: Any, event: Event, /) -> None:
    """Moves `side` on by `event`, which may be an answer to the `other`: its `state`, a key of the
    table, and the ids `in_flight` of its own requests, or of the other's. If it may not say that
    now, nothing changes, and `side.refuse(rule, event)` raises."""

# These raise LocalProtocolError if an event may not have such values.
def check_id(call_id: object, /) -> None: ...
def check_request(
    call_id: object, method: object, params: object, deadline_ms: object, /
) -> None: ...
def check_answer(call_id: object, result: object, /) -> None: ...
def check_notice(method: object, params: object, /) -> None: ...
