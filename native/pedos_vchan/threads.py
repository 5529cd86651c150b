"""What waits is done in a thread. That there is none left is a lack like that of descriptors."""

from __future__ import annotations

import contextlib
import errno
import threading
from typing import TYPE_CHECKING, TypeVar

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

    from outcome import Outcome

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


async def in_thread(
    call: Callable[[], T],
    *,
    limiter: trio.CapacityLimiter,
    wake: Callable[[], None] = lambda: None,
) -> T:
    """Runs a call into C in a thread, within `limiter`, and returns its result. NoThreadError.

    What it works on, memory and descriptors, is given back by the caller when this ends. So it does
    not end before the thread is done with them: neither by a cancellation, nor when the coroutine
    is closed, which then waits without letting other tasks run. `wake` hastens the end: it is
    called, perhaps more than once, for a call that is to end early.

    (``trio.to_thread.run_sync`` has no `wake`, and knows nothing of coroutines that are closed.)
    """
    task = trio.lowlevel.current_task()
    token = trio.lowlevel.current_trio_token()
    over = threading.Event()
    is_closed = False

    def run() -> T:
        try:
            return call()
        finally:
            over.set()

    def resume(result: Outcome[T]) -> None:
        if not is_closed:
            trio.lowlevel.reschedule(task, result)

    def deliver(result: Outcome[T]) -> None:
        with contextlib.suppress(trio.RunFinishedError):  # then it was closed
            token.run_sync_soon(resume, result)

    def abort(_: object) -> trio.lowlevel.Abort:
        wake()
        return trio.lowlevel.Abort.FAILED

    borrower = object()  # a coroutine may be closed by another task, or by none
    await limiter.acquire_on_behalf_of(borrower)
    try:
        try:
            trio.lowlevel.start_thread_soon(run, deliver)
        except RuntimeError as error:
            raise NoThreadError from error
        result: T = await trio.lowlevel.wait_task_rescheduled(abort)
    except GeneratorExit:
        is_closed = True
        wake()
        over.wait()
        raise
    finally:
        limiter.release_on_behalf_of(borrower)
    return result
