"""Attachments that should have ended but are not free: the service ends them again until it works.

The toolstack may fail to take a device away even by force; or, in local mode, a source's agent
hangs and does not confirm the end, and is not disconnected because other VMs would lose what it
lends them. No VM gets the device meanwhile.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import trio
from attrs import define, field

from pedos_dom0.drivers.base import RETRY_SECONDS
from pedos_dom0.errors import held_by_source, held_by_toolstack

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from pedos_protocol.errors import CallError

    from pedos_dom0.attachments.ways import Way
    from pedos_dom0.state import State
    from pedos_dom0.tables.leases import Lease

logger = logging.getLogger(__name__)

#: The holder's name, if it is not the source.
TOOLSTACK = "toolstack"


@define
class LeftOver:
    """`reason`, `way` and `request`: of the end that failed. `was_attached`: not only begun.
    `holder`: the source, or TOOLSTACK. `error`: what a caller is told."""

    reason: str
    way: Way
    request: str | None
    was_attached: bool
    holder: str
    error: CallError
    woken: trio.Event = field(factory=trio.Event)

    @property
    def why(self) -> str:
        """Why it is not free, for a list."""
        if self.holder == TOOLSTACK:
            return "the toolstack does not take it away"
        return f"{self.holder} does not confirm the end"

    def insist(self, reason: str, way: Way) -> None:
        """It must end for this reason, too."""
        if way.outranks(self.way):
            self.reason, self.way = reason, way


class LeftOvers:
    """`end(attachment, reason, way)` tries one again; background work runs in `nursery`."""

    def __init__(
        self,
        state: State,
        nursery: trio.Nursery,
        end: Callable[[str, str, Way], Awaitable[None]],
    ) -> None:
        self._state = state
        self._nursery = nursery
        self._end = end
        self._of: dict[str, LeftOver] = {}

    def get(self, attachment: str) -> LeftOver | None:
        return self._of.get(attachment)

    def note(self, lease: Lease, holder: str, reason: str, way: Way, request: str | None) -> None:
        """An end failed. What is known of an earlier attempt stays, except a way that must be
        obeyed from now on."""
        error = (held_by_toolstack if holder == TOOLSTACK else held_by_source)(lease)
        # Lists say so from now on.
        self._state.registry.touch(lease.key)
        if (known := self._of.get(lease.attachment)) is not None:
            known.holder, known.error = holder, error
            known.insist(reason, way)
            return
        logger.critical("%s; no other VM gets it", error.message)
        self._state.audit.write(
            "left_over",
            request=request,
            **lease.in_audit(),
            holder=holder,
            reason=reason,
        )
        noted = LeftOver(reason, way, request, lease.is_made, holder, error)
        self._of[lease.attachment] = noted
        self._nursery.start_soon(self._try_again, lease.attachment, noted)

    def wake(self, attachment: str) -> None:
        """Its holder may have released it: try now."""
        if (left_over := self._of.get(attachment)) is not None:
            left_over.woken.set()

    def forget(self, attachment: str) -> None:
        """It is free, or attached after all."""
        if (left_over := self._of.pop(attachment, None)) is not None:
            left_over.woken.set()

    async def _try_again(self, attachment: str, left_over: LeftOver) -> None:
        while True:
            with trio.move_on_after(RETRY_SECONDS):
                await left_over.woken.wait()
            left_over.woken = trio.Event()
            if self._of.get(attachment) is not left_over:
                return
            await self._end(attachment, left_over.reason, left_over.way)
