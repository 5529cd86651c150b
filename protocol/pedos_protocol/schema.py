"""Which method carries which messages: a table, and the reading and writing of its messages.

Everything from a connection goes through `Schema.parse_params` or `Schema.parse_result`, and
through nothing else; their results are typed, bounded, and contain only harmless text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cache
from operator import attrgetter
from typing import Any, NamedTuple

import attr

from .codec import ITEMS_MAX, encode
from .connection import VERSIONS
from .errors import CallError, RemoteProtocolError
from .events import know_methods
from .fields import message_in, parse_message, prepare, version_of
from .frozen import fields_of, frozen, is_frozen
from .names import shown


@frozen
class Empty:
    """No parameters, or a result that only says that the request is done."""


class Spec(NamedTuple):
    """The messages of a method; the result of a notice is None. `since` is the version of the
    protocol that the method came with."""

    params: type[Any]
    result: type[Any] | None
    since: int = 1


class Schema(dict[str, Spec]):
    """Methods and their messages. TypeError for an attribute whose type `fields` cannot read."""

    def __init__(self, specs: Mapping[str, Spec]) -> None:
        super().__init__(specs)
        know_methods(specs)
        for spec in specs.values():
            for message_class in (spec.params, spec.result):
                if message_class is not None:
                    prepare(message_class)

    def parse_params(self, method: str, untrusted_params: object) -> Any:
        """The parameters of `method`, as its class here.

        RemoteProtocolError has the error and its place.
        """
        spec = self.get(method)
        if spec is None:
            raise _no_method(method)
        try:
            return parse_message(spec.params, untrusted_params)
        except ValueError as error:
            raise RemoteProtocolError(f"parameters of {method}: {error}") from None

    def parse_result(self, method: str, untrusted_result: object) -> Any:
        """The result of `method`, as its class here.

        RemoteProtocolError has the error and its place.
        """
        spec = self.get(method)
        if spec is None:
            raise _no_method(method)
        result_class = spec.result
        if result_class is None:
            raise RemoteProtocolError(f"{method} is a notice and has no result")
        try:
            return parse_message(result_class, untrusted_result)
        except ValueError as error:
            raise RemoteProtocolError(f"result of {method}: {error}") from None

    def params_in(self, version: int, method: str, params: dict[str, Any]) -> dict[str, Any]:
        """The parameters as a side of this version of the protocol knows them.

        CallError if it does not know the method.
        """
        spec = self[method]
        if version < spec.since:
            message = f"the other side is older and does not know the method {method}"
            raise CallError("unknown_method", message)
        return params if version >= VERSIONS[1] else in_version(version, spec.params, params)

    def result_in(self, version: int, method: str, result: dict[str, Any]) -> dict[str, Any]:
        """The result as a side of this version of the protocol knows it."""
        if version >= VERSIONS[1]:
            return result
        result_class = self[method].result
        assert result_class is not None, method
        return in_version(version, result_class, result)


def _no_method(method: str) -> RemoteProtocolError:
    return RemoteProtocolError(f"{shown(method)} is not a method")


def to_wire(value: attr.AttrsInstance) -> dict[str, Any]:
    """The map that says `value`, a message."""
    names, values_of = _reader_of(type(value))
    values = values_of(value)
    if not _AS_THEY_ARE.issuperset(map(type, values)):
        values = map(_wire_value, values)
    return dict(zip(names, values, strict=True))


# Most messages have no others.
_AS_THEY_ARE = frozenset({str, int, bool, float, type(None)})


@cache
def _reader_of(
    message_class: type[Any],
) -> tuple[tuple[str, ...], Callable[[Any], Iterable[Any]]]:
    """The names of its attributes, in their order, and a function that reads all their values."""
    names = tuple(each.name for each in fields_of(message_class))
    if len(names) > 1:
        return names, attrgetter(*names)
    return names, lambda value: [getattr(value, name) for name in names]


def in_version(
    version: int, message_class: type[attr.AttrsInstance], wire: dict[str, Any]
) -> dict[str, Any]:
    """A message, as a map, without what came after this version of the protocol."""
    if version >= VERSIONS[1]:
        return wire
    later, messages = _later(version, message_class)
    return {
        name: _each_in_version(version, messages[name], value) if name in messages else value
        for name, value in wire.items()
        if name not in later
    }


def _each_in_version(version: int, message_class: type[attr.AttrsInstance], value: Any) -> Any:
    if isinstance(value, list):
        return [in_version(version, message_class, each) for each in value]
    return None if value is None else in_version(version, message_class, value)


@cache
def _later(version: int, message_class: type[Any]) -> tuple[frozenset[str], dict[str, type[Any]]]:
    """The names of a message's attributes that came after this version, and the classes of the
    messages in others, by name."""
    fields = fields_of(message_class)
    later = frozenset(each.name for each in fields if version_of(each) > version)
    inner = {each.name: message_in(each.type) for each in fields}
    return later, {name: found for name, found in inner.items() if found is not None}


def wire_size(value: attr.AttrsInstance | str) -> int:
    """Bytes that `value`, a message or a text, adds to a frame at most."""
    return len(encode([_wire_value(value)]))


class Room:
    """The rest of a frame, or of a part of it, for one list: bytes and entries."""

    def __init__(self, size: int, entries: int = ITEMS_MAX) -> None:
        self._size = size
        self._entries = entries

    def takes(self, value: attr.AttrsInstance | str) -> bool:
        """Whether one more fits; it is counted in any case, because nothing fits after it any
        more."""
        self._size -= wire_size(value)
        self._entries -= 1
        return self._size >= 0 and self._entries >= 0


def _wire_value(value: Any) -> Any:
    if is_frozen(type(value)):
        return to_wire(value)
    if isinstance(value, tuple | list):
        return [_wire_value(item) for item in value]
    if isinstance(value, Mapping):
        return dict(value)
    return value
