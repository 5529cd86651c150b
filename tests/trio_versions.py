"""Helpers that work with every version of trio."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import AsyncIterator

import trio

#: For trio.to_thread.run_sync: a cancelled caller does not wait for its thread. Renamed in 0.23.
_PARAMETERS = inspect.signature(trio.to_thread.run_sync).parameters
LEFT_ALONE = {("abandon_on_cancel" if "abandon_on_cancel" in _PARAMETERS else "cancellable"): True}


@contextlib.asynccontextmanager
async def background() -> AsyncIterator[trio.Nursery]:
    """A nursery of tasks that serve a block, which has them end in the end.

    What the block raises comes out as it is; a nursery would put it into a group, and a test that
    expects an error would not know it. What a task raises comes in a group, as it is a surprise.
    """
    raised: Exception | None = None
    async with trio.open_nursery() as nursery:
        try:
            yield nursery
        except Exception as error:
            raised = error
    if raised is not None:
        raise raised
