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

An agent that hangs up without `Finished` says that the caller is gone. What is not in `FORMS`, or
comes from the wrong side, ends the connection: neither side trusts the other. No packet carries a
command: a keeper looks up by itself what a service is.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from . import names
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


class Ended(NamedTuple):
    """The main process has ended: `EXITED` with a status, or `SIGNALLED` by a signal."""

    kind: str
    status: int


Packet: TypeAlias = (
    Run | Signal | Finished | Waiting | Spawned | Connected | ForUser | NotFound | Problem | Ended
)


def _is_flag(value: object) -> bool:
    return type(value) is bool


def _is_text(value: object) -> bool:
    return isinstance(value, str) and len(value) <= TEXT_MAX and names.is_printable(value)


def _is_signal(value: object) -> bool:
    return type(value) is int and 1 <= value <= SIGNAL_MAX


def _is_status(value: object) -> bool:
    return type(value) is int and 0 <= value <= STATUS_MAX


def _is_end(value: object) -> bool:
    return value in (EXITED, SIGNALLED)


def _text_that(check: Callable[[str], bool]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, str) and check(value)


_CALL = _text_that(names.is_call_id)
_SERVICE = _text_that(names.is_service_name)
_ARGUMENT = _text_that(names.is_service_argument)
_VM = _text_that(names.is_vm_name)
_TARGET = _text_that(names.is_call_target)
_USER = _text_that(names.is_user_name)
_OPTIONS = (_is_flag, _is_flag, _is_flag)

#: By number: who sends the packet, and the check of each field.
FORMS: dict[int, tuple[str, type[Packet], tuple[Callable[[object], bool], ...]]] = {
    1: (AGENT, Run, (_CALL, _SERVICE, _ARGUMENT, _VM, _TARGET, _is_flag)),
    2: (AGENT, Signal, (_is_signal,)),
    3: (AGENT, Finished, ()),
    11: (KEEPER, Waiting, (_is_text,)),
    12: (KEEPER, Spawned, _OPTIONS),
    13: (KEEPER, Connected, _OPTIONS),
    14: (KEEPER, ForUser, (_USER,)),
    15: (KEEPER, NotFound, (_is_text,)),
    16: (KEEPER, Problem, (_is_text,)),
    17: (KEEPER, Ended, (_is_end, _is_status)),
}
_NUMBERS = {form: number for number, (_, form, _) in FORMS.items()}


def build(packet: Packet) -> bytes:
    """The datagram of a packet. LocalProtocolError if a field has no such value."""
    number = _NUMBERS[type(packet)]
    if not all(check(value) for check, value in zip(FORMS[number][2], packet, strict=True)):
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
    if len(fields) != len(checks):
        raise RemoteProtocolError(f"{packet.__name__} with {len(fields)} fields")
    for name, check, value in zip(packet._fields, checks, fields, strict=True):
        if not check(value):
            raise RemoteProtocolError(f"{packet.__name__}.{name}: {names.shown(value)}")
    made: Packet = packet(*fields)
    if isinstance(made, Ended) and made.kind == SIGNALLED and not _is_signal(made.status):
        raise RemoteProtocolError(f"Ended.status: no signal has the number {made.status}")
    return made


def said(text: str) -> str:
    """A text as a packet may carry it."""
    return names.printable_text(text, TEXT_MAX)
