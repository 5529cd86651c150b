"""Breaths: what reads a large policy beside an event loop lets that in every few items.

Each function that may take long has a `breathe` to call; what that does is loader.py's business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

# Items (lines, rules, words) between two breaths: a fraction of a millisecond.
EVERY = 16

Breathe = Callable[[], None]
T = TypeVar("T")


def nothing() -> None:
    """For callers that no other task has to interrupt."""


def slowly(items: Iterable[T], breathe: Breathe) -> Iterator[T]:
    """The items, with a call of `breathe` every few."""
    for number, item in enumerate(items):
        if number % EVERY == 0:
            breathe()
        yield item
