"""The questions to dom0 of calls that begin: as many as may wait for an answer, so many a second.

Most are sent at once, and take no task; one that has to wait takes one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final, Protocol, TypeAlias

import trio
from pedos_protocol.call_messages import CALLS_ASKED_MAX
from pedos_protocol.errors import CallError
from pedos_vchan.parking import Parking

log = logging.getLogger(__name__)

# Requests for calls a second in the long run, and at once: dom0 takes 700 a second of a VM, and
# makes those wait that are more; it ends a channel at 2000 frames a second, and a call has two.
RATE: Final = 600
BURST: Final = 400

Then: TypeAlias = Callable[[dict[str, Any] | CallError], None]
GiveUp: TypeAlias = Callable[[], None]
Begin: TypeAlias = Callable[..., None]


class Dom0(Protocol):
    """The connection to dom0's service, of which there may be none."""

    def ask(self, method: str, params: dict[str, Any], *, timeout: float, then: Then) -> GiveUp:
        """As `Peer.ask`. CallError `unavailable` without a connection."""
        ...

    def tell(self, method: str, params: dict[str, Any]) -> bool:
        """A notice; False if there is no connection, and it is dropped."""
        ...


class Asking:
    """One question."""

    def __init__(self, params: dict[str, Any], timeout: float, then: Then) -> None:
        self.params = params
        self.timeout = timeout
        self.then = then
        self.waiting: trio.CancelScope | None = None  # until it is sent
        self.give_up_sent: GiveUp | None = None

    def cancel(self) -> None:
        """Nobody wants the answer, which comes soon and says whether it is too late for that."""
        if self.give_up_sent is not None:
            self.give_up_sent()
        elif self.waiting is not None:
            self.waiting.cancel()


class Questions:
    """All of them."""

    def __init__(self, dom0: Callable[[], Dom0 | None], begin: Begin) -> None:
        """`begin` starts a task. In an event loop."""
        self._dom0 = dom0
        self._begin = begin
        self._time = trio.lowlevel.current_clock().current_time
        self._free = CALLS_ASKED_MAX  # places
        self._places = Parking()  # waits for one
        self._next = 0.0  # when the next one may be sent, if the burst is used up

    def ask(self, params: dict[str, Any], *, timeout: float, then: Then) -> Asking:
        """Ask whether there may be this call. `then` is called later with dom0's answer, or its
        refusal. CallError if dom0 cannot be asked."""
        asking = Asking(params, timeout, then)
        if not self._free:
            self._wait(asking, has_place=False)
            return asking
        self._free -= 1
        now = self._time()
        if self._due(now) > now:
            self._wait(asking, has_place=True)
        else:
            self._send(asking)
        return asking

    def _due(self, now: float) -> float:
        """When the next one may be sent, which takes its turn by this."""
        self._next = max(self._next, now) + 1 / RATE
        return self._next - BURST / RATE

    def _wait(self, asking: Asking, *, has_place: bool) -> None:
        asking.waiting = trio.CancelScope()
        self._begin(self._send_later, asking, asking.waiting, self._next, has_place)

    async def _send_later(
        self, asking: Asking, scope: trio.CancelScope, turn: float, has_place: bool
    ) -> None:
        try:
            with scope:
                if not has_place:
                    await self._place()
                    has_place = True
                    self._due(self._time())
                    turn = self._next
                await trio.sleep_until(turn - BURST / RATE)
                has_place = False  # it is the question's
                self._send(asking)
        except CallError as error:
            asking.then(error)
        finally:
            if has_place:
                self._release()
        if scope.cancelled_caught:
            asking.then(CallError("timeout", "it was given up before dom0 was asked"))

    async def _place(self) -> None:
        if self._free:
            self._free -= 1
        else:
            await self._places.park()

    def _release(self) -> None:
        # Handed over, so that no later one overtakes one that waits.
        if not self._places.unpark():
            self._free += 1

    def _send(self, asking: Asking) -> None:
        """In the place that it has. CallError."""

        def answered(answer: dict[str, Any] | CallError) -> None:
            self._release()
            asking.then(answer)

        try:
            dom0 = self._dom0()
            if dom0 is None:
                raise CallError("unavailable", "dom0's service is not reachable from this VM")
            asking.give_up_sent = dom0.ask(
                "service.call", asking.params, timeout=asking.timeout, then=answered
            )
        except Exception as error:
            self._release()
            if isinstance(error, CallError):
                raise
            # It would end whatever asks, which may be a task beside all others of the agent.
            log.exception("dom0 could not be asked for a call")
            raise CallError("failed", "the agent of this VM failed") from error
