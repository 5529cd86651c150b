"""One control connection to an agent: says hello, takes the first report, reconciles it with the
journal, and then serves the VM's reports and requests.

All sessions share their tables of handlers, and a session that is idle has one task: dom0 keeps
this for each of its VMs.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Protocol, cast

import trio
from pedos_protocol.device_classes import class_names
from pedos_protocol.errors import CallError, RemoteProtocolError
from pedos_protocol.fields import PREFERRED_MAX
from pedos_protocol.frozen import frozen
from pedos_protocol.messages import DeviceRef, ReportPrefer, parse_params, parse_result, to_wire
from pedos_protocol.names import harmless_text
from pedos_vchan.parking import Parking
from pedos_vchan.peer import Peer

from pedos_dom0 import PROGRAM
from pedos_dom0.access.callers import VM, Caller, program_in_dom0
from pedos_dom0.attachments.ways import GONE, RELEASED
from pedos_dom0.device_classes.registered import class_of
from pedos_dom0.drivers.base import DOM0_NAME
from pedos_dom0.tables.agents import AgentLink
from pedos_dom0.tables.assignment import ANY_PORT
from pedos_dom0.tables.report_pages import ReportPages, check_page, of_classes
from pedos_dom0.tasks.rate_limit import RateLimit

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pedos_protocol.messages import AgentReport
    from pedos_vchan.peer import DefaultHandler, Handler
    from pedos_vchan.session import Patience

    from pedos_dom0.attachments.listening import Listening
    from pedos_dom0.attachments.muting import Muting
    from pedos_dom0.attachments.reconcile import Reconciler
    from pedos_dom0.attachments.teardown import Teardown
    from pedos_dom0.requests.calls import Calls
    from pedos_dom0.state import State
    from pedos_dom0.tables.device_set import DeviceKey, DeviceSet
    from pedos_dom0.tables.report_pages import Report

logger = logging.getLogger(__name__)

# After hello an agent has its state at hand. An agent that withholds it makes its devices unusable
# and its old exports unknown.
REPORT_TIMEOUT = 5.0
# Pages of reports and users' requests of one VM: (at once, per second after that). A report of the
# largest size has 32 pages, a stick with many partitions causes a few reports, a script in a VM
# some tens of requests; at these rates a hostile VM takes a few percent of a processor of dom0.
# An agent may report without a pause: full pages at this rate are within its quota of bytes, which
# would end the connection.
REPORT_RATE = (32, 7.0)
REQUEST_RATE = (64, 20.0)
# Calls of services of one VM: as many at once as may run and wait, and then more than a correct
# agent makes. What they cost dom0 is bounded by the frames of a connection, too.
CALL_RATE = (200, 700.0)
# Devices named in one line of the log.
NAMED_MAX = 8


class Dispatcher(Protocol):
    """Serves the requests of a VM's users, see requests/api.py."""

    async def dispatch(
        self, caller: Caller, peer: Peer, method: str, untrusted_params: dict[str, Any]
    ) -> dict[str, Any]: ...


@frozen
class SharedParts:
    """The parts of the service that all sessions act on."""

    state: State
    teardown: Teardown
    reconciler: Reconciler
    muting: Muting
    listening: Listening
    calls: Calls
    dispatcher: Dispatcher


