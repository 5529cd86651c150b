from collections.abc import Callable, Iterator
from typing import Any, Self

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

# States of a side.
START: str
ERROR: str

# The rules by which `Machine._refuse` is asked to refuse.
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
    For tests: programs read frames with `Machine`, which does the same.

    Its values are of the types that `encode` takes, and otherwise still untrusted.
    """

def introduce(
    request: type[Event],
    answer: type[Event],
    error_answer: type[Event],
    notice: type[Event],
    closed: type[Event],
    known_methods: set[str],
    check_unknown_method: Callable[[object], None],
    /,
) -> None:
    """Tells of the classes of events. Methods in `known_methods` need no look; the function has it
    at all others, and raises if one is no method's name."""

class Machine:
    """What `Connection` is made of; it says what these are. Its class has four methods for what is
    rare: `_frame(event)`, the bytes of an event that is no request, answer or notice;
    `_parse(message)`, the event of a frame that is none of them; `_heard(event)`, for what such an
    event changes; and `_refuse(is_ours, rule, event)`, which raises that a side may not say it."""

    def __new__(cls, table: dict[str, dict[type[Event], str]], /) -> Self: ...
    @property
    def our_state(self) -> str: ...
    @property
    def their_state(self) -> str: ...
    @property
    def ours_in_flight(self) -> int: ...
    @property
    def theirs_in_flight(self) -> int: ...
    def is_in_flight(self, call_id: int, /) -> bool: ...
    def send(self, event: Event, /) -> bytes: ...
    def receive_data(self, data: bytes | bytearray | memoryview, /) -> Iterator[Event]: ...
    def _events(self) -> Iterator[Event]: ...

# These raise LocalProtocolError if an event may not have such values.
def check_id(call_id: object, /) -> None: ...
def check_request(
    call_id: object, method: object, params: object, deadline_ms: object, /
) -> None: ...
def check_answer(call_id: object, result: object, /) -> None: ...
def check_notice(method: object, params: object, /) -> None: ...
