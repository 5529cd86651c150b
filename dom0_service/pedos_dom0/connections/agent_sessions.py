"""Control connections: one task for every running domain, for as long as it runs.

Each task connects to the domain's agent, serves the connection until it ends (agent_session.py),
and starts over. The domain of the connection tells which VM speaks. A VM that breaks the protocol
is disconnected, recorded, and kept waiting; no other VM notices.
"""

from __future__ import annotations

import logging
from typing import cast

import attrs
import trio
from pedos_host.system_errors import what_is_wrong
from pedos_protocol.errors import RemoteProtocolError
from pedos_protocol.frozen import frozen

from pedos_dom0.connections.agent_session import AgentSession, SharedParts
from pedos_dom0.drivers.base import DOM0_NAME, DomainInfo, HypervisorLost

logger = logging.getLogger(__name__)

# An agent that starts listens some ten milliseconds after its domain runs; one that does not is
# asked twice a second, which costs nothing.
RETRY_FIRST = 0.02
RETRY_MAX = 0.5
# Seconds for which a missing agent is not logged: the VM, or its agent, has just been started.
QUIET = 2.0
# The rendezvous of a channel takes a few messages between two processes; a VM that stalls in it is
# treated like one that is not there.
CONNECT_TIMEOUT = 5.0
# A VM that breaks the protocol may try again after this many seconds, doubling up to the maximum:
# it must not fill the log, nor keep dom0 busy parsing.
PENALTY_FIRST = 1.0
PENALTY_MAX = 30.0
# Seconds without a breach after which an earlier one is forgotten.
GOOD_BEHAVIOUR = 60.0


@frozen
class _End:
    """How a connection, or the attempt to make one, ended. `broke`: the VM caused it."""

    why: str
    broke: bool
    connected: bool


@attrs.define(eq=False)
class _Task:
    """The task of one domain, which is ended from outside when the domain has ended.

    It needs no cancel scope of its own for that, which would take half a KiB: a session ends its
    tasks itself, and any other wait has a time-out.
    """

    name: str
    domid: int
    session: AgentSession | None = None
    wait: trio.CancelScope | None = None
    is_over: bool = False

    def end(self) -> None:
        self.is_over = True
        if self.session is not None:
            self.session.close()
        elif self.wait is not None:
            self.wait.cancel()

    async def pause(self, seconds: float) -> None:
        """Returns after so many seconds, or at the end."""
        with trio.move_on_after(seconds) as self.wait:
            await trio.sleep_forever()
        self.wait = None


