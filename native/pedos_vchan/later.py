"""Answers that a handler owes without a task: it returns a `Later`, and whoever knows the answer
gives it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, final

if TYPE_CHECKING:
    from collections.abc import Callable

    Outcome = dict[str, Any] | None | Exception

log = logging.getLogger(__name__)


@final
class Later:
    """One answer that is owed. Whoever made it says it once, by `answer` or `fail`, from any task;
    the first word counts.

    Until then its asker may give up, the deadline of the request may come, or the connection end:
    then `cancelled` is called, once. It must not wait, and may still say the answer; otherwise the
    request is answered `timeout`. So an answer that is forgotten takes a place until the deadline
    only.
    """

    __slots__ = ("_said", "_settle", "_why", "cancelled", "deadline", "is_over")

    def __init__(self, cancelled: Callable[[], None] | None = None) -> None:
        self.cancelled = cancelled
        self.is_over = False  # what is said any more is dropped
        self.deadline = 0.0  # of trio's clock, once it is owed
        self._said: tuple[Outcome, bool] | None = None  # before it is owed
        self._settle: Callable[[Later, Outcome, bool], None] | None = None
        self._why: Callable[[bool], Exception] | None = None

    def answer(self, result: dict[str, Any] | None = None, *, more: bool = False) -> bool:
        """The request is done; whether this counts. With `more` it is written together with what
        the caller tells the same peer next, in the same step."""
        return self._say(result, more)

    def fail(self, error: Exception, *, more: bool = False) -> bool:
        """As `answer`, with a CallError; any other exception is logged and answered `failed`."""
        return self._say(error, more)

    def _say(self, outcome: Outcome, more: bool) -> bool:
        if self.is_over:
            return False
        self.is_over = True
        if self._settle is None:
            self._said = outcome, more
        else:
            self._settle(self, outcome, more)
        return True

    # For the server, which the handler has returned it to.

    def owe(
        self,
        settle: Callable[[Later, Outcome, bool], None],
        why: Callable[[bool], Exception],
        deadline: float,
    ) -> None:
        """From now on `settle` gets what is said; or has it now. `why` makes the error of one that
        was given up, or that is late."""
        if self._settle is not None:
            raise RuntimeError("one answer for two requests")
        self._settle, self._why, self.deadline = settle, why, deadline
        if self._said is not None:
            settle(self, *self._said)

    def cancel(self) -> None:
        """Its asker has given up, or is gone."""
        self._give_up(is_late=False)

    def expire(self) -> None:
        """Its deadline has come."""
        self._give_up(is_late=True)

    def _give_up(self, *, is_late: bool) -> None:
        assert self._why is not None
        if self.cancelled is not None and not self.is_over:
            try:
                self.cancelled()
            except Exception:  # a mistake in it ends nothing but itself
                log.exception("what follows a request that was given up")
        self._say(self._why(is_late), False)
