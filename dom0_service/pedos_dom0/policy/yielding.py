"""Cooperative yielding: what reads a large policy lets the event loop in every few items.

Each function that may take long has a `yield_now` to call; what that does is loader.py's business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

# Items (lines, rules, words) between two calls: a fraction of a millisecond.
EVERY = 16

YieldNow = Callable[[], None]
T = TypeVar("T")


def never() -> None:
    """For callers that no other task has to interrupt."""


def yielding(items: Iterable[T], yield_now: YieldNow) -> Iterator[T]:
    """The items, with a call of `yield_now` every few."""
    for number, item in enumerate(items):
        if number % EVERY == 0:
            yield_now()
        yield item
