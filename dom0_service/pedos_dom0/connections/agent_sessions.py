"""Control connections: one task for every running domain, for as long as it runs.

Each task connects to the domain's agent, says hello, takes the first report, reconciles it with the
journal, and then serves the connection until it ends; and starts over. The domain of the connection
tells which VM speaks. A VM that breaks the protocol is disconnected, recorded, and kept waiting; no
other VM notices.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Protocol, cast

import attrs
import trio
from pedos_host.system_errors import what_is_wrong
from pedos_protocol.device_classes import class_names
from pedos_protocol.errors import CallError, RemoteProtocolError
from pedos_protocol.fields import PREFERRED_MAX
from pedos_protocol.messages import DeviceRef, ReportPrefer, parse_params, parse_result, to_wire
from pedos_protocol.names import harmless_text
from pedos_vchan.peer import Peer

from pedos_dom0 import PROGRAM
from pedos_dom0.access.callers import VM, Caller
from pedos_dom0.attachments.ways import GONE, RELEASED
from pedos_dom0.device_classes.registered import class_of
from pedos_dom0.drivers.base import DOM0_NAME, DomainInfo, HypervisorLost
from pedos_dom0.tables.agents import AgentLink
from pedos_dom0.tables.report_pages import ReportPages, check_page, of_classes
from pedos_dom0.tasks.rate_limit import RateLimit

if TYPE_CHECKING:
    from pedos_protocol.messages import AgentReport

    from pedos_dom0.attachments.reconcile import Reconciler
    from pedos_dom0.attachments.teardown import Teardown
    from pedos_dom0.state import State
    from pedos_dom0.tables.device_set import DeviceKey, DeviceSet
    from pedos_dom0.tables.report_pages import Report

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
# After hello an agent has its state at hand. An agent that withholds it makes its devices unusable
# and its old exports unknown.
REPORT_TIMEOUT = 5.0
# A VM that breaks the protocol may try again after this many seconds, doubling up to the maximum:
# it must not fill the log, nor keep dom0 busy parsing.
PENALTY_FIRST = 1.0
PENALTY_MAX = 30.0
# Seconds without a breach after which an earlier one is forgotten.
GOOD_BEHAVIOUR = 60.0
# Pages of reports and users' requests of one VM: (at once, per second after that). A report of the
# largest size has 32 pages, a stick with many partitions causes a few reports, a script in a VM
# some tens of requests; at these rates a hostile VM takes a few percent of a processor of dom0.
REPORT_RATE = (32, 10.0)
REQUEST_RATE = (64, 20.0)
# Devices named in one line of the log.
NAMED_MAX = 8


class Dispatcher(Protocol):
    """Serves the requests of a VM's users, see requests/api.py."""

    async def dispatch(
        self, caller: Caller, peer: Peer, method: str, untrusted_params: dict[str, Any]
    ) -> dict[str, Any]: ...


@attrs.frozen
class _End:
    """How a connection, or the attempt to make one, ended. `broke`: the VM caused it."""

    why: str
    broke: bool
    connected: bool


class _Opened:
    """A task status that only remembers that both sides said hello."""

    def __init__(self) -> None:
        self.event = trio.Event()

    def started(self, value: None = None) -> None:
        self.event.set()


@attrs.define(eq=False)
class _Session:
    """One connection to an agent and how it ended."""

    link: AgentLink
    nursery: trio.Nursery
    pages: ReportPages
    reported: trio.Event = attrs.field(factory=trio.Event)
    # Where a task waits for the next whole report.
    next_report: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot)
    # The report that was last compared with the journal.
    reconciled: Report | None = None
    # What the agent was last asked to report before others.
    preferred: tuple[DeviceKey, ...] = ()  # what the agent has agreed to report first
    preferring: bool = False
    told_of_rest: bool = False  # that not all of it can be preferred
    told_of_classes: bool = False  # that the agent has some which dom0 does not know
    stopping_unknown: bool = False
    why: str | None = None
    broke: bool = False

    def end(self, why: str, *, broke: bool = False) -> None:
        """The first reason counts; what follows is a consequence."""
        if self.why is None:
            self.why, self.broke = why, broke
        self.nursery.cancel_scope.cancel()


@attrs.define(eq=False)
class _Task:
    domid: int
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    link: AgentLink | None = None