class AgentSession(Peer):
    """The agent of the domain `domid` of the VM `name`, at the other end of `stream`."""

    __slots__ = (
        "_calls",
        "_heard_mark",
        "_next_report",
        "_pages",
        "_preferred",
        "_preferring",
        "_reconciled",
        "_report_patience",
        "_reports",
        "_requester",
        "_shared",
        "_stopping_unknown",
        "_told_of_classes",
        "_told_of_rest",
        "link",
    )

    def __init__(self, stream: trio.abc.Stream, name: str, domid: int, shared: SharedParts) -> None:
        super().__init__(
            stream,
            program=PROGRAM,
            handlers=_HANDLERS,
            notices=_NOTICES,
            default_handler=_FORWARD,
            name=name,
        )
        self.link = AgentLink(name, domid, self, self._drop)
        self._shared = shared
        self._pages = ReportPages(name)
        self._heard_mark = 0  # when the report that is assembled began to arrive
        self._reports = RateLimit(burst=REPORT_RATE[0], per_second=REPORT_RATE[1])
        requests = RateLimit(burst=REQUEST_RATE[0], per_second=REQUEST_RATE[1])
        self._requester = Caller(kind=VM, name=name, turn=requests.turn)
        self._calls = RateLimit(burst=CALL_RATE[0], per_second=CALL_RATE[1], time=shared.state.time)
        self._report_patience: Patience | None = None
        self._next_report = Parking()  # where a task waits for it
        # The report that was last compared with the journal.
        self._reconciled: Report | None = None
        self._preferred: tuple[DeviceKey, ...] = ()  # what the agent has agreed to report first
        self._preferring = False
        self._told_of_rest = False  # that not all of it can be preferred
        self._told_of_classes = False  # that the agent has some which dom0 does not know
        self._stopping_unknown = False

    def started(self, value: None = None) -> None:
        """Both sides have said hello (for `run`, whose task status this is)."""
        self._report_patience = self.patience(
            REPORT_TIMEOUT, f"no report came within {REPORT_TIMEOUT:g} s of hello"
        )

    def lost(self, reason: str) -> None:
        """The connection is over: the link is not used any more, and its attachments end."""
        self._has_reported()
        agents, link = self._shared.state.agents, self.link
        known = agents.get(link.name) is link
        agents.remove(link)
        self._shared.calls.agent_gone(link)
        if known:
            self._shared.teardown.agent_gone(link, reason)

    def _drop(self, reason: str) -> None:
        """Ends the connection because the VM broke the protocol."""
        self.lost(reason)
        self.fail(RemoteProtocolError(reason))

    def _has_reported(self) -> None:
        patience, self._report_patience = self._report_patience, None
        if patience is not None:
            patience.end()

    # What the agent says

    async def _forward(self, method: str, untrusted_params: dict[str, Any]) -> dict[str, Any]:
        await self._requester.turn()
        return await self._shared.dispatcher.dispatch(
            self._requester, self, method, untrusted_params
        )

    async def _service_call(self, untrusted_params: dict[str, Any]) -> dict[str, Any]:
        """A program in the VM calls a service of another one."""
        await self._calls.turn()
        caller = self._requester
        if self.link.name == DOM0_NAME:
            caller = _program_in_dom0(untrusted_params)
        return await self._shared.dispatcher.dispatch(
            caller, self, "service.call", untrusted_params
        )

    async def _service_started(self, untrusted_params: dict[str, Any]) -> None:
        if (said := self._parsed("service.started", untrusted_params)) is not None:
            self._shared.calls.started(self.link, said)

    async def _service_ended(self, untrusted_params: dict[str, Any]) -> None:
        if (said := self._parsed("service.ended", untrusted_params)) is not None:
            await self._shared.state.reach("call.ended")
            self._shared.calls.ended(self.link, said)

    async def _channel_closed(self, untrusted_params: dict[str, Any]) -> None:
        if (said := self._parsed("channel.closed", untrusted_params)) is not None:
            self._shared.calls.channel_closed(self.link, said)

    def _parsed(self, method: str, untrusted_params: dict[str, Any]) -> Any:
        """A notice; None, and the end of the connection, if it is malformed."""
        try:
            return parse_params(method, untrusted_params)
        except RemoteProtocolError as error:
            self.link.disconnect(str(error))
            return None

    async def _report(self, untrusted_params: dict[str, Any]) -> None:
        link, state = self.link, self._shared.state
        mark = link.heard.mark()
        await self._reports.turn()
        if link.lost:
            return
        try:
            page = self._of_known_classes(parse_params("agent.report", untrusted_params))
            check_page(page)
            report = self._pages.take(page, state.registry.devices_of(link.name))
        except RemoteProtocolError as error:
            link.disconnect(str(error))
            return
        if page.page == 0:
            self._heard_mark = mark
        if report is None:
            return
        is_first = link.report is None
        link.report = report
        listening = link.heard.reported(report.exports, self._heard_mark)
        self._next_report.unpark_all()
        if is_first:
            self._has_reported()
            self.start_soon(self._greet)
        elif state.agents.get(link.name) is link:
            self._show()
            self._shared.listening.reported(link, listening)

    def _of_known_classes(self, page: AgentReport) -> AgentReport:
        """The page without devices of a class that dom0 does not know: the agent may be newer."""
        page, unknown = of_classes(page, class_names())
        if unknown and not self._told_of_classes:
            self._told_of_classes = True
            logger.info(
                "%s reports devices of classes that dom0 does not know, and they are left out: %s",
                self.link.name,
                ", ".join(sorted(unknown)[:NAMED_MAX]),
            )
        return page

    async def _ended(self, untrusted_params: dict[str, Any]) -> None:
        """An attachment ended by itself at one side: stops the other side."""
        link, teardown = self.link, self._shared.teardown
        try:
            ended = parse_params("attachment.ended", untrusted_params)
        except RemoteProtocolError as error:
            link.disconnect(str(error))
            return
        lease = self._shared.state.leases.get(ended.attachment)
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
        teardown.end_soon(ended.attachment, f"{link.name} says: {reason}", way)
        if ended.side == "export":
            teardown.source_has_ended(ended.attachment)

    async def _listening(self, untrusted_params: dict[str, Any]) -> None:
        """Somebody in the target of an export begins to listen, or nobody does any more."""
        link = self.link
        try:
            said = parse_params("attachment.listening", untrusted_params)
        except RemoteProtocolError as error:
            link.disconnect(str(error))
            return
        lease = self._shared.state.leases.get(said.attachment)
        if lease is None:
            return  # it has just ended
        if (lease.key.backend, lease.backend_domid) != (link.name, link.domid):
            link.disconnect("it says who listens to what it does not lend")
            return
        self._shared.listening.says(link, lease, said.listening)

    # What dom0 makes of its reports

    async def _greet(self) -> None:
        """Makes the agent release leftovers after its first report, and publishes the report."""
        link = self.link
        assert link.report is not None
        self._reconciled = link.report
        for exported in link.report.exports:
            link.remember(exported.attachment)
        for imported in link.report.imports:
            link.remember(imported.attachment)
        try:
            await self._shared.reconciler.stop_unknown(link)
        except RemoteProtocolError as error:
            self.fail(error)
            return
        await self._shared.calls.greet(link)
        await self._prefer()
        if not link.lost:
            self._shared.state.agents.add(link)
            logger.info("the agent of %s (domain %d) is connected", link.name, link.domid)
            self._show()
            exports = link.report.exports
            self._shared.listening.reported(link, [e.attachment for e in exports if e.listening])

    def _show(self) -> None:
        """Publishes the agent's last report."""
        link, shared = self.link, self._shared
        assert link.report is not None
        if self._reconciled is not link.report and (count := shared.reconciler.invented(link)):
            link.disconnect(f"it reports attachments ({count}) that it was never given")
            return
        shared.state.registry.replace(link.name, self._own_devices(), link.report.missing)
        if self._preference() != self._preferred:
            self.start_soon(self._prefer)
        shared.teardown.reported(link, shared.reconciler.is_settling)
        shared.muting.check(link)
        if self._stopping_unknown or self._reconciled is link.report:
            return
        self._reconciled = link.report
        if shared.reconciler.has_unknown(link):
            self._stopping_unknown = True
            self.start_soon(self._stop_unknown)

    def _own_devices(self) -> DeviceSet:
        """The reported devices, less what the VM has borrowed. An agent that restarted while the
        hypervisor carries some cannot tell those from its VM's own."""
        link, state = self.link, self._shared.state
        assert link.report is not None
        devices = link.report.devices
        names: dict[str, set[str]] = {}
        for lease in state.leases.of_vm(link.name):
            if lease.frontend is not None and state.is_by_hypervisor(lease):
                names.setdefault(lease.key.device_class, set()).add(lease.frontend)
        for device_class, borrowed in names.items():
            ids = [key.device for _, key in devices.in_order(device_class)]
            not_own = class_of(device_class).borrowed(ids, borrowed)
            devices = devices.without(device_class, not_own)
        return devices

    async def _stop_unknown(self) -> None:
        try:
            await self._shared.reconciler.stop_unknown(self.link)
        except RemoteProtocolError as error:
            self.link.disconnect(str(error))
        finally:
            self._stopping_unknown = False

    # What it shall report first

    def _preference(self) -> tuple[DeviceKey, ...]:
        """What an agent that cannot report everything must report first: what is lent, which is
        never more than ATTACHMENTS_MAX and so never cut off; then what is assigned."""
        link, state = self.link, self._shared.state
        if link.report is None or not link.report.missing:
            return self._preferred
        lent = (lease.key for lease in state.leases.from_backend(link.name))
        # One that is to any port cannot be named to it.
        assigned = (
            assignment.key
            for assignment in state.store.assignments()
            if assignment.key.backend == link.name and assignment.key.device != ANY_PORT
        )
        return tuple(dict.fromkeys((*lent, *assigned)))

    async def _prefer(self) -> None:
        """Asks the agent for that, and returns when it has reported accordingly."""
        link, wanted = self.link, self._preference()
        if wanted == self._preferred or self._preferring:
            return
        self._preferring = True
        refs = tuple(DeviceRef(key.device_class, key.device) for key in wanted[:PREFERRED_MAX])
        if (rest := wanted[PREFERRED_MAX:]) and not self._told_of_rest:
            self._told_of_rest = True
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
                self._preferred = wanted  # it never will; others are retried at its next report
            return
        except RemoteProtocolError as error:
            link.disconnect(str(error))
            return
        finally:
            self._preferring = False
        self._preferred = wanted
        with trio.move_on_after(REPORT_TIMEOUT):
            while link.report is not None and link.report.revision < revision:
                await self._next_report.park()


def _program_in_dom0(untrusted_params: dict[str, Any]) -> Caller:
    """Who calls a service in dom0; if that cannot be read, the dispatcher refuses the request."""
    try:
        return program_in_dom0(parse_params("service.call", untrusted_params).uid)
    except RemoteProtocolError:
        return program_in_dom0(None)


_HANDLERS = cast(
    "Mapping[str, Handler]",
    {"agent.report": AgentSession._report, "service.call": AgentSession._service_call},
)
_NOTICES = cast(
    "Mapping[str, Handler]",
    {
        "attachment.ended": AgentSession._ended,
        "attachment.listening": AgentSession._listening,
        "service.started": AgentSession._service_started,
        "service.ended": AgentSession._service_ended,
        "channel.closed": AgentSession._channel_closed,
    },
)
_FORWARD = cast("DefaultHandler", AgentSession._forward)
