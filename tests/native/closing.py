"""Closes a coroutine while its work runs in a thread."""

from __future__ import annotations

import types
from collections.abc import Coroutine, Generator
from typing import Any


@types.coroutine
def close_in_its_thread(work: Coroutine[Any, Any, Any]) -> Generator[Any, Any, None]:
    """Runs `work` until it waits for its thread, and closes it there."""
    sent = None
    while True:
        trap = work.send(sent)
        if type(trap).__name__ == "WaitTaskRescheduled":
            work.close()
            return
        sent = yield trap
