"""The types of the attributes of messages, with one parse function for each.

A parse function takes an untrusted value and returns a typed one, or raises ValueError with a few
words on the error. `messages` names the types; nothing else reads values from a connection.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable
from functools import cache
from typing import Annotated, Any, Literal, Union

import attr

from . import device_classes, forms, names
from ._wire import Form, take_map
from .device_classes import OPTION_NAME_MAX, OPTION_VALUE_MAX, OPTIONS_MAX
from .errors import CODES
from .forms import Plain
from .frozen import fields_of, is_frozen

# A VM reports its devices in pages of one frame each.
DEVICES_MAX = 4096  # of one VM: a folder of disk images; dom0 keeps some KiB for each
PAGE_DEVICES_MAX = 128  # of one page: dom0 reads as many in a millisecond
REPORT_PAGES_MAX = 40  # 32 full ones, and some for texts of the longest kind
PREFERRED_MAX = 256  # devices that dom0 asks a VM to report before others; the list fits a frame
SHARES_MAX = 16  # of one device: others with the same data; loop devices of one file are a few
ATTACHMENTS_MAX = 64  # of one VM, lent or borrowed; vchan's grants allow about 31 channels
HANDOVER_MAX = 64  # characters; the numbers of a USB device are twelve
ERRORS_MAX = 64  # of policy files in a status; no one reads more than a screen of them
TEXT_MAX = 512  # characters of a text from dom0: a rule, a path, a sentence
WORD_MAX = 512  # characters of one column of a rule: longer than any that a policy may have
TAGS_MAX = 64  # of one VM; more than this is a program that tags without end
DOMID_MAX = 0x7FEF  # xen/include/public/xen.h: DOMID_FIRST_RESERVED is 0x7FF0
DATA_PORT_FIRST = 16  # dom0 assigns from here on; those below have a fixed meaning, as control's 1
PORT_MAX = 2**31 - 1  # part of a path in xenstore on Xen; any sensible path is shorter
ORDER_MIN, ORDER_MAX = 10, 20  # log2 of a ring's bytes: what libxenvchan's layout has room for
STATUS_MAX = 255  # of a program that exited; signals have smaller numbers
NATURAL_MAX = 2**63 - 1  # what SQLite and off_t hold
RECORD_MAX = 16 * 1024  # characters of a line of the audit log, as the service bounds them
RECORDS_MAX = 200  # lines of the audit log in an answer; a screen shows some fifty

Parse = Callable[[Any], Any]


def _text(untrusted: Any) -> str:
    if type(untrusted) is not str:
        raise ValueError(f"text is expected, not {names.shown(untrusted)}")
    return untrusted


def _integer(untrusted: Any, low: int, high: int) -> int:
    # type() and not isinstance(): True is an int too.
    if type(untrusted) is not int or not low <= untrusted <= high:
        raise ValueError(f"an integer from {low} to {high} is expected")
    return untrusted


def a_flag(untrusted: Any) -> bool:
    """True or False."""
    if type(untrusted) is not bool:
        raise ValueError("true or false is expected")
    return untrusted


def a_natural(untrusted: Any) -> int:
    """An integer from 0 that fits into 63 bits."""
    return _integer(untrusted, 0, NATURAL_MAX)


def a_port(untrusted: Any) -> int:
    """The number of a channel between two domains, from 1."""
    return _integer(untrusted, 1, PORT_MAX)


def a_domid(untrusted: Any) -> int:
    """A domain's id; dom0 has 0."""
    return _integer(untrusted, 0, DOMID_MAX)


def an_order(untrusted: Any) -> int:
    """Log2 of the bytes of a channel's ring."""
    return _integer(untrusted, ORDER_MIN, ORDER_MAX)


def a_status(untrusted: Any) -> int:
    """The exit status of a program, or the number of a signal."""
    return _integer(untrusted, 0, STATUS_MAX)


def a_number_of_records(untrusted: Any) -> int:
    """How many lines of the audit log are asked for."""
    return _integer(untrusted, 1, RECORDS_MAX)


def a_duration(untrusted: Any) -> float:
    """Seconds, from 0; the codec ensures that they are finite."""
    if type(untrusted) not in (int, float) or untrusted < 0:
        raise ValueError("a number of seconds is expected")
    return float(untrusted)


