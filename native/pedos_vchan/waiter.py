"""One call that waits for its answer, without an event, a queue or a cancel scope of its own: a
task that waits, or a function that is called."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio
from trio.lowlevel import (
    cancel_shielded_checkpoint,
    current_task,
    reschedule,
    wait_task_rescheduled,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

    from pedos_protocol.events import Answer, ErrorAnswer

    from .conversation import Conversation


class Waiter:
    """A call of ours that waits for its answer until `deadline` (of trio's clock)."""

    __slots__ = ("_task", "answer", "deadline", "in_place_of", "is_settled", "timed_out")

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self.is_settled = False
        self.timed_out = False
        self.answer: Answer | ErrorAnswer | None = None  # None when settled: none came in time
        self.in_place_of: Conversation | None = None  # whose reader it stands in for
        self._task: trio.lowlevel.Task | None = None

    def settle(self, answer: Answer | ErrorAnswer | None) -> None:
        """Ends the wait. An answer counts until the caller has looked, even after a time-out: its
        operation is done, and its caller must not take it for undone."""
        self.answer = self.answer or answer
        if not self.is_settled:
            self.is_settled = True
            if self._task is not None:
                reschedule(self._task)
            elif self.in_place_of is not None:
                self.in_place_of.wake_substitute()

    def expire(self) -> None:
        """Ends the waiting because the deadline has come."""
        self.timed_out = True
        self.settle(None)

    def wait(self) -> Coroutine[Any, Any, Any]:
        """To be awaited at once: returns once settled; lets other tasks run in any case. Cancelled
        only if it is not settled."""
        # No coroutine of its own: it would be one more for each step of the task to go through.
        if self.is_settled:
            return cancel_shielded_checkpoint()  # noqa: ASYNC105 - the caller awaits it
        # As trio.Event does, without making an event and a queue for each call.
        self._task = current_task()
        return wait_task_rescheduled(self._abort)  # noqa: ASYNC105 - as above

    def _abort(self, _: object) -> trio.lowlevel.Abort:
        self._task = None
        return trio.lowlevel.Abort.SUCCEEDED

    async def wait_in_place(self, conversation: Conversation) -> None:
        """Waits for news in `conversation` instead of its reader, or to be settled."""
        self.in_place_of = conversation
        try:
            await conversation.wait_instead()
        finally:
            self.in_place_of = None


class Asked:
    """A request whose answer nobody waits for: `tell(self)` is called once, with the answer in
    `answer` or None. It must not raise."""

    __slots__ = ("answer", "deadline", "id", "method", "tell", "timed_out", "timeout")

    def __init__(
        self, method: str, timeout: float, deadline: float, tell: Callable[[Asked], None]
    ) -> None:
        self.method = method
        self.timeout = timeout
        self.deadline = deadline
        self.timed_out = False
        self.answer: Answer | ErrorAnswer | None = None
        self.id = 0
        self.tell: Callable[[Asked], None] | None = tell

    def settle(self, answer: Answer | ErrorAnswer | None) -> None:
        """Ends the waiting."""
        tell, self.tell = self.tell, None
        if tell is not None:
            self.answer = answer
            tell(self)

    def expire(self) -> None:
        """Ends the waiting because the deadline has come."""
        self.timed_out = True
        self.settle(None)
