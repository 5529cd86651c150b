"""Closes descriptors in a thread: closing the last one of a removed file deletes it on its file
system, and closing the last one of a disk flushes it, which may take longer than the event loop can
stand still."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable
from functools import cache, partial
from queue import SimpleQueue

import trio
from pedos_host.threads import NoThreadError, to_thread

_Queue = SimpleQueue[Callable[[], None]]


def close_later(fd: int) -> None:
    """Have a descriptor closed, without waiting for it; in any thread, and in a finalizer too.

    While the interpreter ends no thread starts any more, and waiting for one would take for ever:
    the end of the process closes it.
    """
    if not sys.is_finalizing():
        _thread().put(partial(os.close, fd))


async def close_and_wait(close: Callable[[], None]) -> None:
    """Have something closed, and wait for it also if cancelled; but not if no thread is available,
    so that it has to wait for others."""
    with trio.CancelScope(shield=True):
        try:
            await to_thread(close)
        except NoThreadError:
            _thread().put(close)


def get_ready() -> None:
    """Have the thread, for a time when there is no other. NoThreadError."""
    _thread()


def wait_until_closed() -> None:
    """Wait until everything given to `close_later` before is closed."""
    done = threading.Event()
    _thread().put(done.set)
    done.wait()


@cache
def _thread() -> _Queue:
    """The thread takes its work from this; it ends with the process."""
    queue: _Queue = SimpleQueue()  # whose `put` may interrupt another one, as a finalizer does
    thread = threading.Thread(target=_work, args=(queue,), name="closing", daemon=True)
    try:
        thread.start()
    except RuntimeError as error:
        raise NoThreadError from error
    return queue


def _work(queue: _Queue) -> None:
    while True:
        with contextlib.suppress(OSError):  # it is closed all the same (close(2))
            queue.get()()
