"""Who listens now: what agents say of it reaches those who watch, and the audit log.

A program in a VM can begin and stop to record as often as it likes, and an agent can say so as
often as its connection allows. So each attachment is told of at once, and then once a PAUSE, with
the state that it has then; the audit log sums up what is too much for it (audit/throttle.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import trio

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pedos_dom0.state import State
    from pedos_dom0.tables.agents import AgentLink
    from pedos_dom0.tables.leases import Lease

# Seconds between two changes of one attachment that are told. A person does not begin and stop to
# record faster, and a watcher costs milliseconds each time.
PAUSE = 1.0


@attrs.define
class _Told:
    """What was last told of an attachment, and when more may be; `waits`: a task will do it."""

    listening: bool = False
    next_at: float = 0.0
    waits: bool = False


class Listening:
    """Tells of changes. It keeps one entry for each attachment that was listened to."""

    def __init__(self, state: State, nursery: trio.Nursery) -> None:
        self._state = state
        self._nursery = nursery
        self._told: dict[str, _Told] = {}

    def says(self, link: AgentLink, lease: Lease, listening: bool) -> None:
        """A notice of the source's agent."""
        if link.heard.says_listening(lease.attachment, listening):
            self._changed(lease)

    def reported(self, link: AgentLink, attachments: Iterable[str]) -> None:
        """A report that says something else of these, some of which may have ended meanwhile."""
        for attachment in attachments:
            lease = self._state.leases.get(attachment)
            if lease is not None and self._state.agents.at(link.name, link.domid) is link:
                self._changed(lease)

    def _changed(self, lease: Lease) -> None:
        for gone in [each for each in self._told if self._state.leases.get(each) is None]:
            del self._told[gone]
        told = self._told.setdefault(lease.attachment, _Told())
        if told.waits:
            return  # what is so then is told then
        if trio.current_time() >= told.next_at:
            self._tell(lease, told)
        else:
            told.waits = True
            self._nursery.start_soon(self._tell_later, lease, told)

    async def _tell_later(self, lease: Lease, told: _Told) -> None:
        await trio.sleep_until(told.next_at)
        told.waits = False
        self._tell(lease, told)

    def _tell(self, lease: Lease, told: _Told) -> None:
        heard = self._state.agents.heard(lease)
        if heard is None or self._state.leases.get(lease.attachment) is None:
            return  # its end is told otherwise
        if heard.listening == told.listening:
            return
        told.listening, told.next_at = heard.listening, trio.current_time() + PAUSE
        self._state.registry.touch(lease.key)
        self._state.listening_throttle.write(
            "listening",
            of=lease.vm,
            throttled=True,
            **lease.in_audit(),
            outcome="begins" if heard.listening else "ends",
        )
