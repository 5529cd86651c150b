"""Which kinds of interfaces a device has, and whether all of them are known.

The identity of a USB device is `VENDOR:PRODUCT:SERIAL:KINDS` and that of a PCI device
`VENDOR:DEVICE::KIND`. A kind is a letter (`u` or `p`) and class, subclass and protocol in six
hexadecimal digits; KINDS are one after the other, each once: `u080650u030101`. Where they could
not all be read, or are more than an identity holds, the mark `u-unknown` stands behind those that
are there. So does the reader take it who finds no kinds at all: nothing is no answer.
"""

from __future__ import annotations

from .device_classes import CLASSES

TYPE_CHECKING = False  # as in names.py
if TYPE_CHECKING:
    from collections.abc import Iterable

#: What a kind begins with. The other classes have no kinds.
LETTERS = {each.name: each.kind_letter for each in CLASSES if each.kind_letter}
#: After the letter: there are more, or there may be.
UNKNOWN = "-unknown"
#: In one identity. A USB device may have 32 interfaces, each with alternates; those with more than
#: five different kinds are rare, and of more than this many the rest counts as unknown.
KINDS_MAX = 20

_DIGITS = 6
_HEX = "0123456789abcdef"
_HEAD_PARTS = 3  # VENDOR:PRODUCT:SERIAL


class Open:
    """An identity that is not fully known. It begins with `known`, and what follows is made of the
    characters `fill`; where that is None nothing is known, and `known` is empty."""

    __slots__ = ("fill", "identity", "known")

    def __init__(self, identity: str, known: str, fill: str | None) -> None:
        self.identity = identity
        self.known = known
        self.fill = fill


def is_kind(text: str) -> bool:
    """Is `text` a letter of LETTERS and six hexadecimal digits in lower case?"""
    return len(text) == _DIGITS + 1 and text[0] in LETTERS.values() and not text[1:].strip(_HEX)


def with_kinds(head: str, device_class: str, kinds: Iterable[str | None]) -> str:
    """`head:` and the kinds, each once and whole: a cut one would read as another.

    None among `kinds` is one that could not be read.
    """
    distinct = dict.fromkeys(kinds)
    good = [kind for kind in distinct if kind is not None and is_kind(kind)]
    text = f"{head}:{''.join(good[:KINDS_MAX])}"
    if not good or len(good) < len(distinct) or len(good) > KINDS_MAX:
        text += LETTERS[device_class] + UNKNOWN
    return text


def kinds_in(identity: str) -> tuple[str, tuple[str, ...]]:
    """What stands before the kinds, and the kinds up to the first that is none."""
    head, rest = _split(identity)
    found = []
    while is_kind(kind := rest[: _DIGITS + 1]):
        found.append(kind)
        rest = rest[_DIGITS + 1 :]
    return head, tuple(found)


def open_part(device_class: str, identity: str) -> Open | None:
    """What is known of an identity that is not fully known; None for one that is.

    Where a class has no kinds, an identity is what it is.
    """
    letter = LETTERS.get(device_class)
    if letter is None:
        return None
    if identity.count(":") < _HEAD_PARTS:
        return Open(identity, "", None)  # no agent says the half of a head
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