class AgentSessions:
    """Keeps a control connection to every domain that runs."""

    def __init__(
        self, state: State, teardown: Teardown, reconciler: Reconciler, dispatcher: Dispatcher
    ) -> None:
        self._state = state
        self._teardown = teardown
        self._reconciler = reconciler
        self._dispatcher = dispatcher
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
            task.scope.cancel()
            self._state.agents.unexpect(domain.name)
            if task.link is not None:
                self._lost(task.link, "the VM ended")
                self._write_end(domain.name, task, _End("the VM ended", False, True))
            task = None
        if task is None and domid is not None:
            task = self._tasks[domain.name] = _Task(domid)
            self._state.agents.expect(domain.name)
            nursery.start_soon(self._serve_domain, domain.name, task)

    async def _serve_domain(self, name: str, task: _Task) -> None:
        retry, penalty, good_since = RETRY_FIRST, 0.0, trio.current_time()
        not_there: str | None = None
        missing_since = trio.current_time()
        with task.scope:
            while True:
                began = trio.current_time()
                end = await self._connect_once(name, task)
                now = trio.current_time()
                if end.broke:
                    penalty = (
                        PENALTY_FIRST
                        if now - good_since >= GOOD_BEHAVIOUR or not penalty
                        else min(2 * penalty, PENALTY_MAX)
                    )
                    self._state.agents.unexpect(name)
                    self._write_end(name, task, end, wait_s=penalty)
                    logger.warning(
                        "%s is disconnected for %g s, it broke the protocol: %s",
                        name,
                        penalty,
                        end.why,
                    )
                    await trio.sleep(penalty)
                    good_since = missing_since = trio.current_time()
                    not_there = None
                    continue
                if end.connected:
                    self._write_end(name, task, end)
                    logger.info("the agent of %s disconnected: %s", name, end.why)
                    not_there = None
                    missing_since = now
                elif end.why != not_there and now - missing_since >= QUIET:
                    # Once, and not with every attempt: the hint of agent_missing refers to this
                    # line.
                    logger.info("no connection to %s: %s", name, end.why)
                    not_there = end.why
                if now - began >= 2 * RETRY_MAX:
                    retry = RETRY_FIRST
                await trio.sleep(retry)
                retry = min(2 * retry, RETRY_MAX)

    def _write_end(self, name: str, task: _Task, end: _End, *, wait_s: float | None = None) -> None:
        """The audit log has every connection's end. A VM that broke the protocol has to wait; it
        may repeat any other end at once, so many of those are counted."""
        self._state.audit_throttle.write(
            "disconnected",
            of=name,
            throttled=not end.broke,
            vm=name,
            domid=task.domid,
            reason=end.why,
            broke=end.broke,
            wait_s=wait_s,
        )

    async def _connect_once(self, name: str, task: _Task) -> _End:
        """One connection, from connect to its end."""
        stream: trio.abc.Stream | None = None
        try:
            with trio.move_on_after(CONNECT_TIMEOUT):
                stream = await self._state.driver.connect_control(name, task.domid)
        except (FileNotFoundError, ConnectionRefusedError) as error:
            return _End(
                f"its agent does not listen: {what_is_wrong(error)}", broke=False, connected=False
            )
        except Exception as error:
            # The rendezvous is the VM's input too, and a failure that it causes ends here. It
            # cannot cause a time-out, nor dom0's own shortages: descriptors, memory.
            logger.debug("connecting to %s", name, exc_info=True)
            broke = isinstance(error, ConnectionError) or not isinstance(error, OSError)
            return _End(f"no channel could be made: {what_is_wrong(error)}", broke, connected=False)
        if stream is None:
            why = f"no channel was made within {CONNECT_TIMEOUT:g} s"
            return _End(why, broke=False, connected=False)
        try:
            why, broke = await self._session(stream, name, task)
        except* Exception as group:
            logger.error("the connection to %s failed in an unforeseen way", name, exc_info=group)
            if task.link is not None:
                self._lost(task.link, "an internal error")
            why, broke = "an internal error", True
        return _End(why, broke, connected=True)

    async def _session(self, stream: trio.abc.Stream, name: str, task: _Task) -> tuple[str, bool]:
        session: _Session
        reports = RateLimit(burst=REPORT_RATE[0], per_second=REPORT_RATE[1])
        requests = RateLimit(burst=REQUEST_RATE[0], per_second=REQUEST_RATE[1])
        caller = Caller(kind=VM, name=name, turn=requests.turn)

        async def report(_peer: Peer, untrusted_params: dict[str, Any]) -> None:
            await reports.turn()
            self._take_report(session, untrusted_params)

        async def ended(_peer: Peer, untrusted_params: dict[str, Any]) -> None:
            self._take_ended(session, untrusted_params)

        async def forward(
            peer: Peer, method: str, untrusted_params: dict[str, Any]
        ) -> dict[str, Any]:
            await caller.turn()
            return await self._dispatcher.dispatch(caller, peer, method, untrusted_params)

        def drop(reason: str) -> None:
            self._lost(link, reason)
            session.end(reason, broke=True)

        peer = Peer(
            stream,
            program=PROGRAM,
            handlers={"agent.report": report},
            notices={"attachment.ended": ended},
            default_handler=forward,
            name=name,
        )
        link = task.link = AgentLink(name, task.domid, peer, drop)
        async with trio.open_nursery() as nursery:
            session = _Session(link, nursery, ReportPages(name))
            opened = _Opened()
            # This task lasts as long as the connection: another task would take 2 KiB for each VM.
            nursery.start_soon(self._greet, session, opened.event)
            await self._run_peer(peer, session, opened)
        # Not reached when the service ends: then attachments must stay as they are.
        self._lost(link, session.why or "the connection ended")
        task.link = None
        return session.why or "the connection ended", session.broke

    async def _run_peer(self, peer: Peer, session: _Session, opened: _Opened) -> None:
        try:
            await peer.run(task_status=cast("trio.TaskStatus[None]", opened))
            session.end("it closed the connection")
        except RemoteProtocolError as error:
            session.end(str(error), broke=True)
        except trio.BrokenResourceError as error:
            session.end(f"the connection broke: {error}" if str(error) else "the connection broke")

    async def _greet(self, session: _Session, opened: trio.Event) -> None:
        """Waits for the first report, makes the agent release leftovers, and publishes the
        report."""
        link = session.link
        await opened.wait()
        with trio.move_on_after(REPORT_TIMEOUT):
            await session.reported.wait()
        if link.report is None:
            session.end(f"no report came within {REPORT_TIMEOUT:g} s of hello", broke=True)
            return
        session.reconciled = link.report
        for exported in link.report.exports:
            link.remember(exported.attachment)
        for imported in link.report.imports:
            link.remember(imported.attachment)
        try:
            await self._reconciler.stop_unknown(link)
        except RemoteProtocolError as error:
            session.end(str(error), broke=True)
            return
        await self._prefer(session)
        if not link.lost:
            self._state.agents.add(link)
            logger.info("the agent of %s (domain %d) is connected", link.name, link.domid)
            self._show(session)

    def _take_report(self, session: _Session, untrusted_params: dict[str, Any]) -> None:
        link = session.link
        if link.lost:
            return
        try:
            page = self._of_known_classes(session, parse_params("agent.report", untrusted_params))
            check_page(page)
            report = session.pages.take(page, self._state.registry.devices_of(link.name))
        except RemoteProtocolError as error:
            link.disconnect(str(error))
            return
        if report is None:
            return
        link.is_of_first_release = "page" not in untrusted_params  # a later one always says it
        link.report = report
        session.next_report.unpark_all()
        if not session.reported.is_set():
            session.reported.set()
        elif self._state.agents.get(link.name) is link:
            self._show(session)

    def _of_known_classes(self, session: _Session, page: AgentReport) -> AgentReport:
        """The page without devices of a class that dom0 does not know: the agent may be newer."""
        page, unknown = of_classes(page, class_names())
        if unknown and not session.told_of_classes:
            session.told_of_classes = True
            logger.info(
                "%s reports devices of classes that dom0 does not know, and they are left out: %s",
                session.link.name,
                ", ".join(sorted(unknown)[:NAMED_MAX]),
            )
        return page

    def _show(self, session: _Session) -> None:
        """Publishes the agent's last report."""
        link = session.link
        assert link.report is not None
        if session.reconciled is not link.report and (count := self._reconciler.invented(link)):
            link.disconnect(f"it reports attachments ({count}) that it was never given")
            return
        self._state.registry.replace(link.name, self._own_devices(link), link.report.missing)
        if self._preference(session) != session.preferred:
            session.nursery.start_soon(self._prefer, session)
        self._teardown.reported(link, self._reconciler.is_settling)
        if session.stopping_unknown or session.reconciled is link.report:
            return
        session.reconciled = link.report
        if self._reconciler.has_unknown(link):
            session.stopping_unknown = True
            session.nursery.start_soon(self._stop_unknown, session)

    def _own_devices(self, link: AgentLink) -> DeviceSet:
        """The reported devices, less what the VM has borrowed. An agent that restarted while the
        hypervisor carries some cannot tell those from its VM's own."""
        assert link.report is not None
        devices = link.report.devices
        names: dict[str, set[str]] = {}
        for lease in self._state.leases.of_vm(link.name):
            if lease.frontend is not None and self._state.is_by_hypervisor(lease):
                names.setdefault(lease.key.device_class, set()).add(lease.frontend)
        for device_class, borrowed in names.items():
            ids = [key.device for _, key in devices.in_order(device_class)]
            not_own = class_of(device_class).borrowed(ids, borrowed)
            devices = devices.without(device_class, not_own)
        return devices

    def _preference(self, session: _Session) -> tuple[DeviceKey, ...]:
        """What an agent that cannot report everything must report first: what is lent, which is
        never more than ATTACHMENTS_MAX and so never cut off; then what is assigned."""
        link = session.link
        if link.report is None or not link.report.missing:
            return session.preferred
        lent = (lease.key for lease in self._state.leases.from_backend(link.name))
        assigned = (
            assignment.key
            for assignment in self._state.store.assignments()
            if assignment.key.backend == link.name
        )
        return tuple(dict.fromkeys((*lent, *assigned)))

    async def _prefer(self, session: _Session) -> None:
        """Asks the agent for that, and returns when it has reported accordingly."""
        link, wanted = session.link, self._preference(session)
        if wanted == session.preferred or session.preferring:
            return
        session.preferring = True
        refs = tuple(DeviceRef(key.device_class, key.device) for key in wanted[:PREFERRED_MAX])
        if (rest := wanted[PREFERRED_MAX:]) and not session.told_of_rest:
            session.told_of_rest = True
            logger.warning(
                "%s has more devices than it reports, and these %d, which are assigned, are not "
                "among the %d that it is asked to report first: %s%s",
                link.name,
                len(rest),
                PREFERRED_MAX,
                ", ".join(map(str, rest[:NAMED_MAX])),
                " and others" if len(rest) > NAMED_MAX else "",
            )
        try:
            answer = await link.call(
                "report.prefer", to_wire(ReportPrefer(refs)), timeout=REPORT_TIMEOUT
            )
            revision = parse_result("report.prefer", answer).revision
        except CallError as error:
            logger.info("%s does not report first what it is asked for: %s", link.name, error)
            if error.code == "unknown_method":
                session.preferred = wanted  # it never will; others are retried at its next report
            return
        except RemoteProtocolError as error:
            link.disconnect(str(error))
            return
        finally:
            session.preferring = False
        session.preferred = wanted
        with trio.move_on_after(REPORT_TIMEOUT):
            while link.report is not None and link.report.revision < revision:
                await session.next_report.park()

    async def _stop_unknown(self, session: _Session) -> None:
        try:
            await self._reconciler.stop_unknown(session.link)
        except RemoteProtocolError as error:
            session.link.disconnect(str(error))
        finally:
            session.stopping_unknown = False

    def _take_ended(self, session: _Session, untrusted_params: dict[str, Any]) -> None:
        """An attachment ended by itself at one side: stops the other side."""
        link = session.link
        try:
            ended = parse_params("attachment.ended", untrusted_params)
        except RemoteProtocolError as error:
            link.disconnect(str(error))
            return
        lease = self._state.leases.get(ended.attachment)
        if lease is None:
            return  # dom0 knows already
        sides = {
            "export": (lease.key.backend, lease.backend_domid),
            "import": (lease.vm, lease.vm_domid),
        }
        if sides[ended.side] != (link.name, link.domid):
            link.disconnect(f"it says that an {ended.side} ended which it does not have")
            return
        reason = harmless_text(ended.reason)
        way = RELEASED if ended.side == "import" else GONE
        self._teardown.end_soon(ended.attachment, f"{link.name} says: {reason}", way)
        if ended.side == "export":
            self._teardown.source_has_ended(ended.attachment)

    def _lost(self, link: AgentLink, reason: str) -> None:
        """The connection is over: the link is not used any more, and its attachments end."""
        known = self._state.agents.get(link.name) is link
        self._state.agents.remove(link)
        if known:
            self._teardown.agent_gone(link, reason)
