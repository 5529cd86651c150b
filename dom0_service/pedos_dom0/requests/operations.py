"""Work that continues when its caller has gone.

An attach that is half done when the command line is interrupted must end as attached or as undone.
So operations run in the service's nursery, not in the client's; the client only waits for the end.
The deadlines of its steps bound each operation, so none needs a deadline of its own.
"""

from __future__ import annotations

import logging
from collections import Counter
from typing import TYPE_CHECKING, Generic, TypeVar

import trio
from pedos_host.throttle import Throttle
from pedos_protocol.errors import CallError

from pedos_dom0.errors import NotStoredError, QuotaError, failure, store_failures

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Enough for a user who attaches a handful of devices at once. Every operation may hold a port and a
# lease for as long as hanging VMs make its steps wait (an attach with its undoing: 65 s, see the
# time-outs of transaction.py and teardown.py), and one VM must not collect more of them.
# What is attached by itself waits for its turn before (auto_attach.py), and so never gets there.
OPERATIONS_MAX = {"vm": 8, "local": 64, "desktop": 32, "auto": 8}


class _Outcome(Generic[T]):
    """How an operation ended, for a waiter that may have stopped waiting."""

    def __init__(self) -> None:
        self.done = trio.Event()
        self.ended = False  # otherwise it was cancelled, because the service ends
        self.result: T | None = None
        self.error: CallError | None = None


class Operations:
    """Runs operations in `nursery`, counted per caller."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.nursery = nursery
        self._running: Counter[tuple[str, str]] = Counter()
        self._throttle = Throttle()

    async def run(
        self, kind: str, name: str, work: Callable[[], Awaitable[T]], caller_gone: trio.Event
    ) -> T:
        """Runs `work` to its end even if the caller of this is cancelled, and returns its result.

        `caller_gone` is set then, for work that is useful only while its caller waits. Raises what
        it raises, as CallError; CallError(quota) if the caller has too many running.
        """
        caller = (kind, name)
        if self._running[caller] >= OPERATIONS_MAX[kind]:
            raise QuotaError(
                name,
                f"{OPERATIONS_MAX[kind]} operations of {name} are in progress already",
                hint="wait for one of them to end",
            )
        self._running[caller] += 1
        outcome = _Outcome[T]()
        self.nursery.start_soon(self._work, caller, work, outcome)
        try:
            await outcome.done.wait()
        except trio.Cancelled:
            if not outcome.ended:
                caller_gone.set()
                raise
            # else it has just ended, and its caller has to hear the result
        if outcome.error is not None:
            raise outcome.error
        return outcome.result  # type: ignore[return-value]  # None only if T is

    async def _work(
        self, caller: tuple[str, str], work: Callable[[], Awaitable[T]], outcome: _Outcome[T]
    ) -> None:
        try:
            with store_failures():
                outcome.result = await work()
        except CallError as error:
            is_store = isinstance(error, NotStoredError)
            if is_store and (more := self._throttle.more(f"store {caller[1]}")) is not None:
                logger.error("an operation of %s failed: %s%s", caller[1], error.message, more)
            outcome.error = error
        except Exception:
            # A bug in this program must not take down the service with all its leases.
            if (more := self._throttle.more(f"operation {caller[1]}")) is not None:
                said = "an operation of %s failed in an unforeseen way%s"
                logger.exception(said, caller[1], more)
            outcome.error = failure("failed", "an internal error; the service's log has it")
        finally:
            self._running[caller] -= 1
            if not self._running[caller]:
                del self._running[caller]
            outcome.done.set()
        outcome.ended = True