def an_attachment_id(untrusted: Any) -> str:
    """16 hexadecimal digits."""
    text = _text(untrusted)
    if not names.is_attachment_id(text):
        raise ValueError(f"{names.shown(text)} is not 16 hexadecimal digits")
    return text


def a_call_id(untrusted: Any) -> str:
    """32 hexadecimal digits."""
    text = _text(untrusted)
    if not names.is_call_id(text):
        raise ValueError(f"{names.shown(text)} is not 32 hexadecimal digits")
    return text


def a_class_name(untrusted: Any) -> str:
    """A name that could be a device class of another version."""
    if not device_classes.is_class_name(_text(untrusted)):
        raise ValueError(f"{names.shown(untrusted)} is not a device class: some letters are")
    return _text(untrusted)


def a_device_name(untrusted: Any) -> str:
    """SOURCE:ID, the name that a device has for users."""
    text = _text(untrusted)
    names.parse_device_name(text)
    return text


def an_identity(untrusted: Any) -> str:
    """A device's identity."""
    text = _text(untrusted)
    if not names.is_identity(text):
        raise ValueError(f"{names.shown(text)} is not a device's identity")
    return text


def an_instance(untrusted: Any) -> str:
    """The instance of a device's id."""
    text = _text(untrusted)
    if not names.is_instance(text):
        raise ValueError(f"{names.shown(text)} is not an instance of a device")
    return text


def a_handover(untrusted: Any) -> str:
    """A text from one agent to another, which dom0 passes on: words of letters and digits."""
    text = _text(untrusted)
    if len(text) > HANDOVER_MAX or not text.isascii() or not text.replace(" ", "").isalnum():
        raise ValueError(f"{names.shown(text)} is not for another agent")
    return text


def a_number_of_a_disk(untrusted: Any) -> str:
    """MAJOR:MINOR of a block device in hexadecimal digits, as Xen's hotplug scripts write it."""
    text = _text(untrusted)
    parts = text.split(":")
    if len(parts) != 2 or not all(0 < len(part) <= 8 for part in parts):
        raise ValueError(f"{names.shown(text)} is not MAJOR:MINOR")
    if not set("".join(parts)) <= set("0123456789abcdef"):
        raise ValueError(f"{names.shown(text)} is not MAJOR:MINOR in hexadecimal digits")
    return text


def an_error_code(untrusted: Any) -> str:
    """One of `errors.CODES`."""
    text = _text(untrusted)
    if text not in CODES:
        raise ValueError(f"{names.shown(text)} is not an error code")
    return text


def a_line(untrusted: Any) -> str:
    """A line that was written outside dom0: made harmless here, once and for all."""
    return names.harmless_text(_text(untrusted))


def an_end_text(untrusted: Any) -> str:
    """As `a_line`, about the end of a call: longer, as it is a sentence."""
    return names.harmless_text(_text(untrusted), names.END_TEXT_MAX)


def a_text(untrusted: Any) -> str:
    """A line that dom0 wrote: of any script, but one line and bounded."""
    return names.printable_text(_text(untrusted), TEXT_MAX)


def a_record(untrusted: Any) -> str:
    """A line of the audit log, which is JSON of printable ASCII: refused and never altered, so that
    it stays JSON. Its texts may be a VM's: whoever shows them escapes them."""
    text = _text(untrusted)
    if len(text) > RECORD_MAX or not text.isascii() or not text.isprintable():
        raise ValueError(f"{names.shown(text[:64])} is not a line of the audit log")
    return text


def a_word(untrusted: Any) -> str:
    """A text without spaces, as in a column of a rule; may be empty.

    It is refused and never altered: an answer about another request would be wrong.
    """
    text = _text(untrusted)
    if len(text) > WORD_MAX or not text.isprintable() or " " in text:
        raise ValueError(f"{names.shown(text)} is not a word of a rule")
    return text


def some_options(untrusted: Any) -> dict[str, str]:
    """Options of an attachment. dom0 decides which there are, and how to express them."""
    if type(untrusted) is not dict:
        raise ValueError("a map is expected")
    if len(untrusted) > OPTIONS_MAX:
        raise ValueError(f"{len(untrusted)} options, and {OPTIONS_MAX} is the most")
    for untrusted_name, untrusted_value in untrusted.items():
        if len(_text(untrusted_name)) > OPTION_NAME_MAX or not untrusted_name.isprintable():
            raise ValueError(f"{names.shown(untrusted_name)} is not an option's name")
        if len(_text(untrusted_value)) > OPTION_VALUE_MAX or not untrusted_value.isprintable():
            raise ValueError(f"{names.shown(untrusted_value)} is not an option's value")
    return dict(untrusted)


