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
#: Bytes of what `write_packet` writes.
DATAGRAM_MAX: int

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

class Request(Event):
    """A call that expects an answer within `deadline_ms` milliseconds (1 to 86,400,000)."""

    def __init__(
        self,
        id: int,  # noqa: A002 - the word of the wire
        method: str,
        params: dict[str, Any],
        deadline_ms: int,
    ) -> None: ...
    @property
    def id(self) -> int: ...
    @property
    def method(self) -> str: ...
    @property
    def params(self) -> dict[str, Any]: ...
    @property
    def deadline_ms(self) -> int: ...

class Answer(Event):
    """The result of the request with this id."""

    def __init__(self, id: int, result: dict[str, Any]) -> None: ...  # noqa: A002 - as above
    @property
    def id(self) -> int: ...
    @property
    def result(self) -> dict[str, Any]: ...

class Notice(Event):
    """A message to the other side that needs no answer."""

    def __init__(self, method: str, params: dict[str, Any]) -> None: ...
    @property
    def method(self) -> str: ...
    @property
    def params(self) -> dict[str, Any]: ...

def make_classes(
    event: type[Event], known_methods: set[str], check_unknown_method: Callable[[object], None], /
) -> None:
    """Makes the three classes above, with `event` as their base, and puts them into this module.
    Methods in `known_methods` need no look; the function has it at all others, and raises if one is
    no method's name."""

def introduce(error_answer: type[Event], closed: type[Event], /) -> None:
    """Tells of the other two classes of events that C has to know."""

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
    @property
    def has_more(self) -> bool: ...
    def is_in_flight(self, call_id: int, /) -> bool: ...
    def send(self, event: Event, /) -> bytes: ...
    def receive_data(self, data: bytes | bytearray | memoryview, /) -> Iterator[Event]: ...
    def _events(self) -> Iterator[Event]: ...

def check_id(call_id: object, /) -> None:
    """LocalProtocolError if a call may not have it."""

class Form:
    """Which values are right as they are, and what makes something of others. `kind` is "t" for a
    text of `low` to `high` characters of ASCII, the first of `first` and others of `rest`; "w" for
    one of `words`; "i" for an integer from `low` to `high`; "r" for a real from `low` on; "f" for a
    flag; "o" for none. `parse` returns what another value says, or raises ValueError; with None,
    all other values are wrong."""

    def __init__(
        self,
        kind: str,
        low: int = 0,
        high: int = 0,
        first: str = "",
        rest: str = "",
        words: tuple[str, ...] | None = None,
        parse: Callable[[Any], Any] | None = None,
        may_be_none: bool = False,
    ) -> None: ...

def take_list(forms: tuple[Form, ...], untrusted: tuple[Any, ...], /) -> tuple[Any, ...] | None:
    """The values as the forms have them; None if one is wrong, or if there are more or less."""

def take_map(forms: dict[str, Form], untrusted: dict[Any, Any], /) -> dict[str, Any] | None:
    """The values as the forms have them; None if the map has not exactly these names. ValueError
    begins with the name whose value is wrong."""

def read_packet(
    fields: tuple[int | tuple[Any, ...], ...], untrusted: bytes, /
) -> tuple[int | str | bool, ...]:
    """The fields after the first byte of a datagram (`call_link`). RemoteProtocolError."""

def write_packet(
    number: int, fields: tuple[int | tuple[Any, ...], ...], values: tuple[int | str | bool, ...], /
) -> bytes:
    """A datagram of a byte and these fields. LocalProtocolError if one has no such value."""
