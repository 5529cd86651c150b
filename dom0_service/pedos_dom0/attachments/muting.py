"""Has the sources give silence to the VMs that are muted, and to no others.

The table in the store says which VMs are; it comes first, and survives everything. What a source
says is compared with it whenever that says something: at an attach, at each of its reports, and so
after a restart of the service or of an agent. While a source does not confirm what the table says
it is asked again, and dom0's user is told: a VM whose mute is not confirmed may hear.
"""

from __future__ import annotations

import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import attrs
import trio
from pedos_host.throttle import Throttle
from pedos_protocol.errors import CallError, RemoteProtocolError
from pedos_protocol.messages import parse_result
from pedos_protocol.names import harmless_text
from pedos_protocol.words import request_to

from pedos_dom0.device_classes.registered import class_of
from pedos_dom0.errors import cannot_mute, not_confirmed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from pedos_dom0.state import State
    from pedos_dom0.tables.agents import AgentLink
    from pedos_dom0.tables.leases import Lease

logger = logging.getLogger(__name__)

# The source's agent asks the program that records, which answers in milliseconds, and gives up
# after 3 s by itself: then it knows why.
MUTE_TIMEOUT = 5.0
# Seconds until a source that did not confirm is asked again; it is also asked at each of its
# reports. A person who is told meanwhile detaches the device.
RETRY_SECONDS = 60.0
# Characters of what an agent says about a failure.
_AGENT_TEXT_MAX = 200

METHOD = "export.mute"


@attrs.define
class _Turn:
    """Who mutes one attachment, one after the other, so that the last state is the table's."""

    lock: trio.Lock = attrs.field(factory=trio.Lock)
    users: int = 0


class Muting:
    """Compares the table of muted VMs with what sources say, and asks them."""

    def __init__(self, state: State, nursery: trio.Nursery) -> None:
        self._state = state
        self._nursery = nursery
        self._turns: dict[str, _Turn] = {}
        self._retrying: dict[str, trio.Event] = {}  # set: ask again now
        self._throttle = Throttle()

    async def apply(self, lease: Lease) -> None:
        """Returns when the source does with an attachment what the table says, or when that has
        ended. CallError if it does not confirm it; then it is asked again."""
        state, attachment = self._state, lease.attachment
        try:
            async with self._turn(attachment):
                while (link := self._source(lease)) is not None:
                    muted = state.is_muted(lease)
                    heard = link.heard.get(attachment)
                    if heard is not None and heard.muted == muted:
                        return
                    await self._ask(link, lease, muted=muted)
        except CallError:
            state.registry.touch(lease.key)
            self._retry_later(lease)
            raise
        if state.leases.get(attachment) is not None and state.is_muted(lease):
            raise not_confirmed(lease, "its agent is not connected", muted=True)

    def why_unconfirmed(self, lease: Lease) -> str | None:
        """Why the source may not do what the table says; None if it does, as far as it says."""
        if not class_of(lease.key.device_class).description.heard:
            return None
        muted, heard = self._state.is_muted(lease), self._state.agents.heard(lease)
        if heard is None:
            return f"{lease.key.backend} has not said so" if muted else None
        return None if heard.muted == muted else f"{lease.key.backend} does not confirm it"

    def check(self, link: AgentLink) -> None:
        """The agent has reported: what it does otherwise than the table says is put right."""
        for lease in self._state.leases.from_backend(link.name):
            heard = self._state.agents.heard(lease)
            if heard is not None and heard.muted != self._state.is_muted(lease):
                self._retry_later(lease).set()

    def _source(self, lease: Lease) -> AgentLink | None:
        """The agent to ask; None if it is not connected, or the attachment has ended."""
        if self._state.leases.get(lease.attachment) is None:
            return None
        return self._state.agents.at(lease.key.backend, lease.backend_domid)

    async def _ask(self, link: AgentLink, lease: Lease, *, muted: bool) -> None:
        if not link.serves(METHOD):
            raise cannot_mute(lease)
        params = {"attachment": lease.attachment, "muted": muted}
        try:
            answer = await link.call(METHOD, params, timeout=MUTE_TIMEOUT)
            parse_result(METHOD, answer)
        except CallError as error:
            if self._state.leases.get(lease.attachment) is None:
                return  # it has ended meanwhile
            if error.code == "not_found":  # it does not lend it, so there is nothing to hear
                link.heard.was_muted(lease.attachment, muted)
                return
            if error.code == "timeout":
                why = f"it did not answer within {MUTE_TIMEOUT:g} s"
            elif error.code == "unavailable":
                why = "its agent went away"
            else:
                why = f"it says: {harmless_text(error.message, _AGENT_TEXT_MAX)}"
            raise not_confirmed(lease, why, muted=muted) from error
        except RemoteProtocolError as error:
            link.disconnect(f"its answer to {request_to(METHOD)} is malformed: {error}")
            raise not_confirmed(lease, "its answer is malformed", muted=muted) from error
        link.heard.was_muted(lease.attachment, muted)
        self._state.registry.touch(lease.key)

    def _retry_later(self, lease: Lease) -> trio.Event:
        """Has its source asked again; the event has it asked now."""
        if (now := self._retrying.get(lease.attachment)) is None:
            now = self._retrying[lease.attachment] = trio.Event()
            self._nursery.start_soon(self._retry, lease)
        return now

    async def _retry(self, lease: Lease) -> None:
        """Asks until the source confirms, or the attachment is over: one task for each. While its
        source is not connected there is nothing to ask; it reports when it is back."""
        try:
            while self._source(lease) is not None:
                with trio.move_on_after(RETRY_SECONDS):
                    await self._retrying[lease.attachment].wait()
                self._retrying[lease.attachment] = trio.Event()
                try:
                    await self.apply(lease)
                    return
                except CallError as error:
                    if (more := self._throttle.more(f"{lease.key} {lease.vm}")) is not None:
                        logger.warning("%s%s", error.message, more)
        finally:
            del self._retrying[lease.attachment]

    @asynccontextmanager
    async def _turn(self, attachment: str) -> AsyncIterator[None]:
        turn = self._turns.setdefault(attachment, _Turn())
        turn.users += 1
        try:
            async with turn.lock:
                yield
        finally:
            turn.users -= 1
            if not turn.users:
                del self._turns[attachment]
