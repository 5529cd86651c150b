"""Cooperative yielding: reading a large policy yields to the event loop every few items.

Each function that may take long calls its `yield_now`; loader.py decides what that does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

# Items (lines, rules, words) between two calls: a fraction of a millisecond.
EVERY = 16

YieldNow = Callable[[], None]
T = TypeVar("T")


def never() -> None:
    """For callers that block no other task."""


def yielding(items: Iterable[T], yield_now: YieldNow) -> Iterator[T]:
    """The items, with a call of `yield_now` every few."""
    for number, item in enumerate(items):
        if number % EVERY == 0:
            yield_now()
        yield item
