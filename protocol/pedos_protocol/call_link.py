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
begun, and `Ended` in any case. The agent has closed the three descriptors before it says `Ended`.
To hang up, by closing or by shutting down the sending side, ends the call; in the second case the
agent still says `Ended`.
"""

from __future__ import annotations

import re
from typing import NamedTuple, TypeAlias

from .errors import LocalProtocolError, RemoteProtocolError
from .names import printable_text

VERSION = 1

#: Bytes; a `Call` with all texts at their bounds has some 900.
DATAGRAM_MAX = 4096
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


_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")


class Call(NamedTuple):
    """Call a service. An empty `target` is @default; `argument` is "+" and the service's argument;
    an empty `user` is the target's default one. `may_shut_down`: the end of the service's output is
    said by shutting that socket down, which no other program uses."""

    version: int
    may_shut_down: bool
    target: str
    service: str
    argument: str
    user: str


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

# The kinds of fields.
_U8, _U16, _FLAG, _KIND, _TARGET, _SERVICE, _ARGUMENT, _USER, _ID, _TEXT, _RULE, _HINT = range(12)
_NUMBERS = {_U8: 1, _U16: 2, _FLAG: 1, _KIND: 1}
_TEXTS = {
    _TARGET: TARGET_MAX,
    _SERVICE: SERVICE_MAX,
    _ARGUMENT: ARGUMENT_MAX,
    _USER: USER_MAX,
    _ID: ID_MAX,
    _TEXT: TEXT_MAX,
    _RULE: RULE_MAX,
    _HINT: HINT_MAX,
}

#: By type: who sends the message, and its fields.
FORMS: dict[int, tuple[str, type[Message], tuple[int, ...]]] = {
    1: (PROGRAM, Call, (_U16, _FLAG, _TARGET, _SERVICE, _ARGUMENT, _USER)),
    2: (PROGRAM, Signal, (_U8,)),
    11: (AGENT, Started, (_ID, _ID)),
    12: (AGENT, Ended, (_KIND, _U8, _U8, _TEXT, _RULE, _HINT, _ID)),
}
TYPES = {form: number for number, (_, form, _) in FORMS.items()}


def build(message: Message) -> bytes:
    """The datagram of a message. LocalProtocolError if a field has no such value."""
    kind = TYPES[type(message)]
    fields = FORMS[kind][2]
    raw = [bytes([kind])]
    raw += [_build_field(field, value) for field, value in zip(fields, message, strict=True)]
    return b"".join(raw)


def _build_field(kind: int, value: object) -> bytes:
    if kind in _TEXTS:
        encoded = str(value).encode("utf-8", "replace")
        if not is_line(str(value)) or len(encoded) > _TEXTS[kind]:
            raise LocalProtocolError(f"no text of a call: {value!r}")
        return len(encoded).to_bytes(2, "little") + encoded
    if kind == _KIND:
        if value not in KINDS:
            raise LocalProtocolError(f"no end of a call: {value!r}")
        value = KINDS.index(value) + 1
    size = _NUMBERS[kind]
    if not isinstance(value, int) or not 0 <= value < (2 if kind == _FLAG else 1 << 8 * size):
        raise LocalProtocolError(f"no number of a call: {value!r}")
    return int(value).to_bytes(size, "little")


def parse(untrusted: bytes, sender: str) -> Message:
    """The message of a datagram that `sender` sent. RemoteProtocolError."""
    form = FORMS.get(untrusted[0]) if untrusted else None
    if form is None or form[0] != sender:
        raise RemoteProtocolError(f"an unknown message: {untrusted[:1].hex() or 'no byte'}")
    if len(untrusted) > DATAGRAM_MAX:
        raise RemoteProtocolError(f"a message of {len(untrusted)} bytes")
    at = 1
    values: list[int | str | bool] = []
    for field in form[2]:
        size = _NUMBERS.get(field, 2)
        number = int.from_bytes(untrusted[at : at + size], "little")
        at += size
        if field in _TEXTS:
            if number > _TEXTS[field]:
                raise RemoteProtocolError(f"a text of {number} bytes")
            values.append(_text(untrusted[at : at + number]))
            at += number
        else:
            values.append(_value(field, number))
    if at != len(untrusted):
        raise RemoteProtocolError("a message that is cut, or has bytes left over")
    # The kinds of fields in FORMS are those of the class.
    return form[1](*values)  # type: ignore[arg-type]


def _value(field: int, number: int) -> int | str | bool:
    if field == _FLAG:
        if number > 1:
            raise RemoteProtocolError(f"a flag that is {number}")
        return bool(number)
    if field == _KIND:
        if not 1 <= number <= len(KINDS):
            raise RemoteProtocolError(f"a call that ended as {number}")
        return KINDS[number - 1]
    return number


def _text(untrusted: bytes) -> str:
    try:
        text = untrusted.decode("utf-8")
    except UnicodeDecodeError:
        raise RemoteProtocolError("a text that is not UTF-8") from None
    if not is_line(text):
        raise RemoteProtocolError("a text with control characters")
    return text


def is_line(text: str) -> bool:
    """Has `text` no control characters?"""
    return _CONTROL.search(text) is None


def fitting(text: str, limit: int) -> str:
    """`text` from any source as one of a message's texts, of at most `limit` bytes: what is no
    character for a line becomes `_`, and what is too long is cut with `...`."""
    text = printable_text(text, limit)
    raw = text.encode("utf-8", "replace")
    if len(raw) <= limit:
        return text
    return raw[: limit - 3].decode("utf-8", "ignore") + "..."
