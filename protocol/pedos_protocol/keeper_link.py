"""The packets between an agent and a keeper (`pedos-run`), as plain data.

The link is a Unix socket of type SEQPACKET, one connection a call, and one datagram a packet: a
MessagePack array of the packet's number and its fields.

    agent                    keeper
    Run, descriptors    ->
                        <-   Waiting            if the service waits for a session; then one of:
                        <-   Spawned | Connected, 1 descriptor | ForUser | NotFound | Problem
    Signal              ->                      any number of them
                        <-   Ended              after Spawned, when the main process has ended
    Finished            ->                      the call is over in good order

An agent that hangs up without `Finished` says that the caller is gone. What such a call has left
running, or a call that is to be over has not ended yet, is ended over another connection:

    Kill                ->
                        <-   Killed | Problem

What is not in `FORMS`, or comes from the wrong side, ends the connection: neither side trusts the
other. No packet carries a command: a keeper looks up by itself what a service is.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from . import forms, names
from ._wire import Form, take_list
from .codec import HEADER_SIZE, decode, encode
from .errors import LocalProtocolError, RemoteProtocolError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

#: Bytes. `Run` with a service and an argument of the longest kind has some 800, a text 1,000.
PACKET_MAX = 4096
TEXT_MAX = 240  # characters: a sentence with a path in it; a caller gets 200 of them
#: Of Linux (signal(7)).
SIGNAL_MAX = 64
STATUS_MAX = 255

#: How many descriptors come with `Run`: stdin, stdout and stderr of the service, in this order; or
#: without the last, and then what it says there goes to the keeper's log.
DESCRIPTORS = (2, 3)

AGENT, KEEPER = "agent", "keeper"

#: How a main process ends.
EXITED, SIGNALLED = "exited", "signalled"


class Run(NamedTuple):
    """Run a service for a call of VM `source`. `argument` is "+" and the argument.

    `target` is what the caller had asked for, "" if that is not told. `is_forced`: the user of this
    keeper comes from the service's configuration (`ForUser`), which the keeper has to confirm.
    """

    call: str
    service: str
    argument: str
    source: str
    target: str
    is_forced: bool


class Signal(NamedTuple):
    """Send this signal to the service; SIGKILL ends all that the call has started."""

    number: int


class Finished(NamedTuple):
    """The call is over. What the service has left running stays."""


class Kill(NamedTuple):
    """End all that this call has started and left running."""

    call: str


class Waiting(NamedTuple):
    """The service waits for a session of its user; `text` says so, for a person."""

    text: str


class Spawned(NamedTuple):
    """The service is a process now. The options are its configuration's (`service_config`)."""

    exit_on_client_eof: bool
    exit_on_service_eof: bool
    forward_signals: bool


class Connected(NamedTuple):
    """The service is at the other end of the socket that comes with this; options as above."""

    exit_on_client_eof: bool
    exit_on_service_eof: bool
    forward_signals: bool


class ForUser(NamedTuple):
    """The configuration has the service run as another user: ask that user's keeper."""

    user: str


class NotFound(NamedTuple):
    """There is no such service."""

    text: str


class Problem(NamedTuple):
    """The service cannot be run; `text` says why, and names the file that is at fault."""

    text: str


class Killed(NamedTuple):
    """Nothing of that call runs any more."""


class Ended(NamedTuple):
    """The main process has ended: `EXITED` with a status, or `SIGNALLED` by a signal."""

    kind: str
    status: int


Packet: TypeAlias = (
    Run
    | Signal
    | Finished
    | Kill
    | Waiting
    | Spawned
    | Connected
    | ForUser
    | NotFound
    | Problem
    | Killed
    | Ended
)


def _form(plain: forms.Plain, parse: Callable[[object], object] | None = None) -> Form:
    return Form(*plain, parse=parse)


def _printable(untrusted: object) -> str:
    if not isinstance(untrusted, str) or len(untrusted) > TEXT_MAX:
        raise ValueError("no text of at most so many characters")
    if not names.is_printable(untrusted):
        raise ValueError("a text with characters that are not visible")
    return untrusted


_FLAG = _form(forms.FLAG)
_OPTIONS = (_FLAG, _FLAG, _FLAG)
_TEXT = _form(forms.line(TEXT_MAX), _printable)
_RUN = (
    _form(forms.CALL_ID),
    _form(forms.SERVICE_NAME),
    _form(forms.SERVICE_ARGUMENT),
    _form(forms.VM_NAME),
    _form(forms.CALL_TARGET, names.parse_call_target),
    _FLAG,
)
_SIGNAL = _form(forms.integer(1, SIGNAL_MAX))
_END = (_form(forms.one_of((EXITED, SIGNALLED))), _form(forms.integer(0, STATUS_MAX)))

#: By number: who sends the packet, and the form of each field.
FORMS: dict[int, tuple[str, type[Packet], tuple[Form, ...]]] = {
    1: (AGENT, Run, _RUN),
    2: (AGENT, Signal, (_SIGNAL,)),
    3: (AGENT, Finished, ()),
    4: (AGENT, Kill, (_form(forms.CALL_ID),)),
    11: (KEEPER, Waiting, (_TEXT,)),
    12: (KEEPER, Spawned, _OPTIONS),
    13: (KEEPER, Connected, _OPTIONS),
    14: (KEEPER, ForUser, (_form(forms.USER_NAME),)),
    15: (KEEPER, NotFound, (_TEXT,)),
    16: (KEEPER, Problem, (_TEXT,)),
    17: (KEEPER, Ended, _END),
    18: (KEEPER, Killed, ()),
}
_NUMBERS = {form: number for number, (_, form, _) in FORMS.items()}


def build(packet: Packet) -> bytes:
    """The datagram of a packet. LocalProtocolError if a field has no such value."""
    number = _NUMBERS[type(packet)]
    if take_list(FORMS[number][2], packet) is None:
        raise LocalProtocolError(f"no such packet: {packet!r}")
    return encode([number, *packet])[HEADER_SIZE:]


def parse(untrusted: bytes, sender: str) -> Packet:
    """The packet of a datagram that `sender` sent. RemoteProtocolError."""
    if len(untrusted) > PACKET_MAX:
        raise RemoteProtocolError(f"a packet of more than {PACKET_MAX} bytes")
    number, *fields = decode(untrusted) or [None]
    form: Any = FORMS.get(number) if type(number) is int else None
    if form is None or form[0] != sender:
        raise RemoteProtocolError(f"a packet that the {sender} does not send: {number!r:.40}")
    _, packet, checks = form
    values = take_list(checks, tuple(fields))
    if values is None:
        raise RemoteProtocolError(_what_is_wrong(packet, checks, fields))
    if packet is Ended and values[0] == SIGNALLED and take_list((_SIGNAL,), values[1:]) is None:
        raise RemoteProtocolError(f"Ended.status: no signal has the number {values[1]}")
    made: Packet = packet(*values)
    return made


def _what_is_wrong(packet: type[Packet], checks: tuple[Form, ...], fields: list[Any]) -> str:
    if len(fields) == len(checks):
        for name, check, value in zip(packet._fields, checks, fields, strict=True):
            if take_list((check,), (value,)) is None:
                return f"{packet.__name__}.{name}: {names.shown(value)}"
    return f"{packet.__name__} with {len(fields)} fields"


def said(text: str) -> str:
    """A text as a packet may carry it."""
    return names.printable_text(text, TEXT_MAX)
