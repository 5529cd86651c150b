"""The connected agents, and waiting for one that should be.

An agent counts as connected when its first report was reconciled with the journal: from then on its
devices are in the registry and it can be asked to export and import.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final, Protocol

import trio
from pedos_protocol.agent_messages import SCHEMA
from pedos_protocol.errors import CallError

from pedos_dom0.tables.heard import Heard, HeardTable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from pedos_dom0.tables.leases import Lease
    from pedos_dom0.tables.report_pages import Report

# An agent that was just started, or that lost the service when it was restarted, is back within a
# second; its machine may be busy. Waiting longer would only hide that it is broken.
AGENT_GRACE = 5.0

# Attachments of one connection that are remembered after their end, to tell a late report from an
# invented one. Reports pass their rate limit within 13 s; no user attaches and detaches eighty
# times a second.
REMEMBERED_MAX = 1024


class AgentPeer(Protocol):
    """The part of a Peer that a link needs."""

    @property
    def version(self) -> int: ...

    @property
    def is_open(self) -> bool: ...

    async def call(
        self, method: str, params: dict[str, Any], *, timeout: float
    ) -> dict[str, Any]: ...

    def ask(
        self,
        method: str,
        params: dict[str, Any],
        *,
        timeout: float,
        then: Callable[[dict[str, Any] | CallError], None],
    ) -> Callable[[], None]: ...


class AgentLink:
    """One control connection to the agent of one domain, from its hello to its end.

    A new connection of the same domain is a new link: a task that holds the link of an agent that
    has gone keeps getting `unavailable`, and never talks to its successor by mistake.
    """

    __slots__ = (
        "_drop",
        "_peer",
        "_told",
        "domid",
        "heard",
        "lost",
        "name",
        "report",
    )

    def __init__(self, name: str, domid: int, peer: AgentPeer, drop: Callable[[str], None]) -> None:
        self.name = name
        self.domid = domid
        self.report: Report | None = None
        self.heard = HeardTable()
        self.lost = False
        self._peer = peer
        self._drop = drop
        self._told: OrderedDict[str, None] | None = None  # made for the first one

    def __repr__(self) -> str:
        return f"<AgentLink {self.name} domain {self.domid}{' lost' if self.lost else ''}>"

    @property
    def connected(self) -> bool:
        """False as soon as the connection has ended, even before that is announced."""
        return not self.lost and self._peer.is_open

    def serves(self, method: str) -> bool:
        """Whether the agent's version of the protocol has that method."""
        return SCHEMA[method].since <= self._peer.version

    async def call(self, method: str, params: dict[str, Any], *, timeout: float) -> dict[str, Any]:
        """Asks the agent, in its version of the protocol; `timeout` in seconds. Raises CallError,
        also when it is gone or does not know the method."""
        return await self._peer.call(method, self._known(method, params), timeout=timeout)

    def ask(
        self,
        method: str,
        params: dict[str, Any],
        *,
        timeout: float,
        then: Callable[[dict[str, Any] | CallError], None],
    ) -> None:
        """As `call`, for one who does not wait: `then` is called with the answer or the error, from
        another task. CallError: nothing was asked."""
        self._peer.ask(method, self._known(method, params), timeout=timeout, then=then)

    def _known(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        """The parameters in the agent's version of the protocol. CallError: it cannot be asked."""
        if self.lost:
            raise CallError("unavailable", f"the agent of {self.name} is not connected", {})
        if "attachment" in params:
            self.remember(params["attachment"])
        return SCHEMA.params_in(self._peer.version, method, params)

    def remember(self, attachment: str) -> None:
        """The agent has a reason to name this attachment, even after it has ended."""
        if self._told is None:
            self._told = OrderedDict()
        self._told[attachment] = None
        self._told.move_to_end(attachment)
        if len(self._told) > REMEMBERED_MAX:
            self._told.popitem(last=False)

    def was_told_of(self, attachment: str) -> bool:
        """Whether dom0, or the first report, named this attachment on this connection."""
        return self._told is not None and attachment in self._told

    def disconnect(self, reason: str) -> None:
        """Ends the connection because the agent misbehaved. The reason goes to the audit log."""
        if not self.lost:
            self._drop(reason)


class AgentTable:
    """Name -> link of every connected agent."""

    def __init__(self) -> None:
        self._links: dict[str, AgentLink] = {}
        #: `get(name)`: the link of this VM's agent; None if it is not connected.
        self.get: Final = self._links.get
        self._expected: dict[str, float] = {}
        self._waiting = trio.lowlevel.ParkingLot()
        self._followers: list[Callable[[], None]] = []

    def follow(self, follower: Callable[[], None]) -> None:
        """Calls `follower` after an agent was added or removed."""
        self._followers.append(follower)

    def __iter__(self) -> Iterator[AgentLink]:
        return iter(self._links.values())

    def at(self, name: str, domid: int) -> AgentLink | None:
        """The link to this very domain, not to a later run of the VM."""
        link = self._links.get(name)
        return link if link is not None and link.domid == domid else None

    def heard(self, lease: Lease) -> Heard | None:
        """What its source says of an attachment; None if it has not, or is not connected."""
        link = self.at(lease.key.backend, lease.backend_domid)
        return None if link is None else link.heard.get(lease.attachment)

    def expect(self, name: str) -> None:
        """A domain began to run: its agent should connect soon."""
        self._expected[name] = trio.current_time() + AGENT_GRACE

    def unexpect(self, name: str) -> None:
        """The domain ended, or its agent is known to be broken."""
        self._expected.pop(name, None)
        self._wake()

    def add(self, link: AgentLink) -> None:
        self._links[link.name] = link
        self._expected.pop(link.name, None)
        self._wake()

    def remove(self, link: AgentLink) -> None:
        """Forgets a link; fine if it never was added or its successor is there already."""
        link.lost = True
        if self._links.get(link.name) is link:
            del self._links[link.name]
        self._wake()

    def _wake(self) -> None:
        self._waiting.unpark_all()
        for follower in self._followers:
            follower()

    async def wait_for(
        self, name: str, *, timeout: float, worthwhile: Callable[[], bool] = lambda: True
    ) -> AgentLink | None:
        """The VM's agent, or None if it is not there after `timeout` seconds.

        Gives up at once when `worthwhile` says that the wait is pointless.
        """
        with trio.move_on_after(timeout):
            while worthwhile():
                if (link := self._links.get(name)) is not None:
                    return link
                await self._waiting.park()
        return None

    async def wait_expected(self, names: Iterable[str] | None = None) -> None:
        """Waits until those of the named agents that were just started are there, or late.

        Without names: all of them. Returns at once in a system that has been up for a while, and
        after AGENT_GRACE at the latest.
        """
        wanted = None if names is None else set(names)
        while True:
            now = trio.current_time()
            deadlines = [
                deadline
                for name, deadline in self._expected.items()
                if deadline > now and (wanted is None or name in wanted)
            ]
            if not deadlines:
                return
            with trio.move_on_at(max(deadlines, default=math.inf)):
                await self._waiting.park()
