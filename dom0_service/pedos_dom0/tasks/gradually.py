"""Work on thousands of things without holding up the event loop: portion by portion."""

from __future__ import annotations

from heapq import merge
from itertools import islice
from operator import itemgetter
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator

    Turn = Callable[[], Awaitable[None]]

T = TypeVar("T")

# Things that are looked at in one step, at some ten microseconds each.
PORTION = 256


async def gradually(things: Iterable[T], turn: Turn, take: Callable[[list[T]], object]) -> None:
    """Has `take` take them, portion by portion, and awaits `turn` in between."""
    left = iter(things)
    some = list(islice(left, PORTION))
    while some:
        take(some)
        some = list(islice(left, PORTION))
        if some:
            await turn()


async def in_order(
    things: Iterable[T], place: Callable[[T], Any], turn: Turn
) -> Iterator[tuple[Any, T]]:
    """Each with its place, in the order of these: sorted in portions, which are merged as they are
    taken."""
    runs: list[list[tuple[Any, T]]] = []

    def take(some: list[T]) -> None:
        runs.append(sorted(((place(each), each) for each in some), key=itemgetter(0)))

    await gradually(things, turn, take)
    return merge(*runs, key=itemgetter(0))
