"""The kinds of interfaces of a device, and whether all of them are known.

The identity of a USB device is `VENDOR:PRODUCT:SERIAL:KINDS` and that of a PCI device
`VENDOR:DEVICE::KIND`. A kind is a letter (`u` or `p`) and class, subclass and protocol in six
hexadecimal digits; KINDS are one after the other, each once: `u080650u030101`. If they could not
all be read, or exceed the bound of an identity, the mark `u-unknown` follows the known ones. A
reader treats an identity without kinds in the same way: no kinds are no information.
"""

from __future__ import annotations

from .device_classes import CLASSES, class_named

TYPE_CHECKING = False  # as in names.py
if TYPE_CHECKING:
    from collections.abc import Iterable

#: After the letter: there are more kinds, or may be.
UNKNOWN = "-unknown"
#: In one identity. A USB device may have 32 interfaces, each with alternates; devices with more
#: than five different kinds are rare, and kinds beyond this number count as unknown.
KINDS_MAX = 20

_DIGITS = 6
_HEX = "0123456789abcdef"
_HEAD_PARTS = 3  # VENDOR:PRODUCT:SERIAL


class Open:
    """An identity that is not fully known. It begins with `known`, and the rest consists of the
    characters `fill`; if that is None nothing is known, and `known` is empty."""

    __slots__ = ("fill", "identity", "known")

    def __init__(self, identity: str, known: str, fill: str | None) -> None:
        self.identity = identity
        self.known = known
        self.fill = fill


def letters() -> dict[str, str]:
    """The first letter of a kind, by class. The other classes have no kinds."""
    return {each.name: each.kind_letter for each in CLASSES if each.kind_letter}


def letter_of(device_class: str) -> str:
    """The first letter of that class's kinds; "" if it has none."""
    described = class_named(device_class)
    return "" if described is None else described.kind_letter


def is_letter(character: str) -> bool:
    """Do the kinds of a class begin with this character?"""
    return any(character == each.kind_letter for each in CLASSES)


def is_kind(text: str) -> bool:
    """Is `text` a class's letter and six hexadecimal digits in lower case?"""
    return len(text) == _DIGITS + 1 and is_letter(text[0]) and not text[1:].strip(_HEX)


def with_kinds(head: str, device_class: str, kinds: Iterable[str | None]) -> str:
    """`head:` and the kinds, each once and whole: a cut one would read as another.

    None among `kinds` is one that could not be read.
    """
    distinct = dict.fromkeys(kinds)
    good = [kind for kind in distinct if kind is not None and is_kind(kind)]
    text = f"{head}:{''.join(good[:KINDS_MAX])}"
    if not good or len(good) < len(distinct) or len(good) > KINDS_MAX:
        text += letter_of(device_class) + UNKNOWN
    return text


def kinds_in(identity: str) -> tuple[str, tuple[str, ...]]:
    """The part before the kinds, and the kinds up to the first invalid one."""
    head, rest = _split(identity)
    found = []
    while is_kind(kind := rest[: _DIGITS + 1]):
        found.append(kind)
        rest = rest[_DIGITS + 1 :]
    return head, tuple(found)


def open_part(device_class: str, identity: str) -> Open | None:
    """The known part of an identity that is not fully known; None if it is.

    If a class has no kinds, an identity is always fully known.
    """
    letter = letter_of(device_class)
    if not letter:
        return None
    if identity.count(":") < _HEAD_PARTS:
        return Open(identity, "", None)  # no agent reports half a head
    head, kinds = kinds_in(identity)
    known = f"{head}:{''.join(kinds)}"
    if kinds and known == identity:
        return None
    return Open(identity, known, letter + _HEX)


def _split(identity: str) -> tuple[str, str]:
    parts = identity.split(":", _HEAD_PARTS)
    if len(parts) <= _HEAD_PARTS:
        return identity, ""
    return ":".join(parts[:_HEAD_PARTS]), parts[_HEAD_PARTS]
