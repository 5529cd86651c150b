"""The way to a disk: work that waits for one runs in a thread, while the event loop continues."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

import trio
from pedos_host.threads import NoThreadError, to_thread

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import Protocol

    T = TypeVar("T")

    class InThread(Protocol):
        """Runs a function that waits for the disk, to its end even if the caller is cancelled."""

        def __call__(self, work: Callable[[], T]) -> Awaitable[T]: ...


# Seconds until the next attempt to start a thread; an attempt costs next to nothing.
NO_THREAD_SECONDS: Final = 0.2


async def in_thread(work: Callable[[], T]) -> T:
    """Runs `work` in a thread and returns its result.

    A caller that is cancelled before the work has begun has not done it. One that is cancelled
    later gets the result all the same, and is cancelled at its next checkpoint. The thread is this
    caller's own: shared ones may all be waiting for another disk. If no thread can be started, this
    waits for one; a caller has its own bound, or nothing to do without this.
    """
    while True:
        try:
            return await to_thread(work, limiter=trio.CapacityLimiter(1))
        except NoThreadError:
            await trio.sleep(NO_THREAD_SECONDS)
