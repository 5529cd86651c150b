"""The messages between a program that calls a service and its VM's agent, as plain data.
`native/call/packet.c` is their other reader and writer, and tests compare the two.

The link is a Unix socket of type SEQPACKET: one datagram is one message. A message is its type (u8)
and its fields, one after the other, integers little-endian. A text is its length in bytes (u16) and
its UTF-8, without control characters. Anything that is not in `FORMS`, has bytes left over or comes
from the wrong side ends the connection: neither side trusts the other.

`Call` comes with three file descriptors: what the service's standard input is read from, and what
its standard output and error are written to. Each is a stream socket or the end of a pipe. The
program closes its own descriptors of them: only so does what the service closes end for whoever
reads or writes there.

One call at a time goes over a connection: `Call`, then from the agent `Started` if the service has
begun, and `Ended` in any case. The agent has closed the three descriptors before it says `Ended`;
of a call that did not begin, as one that is refused, it closes them soon after.
To hang up, by closing or by shutting down the sending side, ends the call; in the second case the
agent still says `Ended`. After a program's last call (`Call.is_last`) the agent hangs up itself.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from . import _wire
from .errors import RemoteProtocolError
from .names import printable_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

VERSION = 1

DATAGRAM_MAX = _wire.DATAGRAM_MAX  # bytes
DESCRIPTORS = 3

# Bytes of each text. Those of a call are longer than any name that is valid, so that a wrong one is
# refused in words by the agent, which checks it.
TARGET_MAX = 128
SERVICE_MAX = 256
ARGUMENT_MAX = 512
USER_MAX = 64
ID_MAX = 64  # a call's or a request's
TEXT_MAX = 512
RULE_MAX = 256
HINT_MAX = 256

PROGRAM, AGENT = "program", "agent"

#: How a call ends. The first two are what the service did: its exit status, or the signal that
#: killed it. The others say why there is none.
KINDS = ("exited", "signalled", "problem", "refused", "not_found", "aborted", "lost")

#: The exit status of a program whose call ended without one of the service.
PROBLEM, REFUSED, NOT_FOUND, SIGNALLED = 125, 126, 127, 128
_STATUS = {"problem": PROBLEM, "refused": REFUSED, "not_found": NOT_FOUND}


def exit_status(kind: str, status: int) -> int:
    """The exit status of a program whose call ended so; `status` is the service's, or a signal."""
    if kind == "exited":
        return status
    return SIGNALLED + status if kind == "signalled" else _STATUS.get(kind, PROBLEM)


class Call(NamedTuple):
    """Call a service. An empty `target` is @default; `argument` is "+" and the service's argument;
    an empty `user` is the target's default one. `may_shut_down`: the end of the service's output is
    said by shutting that socket down, which no other program uses. `is_last`: no other call follows
    on this connection."""

    version: int
    may_shut_down: bool
    target: str
    service: str
    argument: str
    user: str
    is_last: bool = False


class Signal(NamedTuple):
    """A signal for the service, which gets it if its configuration says so."""

    number: int


class Started(NamedTuple):
    """The service runs."""

    call: str
    request: str


class Ended(NamedTuple):
    """The call is over. `exit_status` is that of the program; `text` says what happened, where the
    service has not simply ended, and `hint` what to do next. `rule` is the rule that has decided,
    if dom0 tells this program; its log knows the call by `request`."""

    kind: str
    status: int
    exit_status: int
    text: str
    rule: str
    hint: str
    request: str


Message: TypeAlias = Call | Signal | Started | Ended

# The fields, for native/wire/packets.c: how many bytes a text has at most, or minus those of a
# number; or what the values of a byte mean, None for one that means nothing.
_U8, _U16 = -1, -2
_FLAG = (False, True)
_KIND = (None, *KINDS)

#: By type: who sends the message, and its fields.
FORMS: dict[int, tuple[str, type[Message], tuple[int | tuple[Any, ...], ...]]] = {
    1: (PROGRAM, Call, (_U16, _FLAG, TARGET_MAX, SERVICE_MAX, ARGUMENT_MAX, USER_MAX, _FLAG)),
    2: (PROGRAM, Signal, (_U8,)),
    11: (AGENT, Started, (ID_MAX, ID_MAX)),
    12: (AGENT, Ended, (_KIND, _U8, _U8, TEXT_MAX, RULE_MAX, HINT_MAX, ID_MAX)),
}
TYPES = {form: number for number, (_, form, _) in FORMS.items()}


def build(message: Message) -> bytes:
    """The datagram of a message. LocalProtocolError if a field has no such value."""
    kind = TYPES[type(message)]
    return _wire.write_packet(kind, FORMS[kind][2], message)


def parse(untrusted: bytes, sender: str) -> Message:
    """The message of a datagram that `sender` sent. RemoteProtocolError."""
    form = FORMS.get(untrusted[0]) if untrusted else None
    if form is None or form[0] != sender:
        raise RemoteProtocolError(f"an unknown message: {untrusted[:1].hex() or 'no byte'}")
    if len(untrusted) > DATAGRAM_MAX:
        raise RemoteProtocolError(f"a message of {len(untrusted)} bytes")
    # The fields in FORMS are those of the class.
    return form[1](*_wire.read_packet(form[2], untrusted))  # type: ignore[arg-type]


def fitting(text: str, limit: int) -> str:
    """`text` from any source as one of a message's texts, of at most `limit` bytes: what is no
    character for a line becomes `_`, and what is too long is cut with `...`."""
    if len(text) <= limit and text.isascii() and text.isprintable():
        return text  # as nearly all are
    text = printable_text(text, limit)
    raw = text.encode("utf-8", "replace")
    if len(raw) <= limit:
        return text
    return raw[: limit - 3].decode("utf-8", "ignore") + "..."