def a_map(untrusted: Any) -> dict[str, Any]:
    """Any map that the codec accepts: the data of an error."""
    if type(untrusted) is not dict:
        raise ValueError("a map is expected")
    return dict(untrusted)


class AtMost:
    """The maximum length of a list."""

    def __init__(self, entries: int) -> None:
        self.entries = entries


AttachmentId = Annotated[str, an_attachment_id]
CallId = Annotated[str, a_call_id]
CallTarget = Annotated[str, names.parse_call_target]
ClassName = Annotated[str, a_class_name]
DeviceId = Annotated[str, names.parse_device_id]
DeviceName = Annotated[str, a_device_name]
Domid = Annotated[int, a_domid]
EndText = Annotated[str, an_end_text]
ErrorCode = Annotated[str, an_error_code]
DiskNumber = Annotated[str, a_number_of_a_disk]
Handover = Annotated[str, a_handover]
Identity = Annotated[str, an_identity]
Instance = Annotated[str, an_instance]
Line = Annotated[str, a_line]
NameInTarget = Annotated[str, names.parse_name_in_target]
Natural = Annotated[int, a_natural]
Options = Annotated[dict[str, str], some_options]
Order = Annotated[int, an_order]
Port = Annotated[int, a_port]
Record = Annotated[str, a_record]
RecordCount = Annotated[int, a_number_of_records]
Seconds = Annotated[float, a_duration]
ServiceArgument = Annotated[str, names.parse_service_argument]
ServiceName = Annotated[str, names.parse_service_name]
Status = Annotated[int, a_status]
Text = Annotated[str, a_text]
UserName = Annotated[str, names.parse_user_name]
VmName = Annotated[str, names.parse_vm_name]
WireMap = Annotated[dict[str, Any], a_map]
Word = Annotated[str, a_word]


