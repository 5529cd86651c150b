"""What waits is done in a thread. That there is none left is a lack like that of descriptors."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, TypeVar

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


class NoThreadError(OSError):
    """The process, or its user, has as many threads as it may: nothing was begun."""

    def __init__(self) -> None:
        super().__init__(errno.ENOMEM, "no thread can be started")


async def to_thread(
    work: Callable[..., T], *arguments: object, limiter: trio.CapacityLimiter | None = None
) -> T:
    """As ``trio.to_thread.run_sync``, but NoThreadError where that has a RuntimeError."""
    is_begun = False

    def run() -> T:
        nonlocal is_begun
        is_begun = True
        return work(*arguments)

    try:
        return await trio.to_thread.run_sync(run, limiter=limiter)
    except RuntimeError as error:
        if is_begun:
            raise
        raise NoThreadError from error
