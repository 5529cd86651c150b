"""Sets of rows of a table, by the texts in one of its columns.

A set of rows is an integer whose bit N is set when row N is in it, so that `&` gives the common
rows of two sets. In a long table a text with few rows has them as a tuple; otherwise ten thousand
texts with one row each would take ten thousand integers of up to ten thousand bits.

The garbage collector does not track integers, nor dicts and tuples of integers and texts alone;
with other objects, it would hold up the event loop.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from .yielding import YieldNow, yielding

# Rows that a text keeps as a tuple: adding so many to a set takes a few microseconds.
FEW = 16
# Bits of a number that takes no more memory than a tuple does.
SHORT = 256

Rows = int | tuple[int, ...]
Column = Mapping[str, Rows]


def places(texts: Iterable[str], yield_now: YieldNow) -> Iterator[tuple[str, list[int]]]:
    """Each text with the rows that have it; `texts` are those of the rows from 0 on."""
    first: dict[str, int] = {}
    more: dict[str, list[int]] = {}
    for row, text in enumerate(yielding(texts, yield_now)):
        if first.setdefault(text, row) != row:
            more.setdefault(text, []).append(row)
    for text, row in yielding(first.items(), yield_now):
        # The lists are freed one by one: freeing all at once would be a long step.
        yield text, [row, *more.pop(text, ())]


def column(texts: Iterable[str], yield_now: YieldNow) -> dict[str, Rows]:
    """As `places`, in the form to keep."""
    return {text: _rows(rows, yield_now) for text, rows in places(texts, yield_now)}


def _rows(rows: list[int], yield_now: YieldNow) -> Rows:
    if len(rows) <= FEW and rows[-1] >= SHORT:
        return tuple(rows)
    bits = bytearray(rows[-1] // 8 + 1)
    for row in yielding(rows, yield_now) if len(rows) > FEW else rows:
        bits[row // 8] |= 1 << row % 8
    return int.from_bytes(bits, "little")


def rows_of(column: Column, texts: Iterable[str]) -> int:
    """The set of the rows that have one of `texts`."""
    rows = 0
    for text in texts:
        found = column.get(text)
        if type(found) is int:
            rows |= found
        elif found is not None:
            for row in found:  # type: ignore[union-attr]
                rows |= 1 << row
    return rows
