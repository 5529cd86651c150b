"""What hypothesis needs to know to make values, events and messages of the protocol."""

from __future__ import annotations

import functools
import typing
from typing import Annotated, Any, Literal

import attr
from hypothesis import strategies as st
from pedos_protocol import events, fields, messages, names
from pedos_protocol.codec import INT_MAX, INT_MIN
from pedos_protocol.errors import CODES

texts = st.text(max_size=20)

LOWER, DIGITS = "abcdefghijklmnopqrstuvwxyz", "0123456789"
LETTERS = LOWER.upper() + LOWER


def words(first: str, others: str, at_most: int) -> st.SearchStrategy[str]:
    """A character of `first`, then up to `at_most` of `others`. As from_regex has it, which draws
    each character for itself and takes five times as long."""
    return st.builds(str.__add__, st.sampled_from(first), st.text(others, max_size=at_most))


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(INT_MIN, INT_MAX)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts
    | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=8,
)

# A recursive strategy bounds the leaves and not the depth: 6 leave room for what is around them.
maps = st.dictionaries(texts.filter(lambda key: key != "deadline_ms"), values, max_size=4).filter(
    lambda value: depth_of(value) <= 6
)


def depth_of(value: Any) -> int:
    """Lists and maps within each other, `value` included."""
    if isinstance(value, dict):
        value = list(value.values())
    elif not isinstance(value, list):
        return 0
    return 1 + max(map(depth_of, value), default=0)


ids = st.integers(0, events.ID_MAX)
methods = (
    st.tuples(
        st.text(LOWER, min_size=1, max_size=10),
        st.lists(st.text(LOWER + "_", min_size=1, max_size=10), max_size=3),
    )
    .map(lambda parts: ".".join((parts[0], *parts[1])))
    .filter(lambda method: method != "hello")
)
versions = st.tuples(st.just(1), st.integers(1, events.VERSION_MAX))
programs = st.text("abc ./-0123456789", max_size=events.PROGRAM_MAX)
hellos = st.builds(events.Hello, versions=versions, program=programs)
requests = st.builds(
    events.Request,
    id=ids,
    method=methods,
    params=maps,
    deadline_ms=st.integers(1, events.DEADLINE_MS_MAX),
)
notices = st.builds(events.Notice, method=methods, params=maps)


def printable(value: Any) -> Any:
    return names.printable_value(value, events.ERROR_TEXT_MAX)


def answers(call_id: int) -> st.SearchStrategy[events.Event]:
    """Answers of both kinds to this request; the bad ones as they are heard."""
    good = st.builds(events.Answer, id=st.just(call_id), result=maps)
    bad = st.builds(
        events.ErrorAnswer,
        id=st.just(call_id),
        code=st.sampled_from(sorted(CODES)),
        message=texts.map(printable),
        data=maps.map(printable),
    )
    return good | bad


_VM_NAMES = words(LETTERS, LETTERS + DIGITS + "_-", 30)
_DEVICE_IDS = words(LETTERS + DIGITS, LETTERS + DIGITS + "._-", 63)
_HEX = DIGITS + "abcdef"
_UP_TO_8_HEX = st.text(_HEX, min_size=1, max_size=8)
_OPAQUE = LETTERS + DIGITS + ":._-"

#: By parse function, what it accepts and returns as it is.
_BY_PARSE: dict[Any, st.SearchStrategy[Any]] = {
    names.parse_vm_name: _VM_NAMES,
    names.parse_device_id: _DEVICE_IDS,
    fields.a_device_name: st.tuples(_VM_NAMES, _DEVICE_IDS).map(":".join),
    fields.a_class_name: st.text(LOWER, min_size=1, max_size=16),
    names.parse_name_in_target: _DEVICE_IDS,
    fields.a_domid: st.integers(0, fields.DOMID_MAX),
    fields.a_port: st.integers(1, fields.PORT_MAX),
    fields.an_order: st.integers(fields.ORDER_MIN, fields.ORDER_MAX),
    fields.a_status: st.integers(0, fields.STATUS_MAX),
    fields.a_call_id: st.text(_HEX, min_size=32, max_size=32),
    names.parse_service_name: words(LETTERS + DIGITS + "_", LETTERS + DIGITS + "._-", 254),
    names.parse_service_argument: st.text(LETTERS + DIGITS + "._-+", max_size=383).map("+".__add__),
    names.parse_user_name: words(LETTERS + "_", LETTERS + DIGITS + "._-", 31),
    names.parse_call_target: st.sampled_from(["", "@default", "@adminvm", "@dispvm"])
    | _VM_NAMES
    | _VM_NAMES.map("@dispvm:".__add__)
    | st.text(_HEX + "-", min_size=1, max_size=36).map("uuid:".__add__),
    fields.an_end_text: st.text("abcXYZ 0123 .,()[]#%", max_size=names.END_TEXT_MAX),
    fields.a_number_of_records: st.integers(1, fields.RECORDS_MAX),
    fields.a_natural: st.integers(0, fields.NATURAL_MAX),
    fields.a_duration: st.floats(0, 1e9),
    fields.an_attachment_id: st.text(_HEX, min_size=16, max_size=16),
    fields.an_identity: st.text(_OPAQUE, max_size=128),
    fields.an_instance: st.text(_OPAQUE, max_size=40),
    fields.a_handover: words(LETTERS + DIGITS, LETTERS + DIGITS + " ", 63),
    fields.a_number_of_a_disk: st.tuples(_UP_TO_8_HEX, _UP_TO_8_HEX).map(":".join),
    fields.an_error_code: st.sampled_from(sorted(CODES)),
    fields.a_line: st.text("abcXYZ 0123 .,()[]#%", max_size=names.DESCRIPTION_MAX),
    fields.a_text: st.text("abc äöü <>&\"'", max_size=30),
    fields.a_record: st.text('abc {}"\\:,0123', max_size=30),
    fields.a_word: st.text("abcäß*@+:.-%0123", max_size=30),
    fields.some_options: st.dictionaries(st.text("abc-", max_size=10), st.text("xy=1"), max_size=3),
    fields.a_map: maps.filter(lambda value: depth_of(value) <= 2),
}


def _of_type(annotation: Any) -> st.SearchStrategy[Any]:
    arguments = typing.get_args(annotation)
    if annotation is bool:
        return st.booleans()
    if attr.has(annotation):
        return message(annotation)
    if typing.get_origin(annotation) is Literal:
        return st.sampled_from(arguments)
    if typing.get_origin(annotation) is Annotated:
        base, extra = arguments
        if isinstance(extra, fields.AtMost):
            return st.lists(_of_type(typing.get_args(base)[0]), max_size=2).map(tuple)
        return _BY_PARSE[extra]
    return st.none() | _of_type(arguments[0])


@functools.cache
def message(message_class: type[Any]) -> st.SearchStrategy[Any]:
    """Any instance of this class of `messages`."""
    return st.builds(
        message_class, **{a.name: _of_type(a.type) for a in attr.fields(message_class)}
    )


#: (method, "params" or "result", class) of everything that is said.
SPOKEN = [
    (method, part, message_class)
    for method, spec in messages.SCHEMA.items()
    for part, message_class in (("params", spec.params), ("result", spec.result))
    if message_class is not None
]
