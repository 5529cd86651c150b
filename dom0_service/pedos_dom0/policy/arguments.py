"""Finds rules by their argument, where many have the same source and target.

Every rule has one key, which any argument that it matches must have too: a part between colons that
has no `*`, or a run of characters (a gram); of the possible keys, one that few rules have. So ten
thousand rules for ten thousand devices cost about what ten do. Only rules whose globs leave no
three characters in a row are always tried, with those for any argument.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from pedos_protocol.kinds import is_letter

from .rows import Rows, column, rows_of
from .selectors import SELECTOR_PARTS, DeviceParts, selector, without_only
from .yielding import YieldNow, yielding

# Rows that are tried one by one, without splitting the request's argument into parts.
LOOK_MAX = 3
# The same for rows whose key is a gram: an argument has dozens, and finding them takes far longer.
GRAM_LOOK_MAX = 24
# Rules that may share a part before a rarer gram is used as the key.
PART_MAX = 64
# Characters of a gram: six are enough for a USB vendor with its colons, three for a port like `sd*`
# with the preceding colon.
GRAMS = (6, 3)

ANY = "*"


class Arguments:
    """The keys of the rows of a table."""

    __slots__ = (
        *("_by_gram", "_by_part", "_by_place", "_free", "_globbed", "_may_be_kinds", "_place"),
        *("_with_gram", "any_identity"),
    )

    def __init__(self, arguments: Sequence[str], yield_now: YieldNow) -> None:
        self._by_place = column(map(_place, arguments), yield_now)
        self._globbed = [place for place in self._by_place if "*" in place]
        self._place: tuple[str, int] = ("", 0)  # the last result
        identities = column(("="[: _has_identity(each)] for each in arguments), yield_now)
        self.any_identity = rows_of(identities, ("",))
        arguments = [without_only(argument) for argument in yielding(arguments, yield_now)]
        frequency: Counter[str] = Counter()
        for argument in yielding(arguments, yield_now):
            frequency.update(_parts(argument))
            frequency.update(_grams(argument))
        keys = column((_key(argument, frequency) for argument in arguments), yield_now)
        self._by_gram = {key: keys.pop(key) for key in list(keys) if key[0] == _GRAM}
        self._by_part: dict[str, Rows] = keys
        self._with_gram = rows_of(self._by_gram, self._by_gram)
        self._may_be_kinds = 0
        for some in (self._by_part, self._by_gram):
            loose = (key for key in yielding(some, yield_now) if _may_be_kinds(key))
            self._may_be_kinds |= rows_of(some, loose)
        self._free = rows_of(keys, (ANY,))

    def narrowed(self, rows: int, argument: str) -> int:
        """Some of `rows`: the first that matches, and few of those that do not."""
        rows = self.up_to_any(rows)
        if rows.bit_count() <= LOOK_MAX:
            return rows
        found = rows & rows_of(self._by_part, (ANY, _NONE, *_parts(argument)))
        rows &= self._with_gram
        if rows.bit_count() > GRAM_LOOK_MAX:
            rows &= rows_of(self._by_gram, self._by_gram.keys() & _grams(argument))
        return found | rows

    def narrowed_open(self, rows: int, device: DeviceParts) -> int:
        """The same for rows that may match a device that is not fully known."""
        rows, unknown = self.up_to_any(rows), device.open
        if unknown is None or rows.bit_count() <= LOOK_MAX:
            return rows
        parts, grams = [ANY, _NONE], set()
        for identity in (unknown.identity, unknown.known):
            argument = f"+{device.backend}:{device.port}:{identity}"
            parts += _parts(argument)
            grams |= _grams(argument)
        found = rows_of(self._by_part, parts) | self._may_be_kinds
        return rows & (found | rows_of(self._by_gram, self._by_gram.keys() & grams))

    def of_place(self, device: DeviceParts) -> int:
        """The rows whose BACKEND and PORT match."""
        place = f"+{device.backend}:{device.port}"
        if place != self._place[0]:
            globbed = (each for each in self._globbed if selector(each).matches(device))
            self._place = place, rows_of(self._by_place, (place, *globbed))
        return self._place[1]

    def up_to_any(self, rows: int) -> int:
        """Those of `rows` up to the first for any argument, which matches in any case."""
        free = rows & self._free
        return rows & (free ^ (free - 1)) if free else rows


def _place(argument: str) -> str:
    """The BACKEND and PORT of a selector, in one form for all selectors that match the same."""
    backend, _, rest = argument.partition(":")
    port = rest.partition(":")[0]
    return f"{'+*' if backend == ANY else backend}:{port or ANY}"


def _has_identity(argument: str) -> bool:
    """Does a selector require more of an identity than its existence?"""
    return len(argument.split(":", 2)) > 2 and bool(argument.split(":", 2)[2].strip("*"))


_PART, _GRAM, _NONE = "=", "~", "-"


def _may_be_kinds(key: str) -> bool:
    """May the text of a key be in, or extend into, kinds that a request does not name?"""
    tail = key[1:] if key[0] == _PART else key[1:].rpartition(":")[2]
    if not tail or tail.strip(_KIND_CHARACTERS):
        return False
    return key[0] == _GRAM or is_letter(tail[0])


_KIND_CHARACTERS = "up0123456789abcdef"


def _parts(argument: str) -> list[str]:
    """The parts without `*`, and the first two joined."""
    parts = argument[1:].split(":")
    if len(parts) > 1:
        parts.append(f"{parts[0]}:{parts[1]}")
    return [_PART + part for part in parts if "*" not in part]


def _grams(argument: str) -> set[str]:
    """Every run of so many characters without `*`, for each size of GRAMS."""
    if argument.count(":") < len(SELECTOR_PARTS) - 1:
        argument += ":"  # the request has all parts
    return {
        _GRAM + piece[at : at + size]
        for size in GRAMS
        for piece in argument.split("*")
        for at in range(len(piece) - size + 1)
    }


def _key(argument: str, frequency: Counter[str]) -> str:
    """One of its parts or grams, ANY for any argument, _NONE for globs without either."""
    if argument == ANY:
        return ANY
    parts = _parts(argument)
    part = min(parts, key=frequency.__getitem__, default="")
    if part and frequency[part] <= PART_MAX:
        return part
    return min([*parts, *_grams(argument)], key=lambda key: (frequency[key], key), default=_NONE)
