"""The messages between an agent and the user's `pedos-sound`, as plain data; `native/sound/link.c`
is their other reader, and tests compare the two.

The link is a Unix socket of type SEQPACKET: one datagram is one message. A message is its type (u8)
and its fields, one after the other, integers little-endian. A text is its length in bytes (u16) and
its UTF-8, without control characters. Anything that is not in `FORMS`, has bytes left over or
comes from the wrong side ends the connection: neither side trusts the other.

`Lend` and `Borrow` come with one file descriptor, the end of a stream of frames (`sound_frames`).
The agent gives each stream its id, and no two of a connection the same.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from .errors import LocalProtocolError, RemoteProtocolError
from .names import DESCRIPTION_MAX, DEVICE_ID_MAX, is_device_id, is_identity, is_vm_name

VERSION = 1

#: Bytes. The longest possible list of devices has some 21 000.
DATAGRAM_MAX = 32 * 1024
DEVICES_MAX = 64  # capture devices of one session; a studio's desk is one device of many channels
LINE_MAX = 256  # bytes: one sentence for a person
IDENTITY_MAX = 128  # bytes: bus path, vendor, product and serial number

#: The device that is the user's choice, whatever that is just now.
DEFAULT_DEVICE = "mic"

SESSION, AGENT = "session", "agent"


class Hello(NamedTuple):
    """The first message. `program` names the sender and its version, for the log."""

    version: int
    program: str


class Server(NamedTuple):
    """`state` is "" if a sound server answers; otherwise it says why none does, for a person."""

    state: str


class Device(NamedTuple):
    """A microphone. `identity` tells it from one that takes its place under the same id."""

    id: str
    identity: str
    description: str
    is_default: bool


class Devices(NamedTuple):
    """All microphones there are: each list replaces the one before. No two have the same id."""

    devices: tuple[Device, ...]


class Ready(NamedTuple):
    """A lent device exists, or a borrowed one is there for programs to record."""

    id: int


class Failed(NamedTuple):
    """It could not be lent or borrowed, and the stream is over."""

    id: int
    why: str


class Listening(NamedTuple):
    """Whether somebody records now. Changes in quick succession are put together."""

    id: int
    is_listening: bool


class Ended(NamedTuple):
    """The stream is over: after `Close` with "", otherwise by itself."""

    id: int
    why: str


class Welcome(NamedTuple):
    """The agent's answer to `Hello`."""

    version: int


class Lend(NamedTuple):
    """Give this device, if it is still that one, to a VM."""

    id: int
    device: str
    identity: str
    vm: str
    is_muted: bool


class Borrow(NamedTuple):
    """Offer programs the microphone of another VM."""

    id: int
    vm: str
    device: str
    description: str


class Mute(NamedTuple):
    """The VM that a device is lent to shall hear it no more, or again."""

    id: int
    is_muted: bool


class Close(NamedTuple):
    """End the stream; `Ended` answers when nothing of it is left."""

    id: int


class Refused(NamedTuple):
    """Another has the microphones, or this one may not; the agent closes the connection."""

    why: str


Message: TypeAlias = (
    Hello | Server | Devices | Ready | Failed | Listening | Ended
    | Welcome | Lend | Borrow | Mute | Close | Refused
)  # fmt: skip

# The kinds of fields.
_U16, _U32, _FLAG, _LINE, _DESCRIPTION, _VM, _DEVICE, _IDENTITY, _LIST = range(9)
_NUMBERS = {_U16: 2, _U32: 4, _FLAG: 1}
_TEXTS = {
    _LINE: LINE_MAX,
    _DESCRIPTION: DESCRIPTION_MAX,
    _VM: LINE_MAX,  # their own checks are shorter
    _DEVICE: DEVICE_ID_MAX,
    _IDENTITY: IDENTITY_MAX,
}
_CHECKS = {_VM: is_vm_name, _DEVICE: is_device_id, _IDENTITY: is_identity}
_DEVICE_FIELDS = (_DEVICE, _IDENTITY, _DESCRIPTION, _FLAG)

#: By type: who sends the message, and its fields.
FORMS: dict[int, tuple[str, type[Message], tuple[int, ...]]] = {
    1: (SESSION, Hello, (_U16, _LINE)),
    2: (SESSION, Server, (_LINE,)),
    3: (SESSION, Devices, (_LIST,)),
    4: (SESSION, Ready, (_U32,)),
    5: (SESSION, Failed, (_U32, _LINE)),
    6: (SESSION, Listening, (_U32, _FLAG)),
    7: (SESSION, Ended, (_U32, _LINE)),
    11: (AGENT, Welcome, (_U16,)),
    12: (AGENT, Lend, (_U32, _DEVICE, _IDENTITY, _VM, _FLAG)),
    13: (AGENT, Borrow, (_U32, _VM, _DEVICE, _DESCRIPTION)),
    14: (AGENT, Mute, (_U32, _FLAG)),
    15: (AGENT, Close, (_U32,)),
    16: (AGENT, Refused, (_LINE,)),
}
TYPES = {form: number for number, (_, form, _) in FORMS.items()}

