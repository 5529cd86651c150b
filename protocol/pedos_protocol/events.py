"""Events: the input and output of a `Connection`.

Plain values: each is checked once, when it is made, and is not changed afterwards. So every event
can be sent: making an invalid one raises LocalProtocolError (for received bytes, the connection
turns that into a RemoteProtocolError). Requests, answers and notices, of which there are many, are
checked in C (native/wire/values.c), which also makes events of bytes and bytes of events
(native/wire/events.c).

attrs would write these classes in a tenth of the lines, but its import takes the command line as
long as starting Python three times. Nothing guards the attributes: a guard would cost a tenth of a
call.
"""

from __future__ import annotations

from . import _wire
from ._wire import (
    check_id,
    introduce,
    make_classes,
)
from .errors import CODES, CallError, LocalProtocolError, RemoteProtocolError
from .names import shown

TYPE_CHECKING = False  # like typing's own, whose import would double the command line's start
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

DEADLINE_MS_MAX = _wire.DEADLINE_MS_MAX  # a day
DEADLINE_MS_MAX_IN_1 = 600_000  # in version 1 of the protocol
ID_MAX = _wire.ID_MAX  # a call's id is a u32
METHOD_MAX = 64  # characters; the longest of ours has 16
PROGRAM_MAX = 64  # characters of a name and version, for logs
VERSION_MAX = 65535  # far beyond any version that will exist, and small in a log
ERROR_MESSAGE_MAX = 1024  # characters; one sentence with two device names and a rule in it
ERROR_TEXT_MAX = 1024  # characters of one text in an error's data; a rule is the longest

#: The notice {"code", "message", "data"}, after hello and before the end: this side serves nothing
#: on this connection, and why. Its fields are those of an error answer.
REFUSED = "connection.refused"

# Names that need no check: those that this program serves, see `know_methods`. None that a peer
# alone has sent, because all VMs would share the bound, and one could push the others' names out.
_known_methods: set[str] = set()


class Event:
    """What all events share: equality by value."""

    __slots__: tuple[str, ...] = ()

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in self.__slots__)

    # Maps within make most events unhashable; so none is hashable.
    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.__slots__)
        return f"{type(self).__name__}({fields})"


def is_method(text: str) -> bool:
    """Is `text` a method's name: words of a-z and `_` separated by dots, no `_` in the first?"""
    if len(text) > METHOD_MAX:
        return False
    if text.startswith(".") or text.endswith(".") or ".." in text:
        return False
    letters = text.replace(".", "").replace("_", "")
    is_plain = letters.isascii() and letters.isalpha() and letters.islower()
    return is_plain and "_" not in text.partition(".")[0]


def know_methods(methods: Iterable[str]) -> None:
    """Remembers this program's own names: that saves a check for each frame."""
    _known_methods.update(
        method for method in methods if method not in _known_methods and is_method(method)
    )


def _check_unknown_method(method: object) -> None:
    if type(method) is not str or not is_method(method):
        raise LocalProtocolError(f"{shown(method)} is not a method's name")


# Native code makes these classes, with Event as their base: see _wire.pyi.
make_classes(Event, _known_methods, _check_unknown_method)
Request = _wire.Request
Answer = _wire.Answer
Notice = _wire.Notice


class Hello(Event):
    """The first frame of each side: the versions that it speaks (lowest, highest), and its program.

    `program` is for logs alone: a VM may claim anything.
    """

    __slots__ = ("program", "versions")

    def __init__(self, versions: tuple[int, int], program: str) -> None:
        if type(versions) is not tuple or len(versions) != 2:
            raise LocalProtocolError("versions are not a pair of lowest and highest")
        low, high = versions
        if type(low) is not int or type(high) is not int or not 1 <= low <= high <= VERSION_MAX:
            raise LocalProtocolError(
                f"versions are not a range of integers from 1 to {VERSION_MAX}"
            )
        if type(program) is not str or len(program) > PROGRAM_MAX:
            raise LocalProtocolError(f"a program is not named by at most {PROGRAM_MAX} characters")
        self.versions = versions
        self.program = program


class ErrorAnswer(Event):
    """The request with this id was not done: a code of `errors.CODES`, one sentence, and data."""

    __slots__ = ("code", "data", "id", "message")

    def __init__(
        self,
        id: int,  # noqa: A002 - as above
        code: str,
        message: str,
        data: dict[str, Any],
    ) -> None:
        check_id(id)
        if type(code) is not str or code not in CODES:
            raise LocalProtocolError(f"{shown(code)} is not an error code")
        if type(message) is not str or len(message) > ERROR_MESSAGE_MAX:
            raise LocalProtocolError(
                f"an error's message is not a text of at most {ERROR_MESSAGE_MAX} characters"
            )
        if type(data) is not dict:
            raise LocalProtocolError("an error's data are not a map")
        self.id = id
        self.code = code
        self.message = message
        self.data = data


class Closed(Event):
    """The side will send nothing more."""

    __slots__ = ()


introduce(ErrorAnswer, Closed)


def refusal(params: Mapping[str, Any]) -> CallError:
    """The error in the notice REFUSED. RemoteProtocolError if it is not an error's code, message
    and data."""
    try:
        said = [params.get(field) for field in ("code", "message", "data")]
        error = ErrorAnswer(0, *said)  # type: ignore[arg-type]  # it looks at them
    except LocalProtocolError as wrong:
        raise RemoteProtocolError(f"the service refuses without a proper reason: {wrong}") from None
    return CallError(error.code, error.message, error.data)


class NeedData:
    """The type of `NEED_DATA`: there is no event until more bytes have come."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "NEED_DATA"


NEED_DATA = NeedData()
