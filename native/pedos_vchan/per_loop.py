"""What each event loop has one of, made at its first use; it ends with the loop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


class PerLoop(Generic[T]):
    """Called, it returns the one of the caller's event loop. Raises what `make` does."""

    def __init__(self, name: str, make: Callable[[], T]) -> None:
        self._make = make
        self._made: trio.lowlevel.RunVar[T] = trio.lowlevel.RunVar(name)

    def __call__(self) -> T:
        try:
            return self._made.get()
        except LookupError:
            made = self._make()
            self._made.set(made)
            return made
