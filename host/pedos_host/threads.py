"""Blocking work runs in a thread. A lack of threads is treated like a lack of descriptors."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, TypeVar

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


class NoThreadError(OSError):
    """The process, or its user, has as many threads as it may have: nothing was begun."""

    def __init__(self) -> None:
        super().__init__(errno.ENOMEM, "no thread can be started")


async def to_thread(
    work: Callable[..., T], *arguments: object, limiter: trio.CapacityLimiter | None = None
) -> T:
    """As ``trio.to_thread.run_sync``, but raises NoThreadError where that raises RuntimeError."""
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
