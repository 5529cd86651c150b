"""Calls into C that wait, each in a thread, whose memory is not freed before they are over."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, TypeVar

import trio
from pedos_host.threads import NoThreadError

if TYPE_CHECKING:
    from collections.abc import Callable

    from outcome import Outcome

T = TypeVar("T")


async def in_thread(
    call: Callable[[], T],
    *,
    limiter: trio.CapacityLimiter,
    wake: Callable[[], None] = lambda: None,
) -> T:
    """Runs a call into C in a thread, within `limiter`, and returns its result. NoThreadError.

    The caller frees the memory and descriptors of the call when this ends. So it does not end
    before the thread is done with them: neither by a cancellation, nor when the coroutine is
    closed, which then waits without letting other tasks run. `wake` hastens the end: it is called,
    perhaps more than once, for a call that is to end early.

    (``trio.to_thread.run_sync`` has no `wake`, and does not support closed coroutines.)
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
