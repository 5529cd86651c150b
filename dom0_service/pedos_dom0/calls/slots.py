"""How many calls run at a time, and which of those that wait is next. No I/O here.

A call takes a place of its source, of the pair of its two VMs and of its target, all three or
none. The caller's side gives back that of the source, and the service's side the other two: a VM
that does not end its own side of a call holds only its own places.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import attrs
import trio

from pedos_dom0.errors import QuotaError, target_is_full

if TYPE_CHECKING:
    from pedos_protocol.errors import CallError

K = TypeVar("K")

# Calls that run of one source. Programs for the reference system rely on some fifty; each needs a
# channel, a thread and six descriptors in the agent.
PER_SOURCE = 64
# Of one source in one target, so that two sources always find room in a target together.
PER_PAIR = 32
# In one target: each is a process there.
PER_TARGET = 128
# Calls of one source that wait for a place: as many as may run.
WAITING_PER_SOURCE = 64


@attrs.define(eq=False)
class _Waiter:
    source: str
    target: str
    task_may_go: trio.Event = attrs.field(factory=trio.Event)


class Slots:
    """The places of all calls. Names are VMs'."""

    def __init__(self) -> None:
        self._of_source: dict[str, int] = {}
        self._of_pair: dict[tuple[str, str], int] = {}
        self._of_target: dict[str, int] = {}
        self._waiting: dict[_Waiter, None] = {}  # in the order in which they came

    def full(self, source: str, target: str) -> CallError | None:
        """Why no call of `source` in `target` can begin now; None if one can."""
        if self._of_source.get(source, 0) >= PER_SOURCE:
            return QuotaError(
                source, f"{PER_SOURCE} calls of {source} run already, which is the most"
            )
        if self._of_pair.get((source, target), 0) >= PER_PAIR:
            # The source knows how many it has, but not where policy has sent them.
            return target_is_full(target, PER_PAIR, f" for {source}")
        if self._of_target.get(target, 0) >= PER_TARGET:
            return target_is_full(target, PER_TARGET)
        return None

    def is_free(self, source: str, target: str) -> bool:
        """Whether a call would get a place at once: those that came before go first."""
        if self._waiting and self._is_waited_for(source, target):
            return False
        return self.full(source, target) is None

    async def take(self, source: str, target: str, timeout: float) -> bool:
        """Takes a place, and waits for one if it has to; whether it had to.

        CallError if none is free after `timeout` seconds, or if too many wait already.
        """
        if self.is_free(source, target):
            self.take_anyway(source, target)
            return False
        if sum(each.source == source for each in self._waiting) >= WAITING_PER_SOURCE:
            raise QuotaError(
                source,
                f"{WAITING_PER_SOURCE} calls of {source} wait already for others to end, which is "
                "the most",
            )
        waiter = _Waiter(source, target)
        self._waiting[waiter] = None
        try:
            with trio.move_on_after(timeout):
                await waiter.task_may_go.wait()
        except trio.Cancelled:
            self._leave(waiter)
            raise
        if waiter.task_may_go.is_set():
            return True
        del self._waiting[waiter]
        full = self.full(source, target)
        assert full is not None
        raise full

    def take_anyway(self, source: str, target: str) -> None:
        """Takes a place for a call that runs already, however many there are."""
        pair = (source, target)
        self._of_source[source] = self._of_source.get(source, 0) + 1
        self._of_pair[pair] = self._of_pair.get(pair, 0) + 1
        self._of_target[target] = self._of_target.get(target, 0) + 1

    def caller_ended(self, source: str) -> None:
        """Gives the place of the source back."""
        _less(self._of_source, source)
        if self._waiting:
            self._next()

    def service_ended(self, source: str, target: str) -> None:
        """Gives the places of the pair and of the target back."""
        _less(self._of_pair, (source, target))
        _less(self._of_target, target)
        if self._waiting:
            self._next()

    def count(self) -> int:
        """The number of places that are taken, or waited for."""
        counted = (self._of_source, self._of_pair, self._of_target)
        return sum(sum(each.values()) for each in counted) + len(self._waiting)

    def _is_waited_for(self, source: str, target: str) -> bool:
        return any(source == each.source and target == each.target for each in self._waiting)

    def _next(self) -> None:
        """Lets those go for which there is room now."""
        for waiter in list(self._waiting):
            if self.full(waiter.source, waiter.target) is None:
                del self._waiting[waiter]
                self.take_anyway(waiter.source, waiter.target)
                waiter.task_may_go.set()

    def _leave(self, waiter: _Waiter) -> None:
        """A task stops waiting; if it was just given a place, it gives that back."""
        if waiter.task_may_go.is_set():
            self.caller_ended(waiter.source)
            self.service_ended(waiter.source, waiter.target)
        else:
            del self._waiting[waiter]


def _less(counts: dict[K, int], key: K) -> None:
    if (count := counts.get(key, 0)) > 1:
        counts[key] = count - 1
    else:
        counts.pop(key, None)