def parser_of(annotation: Any) -> Parse:
    """The parse function for an attribute of this type."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is bool:
        return a_flag
    if is_frozen(annotation):
        return lambda untrusted: parse_message(annotation, untrusted)
    if origin is Literal:
        return _one_of(arguments)
    if origin is Annotated:
        base, extra = arguments
        if isinstance(extra, AtMost):
            return _list_of(parser_of(typing.get_args(base)[0]), extra.entries)
        return typing.cast("Parse", extra)
    raise TypeError(f"no parse function is known for {annotation}")


#: The values that these functions return as they are.
PLAIN: dict[Parse, Plain] = {
    a_flag: forms.FLAG,
    a_natural: forms.integer(0, NATURAL_MAX),
    a_port: forms.integer(1, PORT_MAX),
    a_domid: forms.integer(0, DOMID_MAX),
    an_order: forms.integer(ORDER_MIN, ORDER_MAX),
    a_status: forms.integer(0, STATUS_MAX),
    a_number_of_records: forms.integer(1, RECORDS_MAX),
    a_duration: forms.REAL,
    an_attachment_id: forms.ATTACHMENT_ID,
    a_call_id: forms.CALL_ID,
    an_identity: forms.IDENTITY,
    an_instance: forms.INSTANCE,
    a_line: forms.harmless(names.DESCRIPTION_MAX),
    an_end_text: forms.harmless(names.END_TEXT_MAX),
    a_text: forms.line(TEXT_MAX),
    a_record: forms.line(RECORD_MAX),
    names.parse_vm_name: forms.VM_NAME,
    names.parse_device_id: forms.DEVICE_ID,
    names.parse_name_in_target: forms.DEVICE_ID,
    names.parse_service_name: forms.SERVICE_NAME,
    names.parse_service_argument: forms.SERVICE_ARGUMENT,
    names.parse_user_name: forms.USER_NAME,
    names.parse_call_target: forms.CALL_TARGET,
}


@cache
def form_of(annotation: Any) -> Form:
    """The form for an attribute of this type."""
    inner = _inside_optional(annotation)
    if inner is not None:
        return _form(inner, may_be_none=True)
    return _form(annotation, may_be_none=False)


def _form(annotation: Any, *, may_be_none: bool) -> Form:
    parse = parser_of(annotation)
    if typing.get_origin(annotation) is Literal:
        plain = forms.one_of(typing.get_args(annotation))
    else:
        plain = PLAIN.get(parse, forms.OTHER)
    return Form(*plain, parse=parse, may_be_none=may_be_none)


def _inside_optional(annotation: Any) -> Any:
    """X of `X | None`; None for another type."""
    arguments = typing.get_args(annotation)
    is_union = typing.get_origin(annotation) in (Union, types.UnionType)
    is_optional_one = is_union and len(arguments) == 2 and arguments[1] is type(None)
    return arguments[0] if is_optional_one else None


def _one_of(words: tuple[str, ...]) -> Parse:
    def parse(untrusted: Any) -> str:
        if type(untrusted) is not str or untrusted not in words:
            raise ValueError(f"{names.shown(untrusted)} is not one of {', '.join(words)}")
        return untrusted

    return parse


def _list_of(parse_item: Parse, at_most: int) -> Parse:
    def parse(untrusted: Any) -> tuple[Any, ...]:
        if type(untrusted) is not list:
            raise ValueError("a list is expected")
        if len(untrusted) > at_most:
            raise ValueError(f"{len(untrusted)} entries, and {at_most} is the most")
        items = []
        for index, untrusted_item in enumerate(untrusted):
            try:
                items.append(parse_item(untrusted_item))
            except ValueError as error:
                raise ValueError(f"[{index}] {error}") from None
        return tuple(items)

    return parse


#: Marks an attribute that may be missing on the wire, and then has its default.
OPTIONAL = {"may be missing": True}


def since(version: int) -> dict[str, int]:
    """Marks an attribute that came with this version of the protocol.

    A side of an earlier version refuses it, so `schema.in_version` leaves it out for such a side;
    in a message from there it is missing, and has its default. All attributes without a mark are
    of version 1 and required.
    """
    return {"since": version}


def version_of(attribute: Any) -> int:
    """The version of the protocol that this attribute of a message came with."""
    return int(attribute.metadata.get("since", 1))


def is_optional(attribute: Any) -> bool:
    """Whether that attribute of a message may be missing."""
    return version_of(attribute) > 1 or bool(attribute.metadata == OPTIONAL)


def message_in(annotation: Any) -> type[Any] | None:
    """The class of the message, or of the list of messages, that an attribute of this type holds;
    None if it holds none."""
    if is_frozen(annotation):
        return typing.cast("type[Any]", annotation)
    found = map(message_in, typing.get_args(annotation))
    return next((each for each in found if each is not None), None)


#: The forms of a message's attributes, in their order.
_FORMS: dict[type[attr.AttrsInstance], dict[str, Form]] = {}
#: The names of those that must be there.
_REQUIRED: dict[type[attr.AttrsInstance], frozenset[str]] = {}


def prepare(message_class: type[attr.AttrsInstance]) -> dict[str, Form]:
    """The forms of this class's attributes, by name; made once.

    TypeError if an attribute has a type without a parse function.
    """
    forms_by_name = _FORMS.get(message_class)
    if forms_by_name is None:
        fields = fields_of(message_class)
        forms_by_name = {a.name: form_of(a.type) for a in fields}
        _REQUIRED[message_class] = frozenset(a.name for a in fields if not is_optional(a))
        _FORMS[message_class] = forms_by_name
    return forms_by_name


def parse_message(message_class: type[attr.AttrsInstance], untrusted: object) -> attr.AttrsInstance:
    """An instance of `message_class` from a map with exactly its attributes as keys, of which only
    the `optional` ones may be missing.

    ValueError with the path to the error.
    """
    if type(untrusted) is not dict:
        raise ValueError("a map is expected")
    known = _FORMS.get(message_class) or prepare(message_class)
    values = take_map(known, untrusted)
    if values is None:
        there = _known_there(message_class, known, untrusted)
        values = take_map(there, untrusted)
        assert values is not None  # all names are known
    return message_class(**values)


def _known_there(
    message_class: type[attr.AttrsInstance], known: dict[str, Form], untrusted: dict[Any, Any]
) -> dict[str, Form]:
    """The forms of the attributes that are in the map. ValueError if one must be and is not, or if
    something else is."""
    for name in known:
        if name not in untrusted and name in _REQUIRED[message_class]:
            raise ValueError(f"{name} is missing")
    for untrusted_name in untrusted:
        if untrusted_name not in known:
            raise ValueError(f"{names.shown(untrusted_name)} is not known")
    return {name: form for name, form in known.items() if name in untrusted}
