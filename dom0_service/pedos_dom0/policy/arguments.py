"""How rules are told apart by their argument, where many have the same source and target.

Every rule has one key, which any argument that it matches has to have too: a part between colons
that is without `*`, or a run of characters (a gram); of those it could have, one that few rules
have. So ten thousand rules for ten thousand devices cost about what ten do. Only rules whose globs
leave no three characters in a row are looked at always, with those for any argument.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from .breath import Breathe, slowly
from .model import SELECTOR_PARTS
from .rows import Rows, column, rows_of

# Rows that are looked at one by one, rather than taking the request's argument into its parts.
LOOK_MAX = 3
# Likewise those whose key is a gram: an argument has dozens, and finding them takes far longer.
GRAM_LOOK_MAX = 24
# Rules that may share a part before a gram that fewer have is taken for a key.
PART_MAX = 64
# Characters of a gram: six are enough for a USB vendor with its colons, three for a port like
# `sd*` with the colon before it.
GRAMS = (6, 3)

ANY = "*"


class Arguments:
    """The keys of the rows of a table."""

    __slots__ = ("_by_gram", "_by_part", "_free", "_with_gram")

    def __init__(self, arguments: Sequence[str], breathe: Breathe) -> None:
        frequency: Counter[str] = Counter()
        for argument in slowly(arguments, breathe):
            frequency.update(_parts(argument))
            frequency.update(_grams(argument))
        keys = column((_key(argument, frequency) for argument in arguments), breathe)
        self._by_gram = {key: keys.pop(key) for key in list(keys) if key[0] == _GRAM}
        self._by_part: dict[str, Rows] = keys
        self._with_gram = rows_of(self._by_gram, self._by_gram)
        self._free = rows_of(keys, (ANY,))

    def narrowed(self, rows: int, argument: str) -> int:
        """Some of `rows`: the first that matches, and few of those that do not."""
        free = rows & self._free
        if free:
            rows &= free ^ (free - 1)  # up to the first for any argument, which is the last resort
        if rows.bit_count() <= LOOK_MAX:
            return rows
        found = rows & rows_of(self._by_part, (ANY, _NONE, *_parts(argument)))
        rows &= self._with_gram
        if rows.bit_count() > GRAM_LOOK_MAX:
            rows &= rows_of(self._by_gram, self._by_gram.keys() & _grams(argument))
        return found | rows


_PART, _GRAM, _NONE = "=", "~", "-"


def _parts(argument: str) -> list[str]:
    """The parts without `*`, and the first two of them as one."""
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
    """One of its parts or grams, ANY for any argument, _NONE for globs that have neither."""
    if argument == ANY:
        return ANY
    parts = _parts(argument)
    part = min(parts, key=frequency.__getitem__, default="")
    if part and frequency[part] <= PART_MAX:
        return part
    return min([*parts, *_grams(argument)], key=lambda key: (frequency[key], key), default=_NONE)