#: The messages that come with a file descriptor; others come with none.
WITH_DESCRIPTOR = (Lend, Borrow)


def build(message: Message) -> bytes:
    """The datagram of a message. LocalProtocolError if a field has no such value."""
    kind = TYPES[type(message)]
    raw = bytes([kind])
    for field, value in zip(FORMS[kind][2], message, strict=True):
        raw += _build_list(value) if isinstance(value, tuple) else _build_field(field, value)
    return raw


def parse(untrusted: bytes, sender: str) -> Message:
    """The message of a datagram that `sender` sent. RemoteProtocolError."""
    form = FORMS.get(untrusted[0]) if untrusted else None
    if form is None or form[0] != sender:
        raise RemoteProtocolError(f"an unknown message: {untrusted[:1].hex() or 'no byte'}")
    if len(untrusted) > DATAGRAM_MAX:
        raise RemoteProtocolError(f"a message of {len(untrusted)} bytes")
    reader = _Reader(untrusted)
    values = [reader.devices() if field == _LIST else reader.field(field) for field in form[2]]
    reader.end()
    # The kinds of fields in FORMS are those of the class.
    return form[1](*values)  # type: ignore[arg-type]


class _Reader:
    def __init__(self, untrusted: bytes) -> None:
        self._raw = untrusted
        self._at = 1

    def _take(self, count: int) -> bytes:
        taken = self._raw[self._at : self._at + count]
        if len(taken) < count:
            raise RemoteProtocolError("a message that ends in a field")
        self._at += count
        return taken

    def _number(self, size: int) -> int:
        return int.from_bytes(self._take(size), "little")

    def field(self, kind: int) -> int | str | bool:
        if kind in _TEXTS:
            return self._text(kind)
        number = self._number(_NUMBERS[kind])
        if kind != _FLAG:
            return number
        if number > 1:
            raise RemoteProtocolError(f"a flag that is {number}")
        return bool(number)

    def _text(self, kind: int) -> str:
        length = self._number(2)
        if length > _TEXTS[kind]:
            raise RemoteProtocolError(f"a text of {length} bytes")
        try:
            text = self._take(length).decode("utf-8")
        except UnicodeDecodeError as error:
            raise RemoteProtocolError("a text that is not UTF-8") from error
        if not _is_text(kind, text):
            raise RemoteProtocolError("a text that has no such form")
        return text

    def devices(self) -> tuple[Device, ...]:
        count = self._number(2)
        if count > DEVICES_MAX:
            raise RemoteProtocolError(f"a list of {count} devices")
        devices = []
        for _ in range(count):
            id_, identity, description, is_default = map(self.field, _DEVICE_FIELDS)
            devices.append(Device(str(id_), str(identity), str(description), bool(is_default)))
        if len({device.id for device in devices}) < count:
            raise RemoteProtocolError("a list with two devices of one id")
        return tuple(devices)

    def end(self) -> None:
        if self._at != len(self._raw):
            raise RemoteProtocolError("a message with bytes left over")


def _is_text(kind: int, text: str) -> bool:
    check = _CHECKS.get(kind)
    if check is not None:
        return check(text)
    return not any(character < " " or "\x7f" <= character <= "\x9f" for character in text)


def _build_field(kind: int, value: object) -> bytes:
    if isinstance(value, str) and kind in _TEXTS:
        try:
            raw = value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise LocalProtocolError("a text that has no UTF-8") from error
        if len(raw) > _TEXTS[kind] or not _is_text(kind, value):
            raise LocalProtocolError(f"no such text: {value[:LINE_MAX]!r}")
        return len(raw).to_bytes(2, "little") + raw
    size = _NUMBERS.get(kind)
    most = 1 if kind == _FLAG else 256 ** (size or 0) - 1
    if size is None or not isinstance(value, int) or not 0 <= value <= most:
        raise LocalProtocolError(f"no such value: {value!r}")
    return value.to_bytes(size, "little")


def _build_list(devices: tuple[Device, ...]) -> bytes:
    if len(devices) > DEVICES_MAX or len({device.id for device in devices}) < len(devices):
        raise LocalProtocolError("too many devices, or two of one id")
    raw = len(devices).to_bytes(2, "little")
    for device in devices:
        for field, value in zip(_DEVICE_FIELDS, device, strict=True):
            raw += _build_field(field, value)
    return raw
