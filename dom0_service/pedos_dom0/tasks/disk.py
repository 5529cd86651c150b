"""The way to a disk: work that waits for one runs in a thread, while the event loop continues."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final, TypeVar

import trio
from pedos_host.threads import NoThreadError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import Any, Protocol

    from outcome import Outcome

    T = TypeVar("T")

    class InThread(Protocol):
        """Runs a function that waits for the disk, to its end even if the caller is cancelled."""

        def __call__(self, work: Callable[[], T]) -> Awaitable[T]: ...

    class Start(Protocol):
        """Has a function that waits for the disk run, for one who does not wait: `then` is called
        with what it came to, by the event loop, and not before this returns. NoThreadError."""

        def __call__(
            self, work: Callable[[], Any], then: Callable[[Outcome[Any]], None]
        ) -> None: ...


# Seconds until the next attempt to start a thread; an attempt costs next to nothing.
NO_THREAD_SECONDS: Final = 0.2


def start_in_thread(work: Callable[[], Any], then: Callable[[Outcome[Any]], None]) -> None:
    """See `Start`. The thread is for this work alone: shared ones may all be waiting for another
    disk."""
    token = trio.lowlevel.current_trio_token()

    def deliver(result: Outcome[Any]) -> None:
        with contextlib.suppress(trio.RunFinishedError):
            token.run_sync_soon(then, result)

    try:
        trio.lowlevel.start_thread_soon(work, deliver)
    except RuntimeError as error:
        raise NoThreadError from error


async def in_thread(work: Callable[[], T], start: Start = start_in_thread) -> T:
    """Runs `work` in a thread and returns its result.

    A caller that is cancelled before the work has begun has not done it. One that is cancelled
    later gets the result all the same, and is cancelled at its next checkpoint. If no thread can be
    started, this waits for one; a caller has its own bound, or nothing to do without this.

    (`trio.to_thread.run_sync` would do, with a pass of the event loop and twice the work more.)
    """
    task = trio.lowlevel.current_task()

    def go_on(result: Outcome[T]) -> None:
        trio.lowlevel.reschedule(task, result)

    await trio.lowlevel.checkpoint_if_cancelled()
    while True:
        try:
            start(work, go_on)
            break
        except NoThreadError:
            await trio.sleep(NO_THREAD_SECONDS)
    result: T = await trio.lowlevel.wait_task_rescheduled(lambda _: trio.lowlevel.Abort.FAILED)
    return result
