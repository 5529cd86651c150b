"""The lifetime of one attachment on this side: starting, ready, ending, and why it ended.

Everything that may end an attachment (a request, the death of a child, the end of the channel, the
device unplugged) calls `end` with a reason, and the first reason counts. Before `ready` that
cancels the start; afterwards it wakes the attachment's own task, which then ends it in order.
"""

from __future__ import annotations

from typing import Any, Final

import trio
from pedos_protocol.errors import CallError
from pedos_vchan.pump import Why

from pedos_agent.device_classes.hearing import Hearing

# The death of nbdkit or nbdfuse ends the pump before the child is reaped and its last words are
# read.
CHILD_FIRST_SECONDS: Final = 1.0
# Reasons that only the other domain can have caused: no child process has anything to add.
_OF_THE_PEER: Final = (Why.PEER_CLOSED, Why.PEER_DIED, Why.PEER_BROKEN, Why.PEER_FLOODED)


class Lifetime:
    """Shared by the task that runs an attachment and by all that wait for it or end it."""

    def __init__(self) -> None:
        """Start in the state "starting"."""
        self.scope = trio.CancelScope()
        self.reason: str | None = None
        self.requested = False
        self.result: dict[str, Any] | None = None
        self.hearing: Hearing | None = None  # of what can be listened to
        self._failure: CallError | None = None
        self._ending = trio.Event()
        self._settled = trio.Event()
        self._gone = trio.Event()

    def ready(self, result: dict[str, Any]) -> None:
        """The attachment works: answer its start with `result`."""
        self.result = result
        self._settled.set()

    def end(self, reason: str, *, requested: bool = False) -> None:
        """End the attachment because of `reason`; later reasons are ignored."""
        if self.reason is not None:
            return
        self.reason = reason
        self.requested = self.requested or requested
        self._ending.set()
        if self.result is None:
            self.scope.cancel()

    async def end_after_pump(self, why: Why) -> None:
        """End it because the pump ended; a child that ended has a moment to give the reason
        itself."""
        if why not in _OF_THE_PEER:
            with trio.move_on_after(CHILD_FIRST_SECONDS):
                await self._ending.wait()
        self.end(f"the data channel ended: {why}")

    async def ending(self) -> None:
        """Wait until something ended the attachment."""
        await self._ending.wait()

    def finish(self, failure: CallError | None) -> None:
        """Nothing of the attachment is left; `failure` is why, if it never became ready."""
        self._failure = failure
        self._settled.set()
        self._gone.set()

    async def started(self) -> dict[str, Any]:
        """Wait until it is ready, and return its result; CallError if it failed instead."""
        await self._settled.wait()
        if self.result is not None:
            return self.result
        raise self._failure or CallError("failed", f"ended while it started: {self.reason}")

    async def gone(self) -> None:
        """Wait until nothing of it is left."""
        await self._gone.wait()