class AgentSessions:
    """Keeps a control connection to every domain that runs."""

    def __init__(self, shared: SharedParts) -> None:
        self._state = shared.state
        self._shared = shared
        self._tasks: dict[str, _Task] = {}

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Follows the driver's events; raises HypervisorLost when they end.

        They end with the driver, which then gives the reason itself, or when this subscriber was
        cut off: a service that no longer hears of its VMs must not continue as if it did.
        """
        events = self._state.driver.events()
        async with trio.open_nursery() as nursery:
            dom0 = self._state.domain(DOM0_NAME)
            assert dom0 is not None
            self._follow(dom0, nursery)
            for domain in list(self._state.driver.domains().values()):
                self._follow(domain, nursery)
            task_status.started()
            async for domain in events:
                self._follow(domain, nursery)
            await trio.lowlevel.checkpoint()  # a driver that ended has cancelled all this by now
            nursery.cancel_scope.cancel()
        raise HypervisorLost(
            "the hypervisor's events have ended, so the service cannot follow its VMs any more: "
            "it ends, and keeps attachments for its next start"
        )

    def _follow(self, domain: DomainInfo, nursery: trio.Nursery) -> None:
        """Starts or ends the task of a domain, according to its state."""
        domid = None if domain.state == "Halted" else domain.domid
        task = self._tasks.get(domain.name)
        if task is not None and task.domid != domid:
            del self._tasks[domain.name]
            task.end()
            self._state.agents.unexpect(domain.name)
            if task.session is not None:
                task.session.lost("the VM ended")
                self._write_end(task, _End("the VM ended", False, True))
            task = None
        if task is None and domid is not None:
            task = self._tasks[domain.name] = _Task(domain.name, domid)
            self._state.agents.expect(domain.name)
            nursery.start_soon(self._serve_domain, task, name=domain.name)

    async def _serve_domain(self, task: _Task) -> None:
        name = task.name
        retry, penalty, good_since = RETRY_FIRST, 0.0, trio.current_time()
        not_there: str | None = None
        missing_since = trio.current_time()
        while not task.is_over:
            began = trio.current_time()
            stream = await self._connect(task)
            end = stream if isinstance(stream, _End) else await self._converse(stream, task)
            if task.is_over:
                return
            now = trio.current_time()
            if end.broke:
                penalty = (
                    PENALTY_FIRST
                    if now - good_since >= GOOD_BEHAVIOUR or not penalty
                    else min(2 * penalty, PENALTY_MAX)
                )
                self._state.agents.unexpect(name)
                self._write_end(task, end, wait_s=penalty)
                logger.warning(
                    "%s is disconnected for %g s, it broke the protocol: %s",
                    name,
                    penalty,
                    end.why,
                )
                await task.pause(penalty)
                good_since = missing_since = trio.current_time()
                not_there = None
                continue
            if end.connected:
                self._write_end(task, end)
                logger.info("the agent of %s disconnected: %s", name, end.why)
                not_there = None
                missing_since = now
            elif end.why != not_there and now - missing_since >= QUIET:
                # Once, and not with every attempt: the hint of agent_missing refers to this line.
                logger.info("no connection to %s: %s", name, end.why)
                not_there = end.why
            if now - began >= 2 * RETRY_MAX:
                retry = RETRY_FIRST
            await task.pause(retry)
            retry = min(2 * retry, RETRY_MAX)

    async def _connect(self, task: _Task) -> trio.abc.Stream | _End:
        """A channel to the agent, or why there is none."""
        stream: trio.abc.Stream | None = None
        try:
            with trio.move_on_after(CONNECT_TIMEOUT) as task.wait:
                stream = await self._state.driver.connect_control(task.name, task.domid)
        except (FileNotFoundError, ConnectionRefusedError) as error:
            return _End(
                f"its agent does not listen: {what_is_wrong(error)}", broke=False, connected=False
            )
        except Exception as error:
            # The rendezvous is the VM's input too, and a failure that it causes ends here. It
            # cannot cause a time-out, nor dom0's own shortages: descriptors, memory.
            logger.debug("connecting to %s", task.name, exc_info=True)
            broke = isinstance(error, ConnectionError) or not isinstance(error, OSError)
            return _End(f"no channel could be made: {what_is_wrong(error)}", broke, connected=False)
        finally:
            task.wait = None
        if stream is None:
            why = f"no channel was made within {CONNECT_TIMEOUT:g} s"
            return _End(why, broke=False, connected=False)
        if task.is_over:  # since it was made
            await trio.aclose_forcefully(stream)
            return _End("the VM ended", broke=False, connected=False)
        return stream

    async def _converse(self, stream: trio.abc.Stream, task: _Task) -> _End:
        """One session, from its begin to its end."""
        session = task.session = AgentSession(stream, task.name, task.domid, self._shared)
        why, broke = "it closed the connection", False
        try:
            try:
                await session.run(task_status=cast("trio.TaskStatus[None]", session))
            except RemoteProtocolError as error:
                why, broke = str(error), True
            except trio.BrokenResourceError as error:
                why = f"the connection broke: {error}" if str(error) else "the connection broke"
        except* Exception as group:
            logger.error(
                "the connection to %s failed in an unforeseen way", task.name, exc_info=group
            )
            why, broke = "an internal error", True
        # Not reached when the service ends: then attachments must stay as they are.
        session.lost(why)
        task.session = None
        return _End(why, broke, connected=True)

    def _write_end(self, task: _Task, end: _End, *, wait_s: float | None = None) -> None:
        """The audit log has every connection's end. A VM that broke the protocol has to wait; it
        may repeat any other end at once, so many of those are counted."""
        self._state.audit_throttle.write(
            "disconnected",
            of=task.name,
            throttled=not end.broke,
            vm=task.name,
            domid=task.domid,
            reason=end.why,
            broke=end.broke,
            wait_s=wait_s,
        )
