"""The methods that clients and VMs may call: one table, and one function that uses it.

A method that the table does not have for this kind of caller is refused as if it did not exist. A
request gets its id here, its parameters are parsed, and its answer is cut down to what the caller
may know.
"""

from __future__ import annotations

import logging
import math
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs
import trio
from pedos_host.throttle import Throttle
from pedos_protocol import VERSION
from pedos_protocol.errors import CallError, RemoteProtocolError
from pedos_protocol.frozen import frozen
from pedos_protocol.messages import (
    SCHEMA,
    Empty,
    StatusResult,
    VmListed,
    VmsUsed,
    parse_params,
    to_wire,
)
from pedos_protocol.names import shown
from pedos_protocol.words import request_to

from pedos_dom0.access.authorizer import Authorizer
from pedos_dom0.access.callers import DESKTOP, LOCAL, VM, as_told
from pedos_dom0.access.prompters import Prompters
from pedos_dom0.attachments.interrupted import Interrupted
from pedos_dom0.attachments.vm_stop import VmStop
from pedos_dom0.audit.log import new_request_id
from pedos_dom0.errors import QuotaError, failure
from pedos_dom0.requests.assign import Assign
from pedos_dom0.requests.assignments import Assignments
from pedos_dom0.requests.attach import Attach
from pedos_dom0.requests.auto_attach import AutoAttach
from pedos_dom0.requests.calls import Calls
from pedos_dom0.requests.classes import classes_told, why_unknown
from pedos_dom0.requests.detach import Asking, Detach
from pedos_dom0.requests.explaining import Explaining
from pedos_dom0.requests.info import Info
from pedos_dom0.requests.listing import Listing
from pedos_dom0.requests.mute import Mute
from pedos_dom0.requests.operations import Operations
from pedos_dom0.requests.policy_status import fitting_status, policy_status
from pedos_dom0.requests.recent import Recent
from pedos_dom0.requests.sleep import Sleep
from pedos_dom0.requests.targets import Targets
from pedos_dom0.requests.unassign import Unassign
from pedos_dom0.requests.vm_start import VmStart
from pedos_dom0.requests.watch import Watch, vms_now
from pedos_dom0.tables.registry import DeviceKey
from pedos_dom0.tables.store import StoreError
from pedos_dom0.tasks import progress

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from pedos_protocol.messages import DetachResult
    from pedos_vchan.peer import Peer

    from pedos_dom0.access.callers import Caller, CallerKind
    from pedos_dom0.attachments.muting import Muting
    from pedos_dom0.attachments.reconcile import Reconciler
    from pedos_dom0.attachments.teardown import Teardown
    from pedos_dom0.attachments.transaction import Transaction
    from pedos_dom0.state import State

logger = logging.getLogger(__name__)


def _never(_params: object) -> bool:
    return False


@frozen
class Call:
    """One request: who asks what, over which connection, under which id."""

    caller: Caller
    request: str
    params: Any
    peer: Peer
    # Ends with the connection; only local clients have one.
    background: trio.Nursery | None
    # Set when the caller stops waiting for the answer of an operation.
    gone: trio.Event = attrs.field(factory=trio.Event)


@frozen
class Entry:
    """A method: its handler, and who may call it.

    An operation changes something: it runs to its end even if its caller goes away meanwhile.
    `takes_away`, by the parameters: it only ever takes something from a VM. A user must always be
    able to do that, also one whose lines of the audit log are used up.
    `left_classes`: root in dom0 may name a class that this dom0 does not know, if a newer one has
    left something of it, to see it and take it away.
    """

    handler: Callable[[Api, Call], Awaitable[Any]]
    callers: frozenset[CallerKind]
    operation: bool = False
    takes_away: Callable[[Any], bool] = _never
    left_classes: bool = False
    # Also for dom0's user, but by dom0's own agent alone, which has the program's descriptors.
    through_agents: bool = False

    def is_for(self, caller: Caller, *, by_agent: bool) -> bool:
        """Whether it serves this caller, who comes by an agent or by one of dom0's sockets."""
        return caller.kind in self.callers or (self.through_agents and by_agent)


class Api:
    """Serves requests. One of these serves all connections."""

    def __init__(
        self,
        state: State,
        transaction: Transaction,
        teardown: Teardown,
        reconciler: Reconciler,
        muting: Muting,
        operations: Operations,
    ) -> None:
        self._state = state
        self._operations = operations
        # Puts questions to dom0's user.
        self.prompters = Prompters(state.audit_throttle)
        self._authorizer = Authorizer(state, self.prompters)
        self._explaining = Explaining(state, self._authorizer)
        self._listing = Listing(state, self._authorizer, teardown, muting)
        self._info = Info(state, self._authorizer, self._listing)
        self._recent = Recent(state.audit)
        self._targets = Targets(state, self._authorizer)
        self.watch = Watch(state, self._authorizer, self._listing)
        self._attach = Attach(state, self._authorizer, transaction, reconciler)
        self._unassign = Unassign(state, self._authorizer)
        self._detach = Detach(state, self._authorizer, teardown, reconciler, self._unassign)
        self._mute = Mute(state, muting, reconciler)
        self.sleep = Sleep(state, teardown, reconciler, self._attach)
        # Attaches what is assigned.
        self.auto_attach = AutoAttach(
            state, self._authorizer, self._attach, operations, self.sleep.has_in_mind
        )
        self._assign = Assign(state, self._authorizer)
        self._assignments = Assignments(state, self._authorizer, self.auto_attach.why_not)
        self._vm_stop = VmStop(state, teardown)
        self._vm_start = VmStart(state, self._authorizer, transaction, reconciler, self._vm_stop)
        self.calls = Calls(state, operations.nursery, self._authorizer, self._vm_start)
        self.interrupted = Interrupted(state, reconciler, self._vm_stop)
        self._throttle = Throttle()
        self._started = trio.current_time()

    async def dispatch(
        self,
        caller: Caller,
        peer: Peer,
        method: str,
        untrusted_params: dict[str, Any],
        background: trio.Nursery | None = None,
    ) -> dict[str, Any]:
        """Serves one request; the answer is ready for the wire. Raises CallError alone.

        No answer, good or bad, is sent before its audit lines are written.
        """
        request = new_request_id()
        try:
            entry = TABLE.get(method)
            if entry is None or not entry.is_for(caller, by_agent=background is None):
                logger.debug("%s asks for %s, which is not served", caller.audited, shown(method))
                raise _not_served(entry, caller)
            params = self._params(caller, entry, method, untrusted_params)
            call = Call(caller, request, params, peer, background)
            if entry.operation:
                result = await self._operate(entry, call, method)
            else:
                result = await entry.handler(self, call)
            return SCHEMA.result_in(peer.version, method, to_wire(result))
        except CallError as error:
            logger.debug("%s of %s (%s): %s", method, caller.name, request, error)
            raise as_told(caller, error, request) from error
        except StoreError as error:
            if (more := self._throttle.more(f"store {caller.name}")) is not None:
                logger.error("%s of %s (%s): %s%s", method, caller.name, request, error, more)
            raise as_told(caller, failure("failed", str(error)), request) from error
        finally:
            if self._state.audit.owes(request):
                await self._state.audit.written(request)

    def _params(
        self, caller: Caller, entry: Entry, method: str, untrusted_params: dict[str, Any]
    ) -> Any:
        """The parameters, as the class of the method; CallError(usage)."""
        try:
            params = parse_params(method, untrusted_params)
        except RemoteProtocolError as error:
            what = str(error).removeprefix(f"parameters of {method}: ")
            raise CallError("usage", f"{request_to(method)} is malformed: {what}") from error
        may_be_left = entry.left_classes and caller.kind.names_left
        if (unknown := why_unknown(params, self._state if may_be_left else None)) is not None:
            raise CallError("usage", f"{request_to(method)} is malformed: {unknown}")
        return params

    async def _operate(self, entry: Entry, call: Call, method: str) -> Any:
        """Carries out an operation."""
        caller = call.caller
        if not entry.takes_away(call.params):
            self._check_allowance(call, method)
        # A VM must not learn what its request waits for.
        background = call.background if caller.kind.sees_all else None
        with progress.told(call.request, call.peer, background):
            work = partial(self._carry_out, entry, call)
            return await self._operations.run(caller.kind.name, caller.name, work, call.gone)

    def _check_allowance(self, call: Call, method: str) -> None:
        """CallError(quota) if the caller has used up its lines of the audit log."""
        caller, throttle = call.caller, self._state.audit_throttle
        if not caller.kind.throttled or not (seconds := throttle.wait(caller.audited)):
            return
        why = f"{caller.audited} has no lines left in the audit log"
        throttle.write(
            "refused",
            of=caller.audited,
            throttled=True,
            say=f"refused: {method}: {why}",
            request=call.request,
            caller=caller.audited,
            method=method,
            reason=why,
        )
        raise QuotaError(
            caller.name,
            f"{caller.audited} has done so much lately that it would push what others did out of "
            f"the audit log; it can go on in {math.ceil(seconds)} s",
        )

    async def _carry_out(self, entry: Entry, call: Call) -> Any:
        """Runs the handler of an operation. The caller pays for lines of the audit log about the
        request, if it has to."""
        author, throttled = call.caller.audited, call.caller.kind.throttled
        with self._state.audit_throttle.paid_by(author, call.request, throttled=throttled):
            return await entry.handler(self, call)

    # Devices

    async def device_classes(self, call: Call) -> object:
        return classes_told(self._state, call.caller)

    async def device_list(self, call: Call) -> object:
        params = call.params
        if not call.caller.kind.sees_all:
            return await self._listing.for_vm(
                call.caller, params.device_class, params.vms, params.exclude, params.after
            )
        # After a restart of the service the agents are back in a moment; a listing without them
        # would have no devices.
        await self._state.agents.wait_expected()
        return await self._listing.for_dom0(
            params.device_class, params.vms, params.exclude, params.after
        )

    async def device_info(self, call: Call) -> object:
        if call.caller.kind.sees_all:
            await self._state.agents.wait_expected()  # as for a list
        return await self._info(call.caller, self._key(call))

    async def device_attach(self, call: Call) -> object:
        params = call.params
        result = await self._attach(
            call.caller,
            call.request,
            self._key(call),
            params.vm,
            params.options,
            params.persistent,
            call.gone,
            params.identity,
        )
        return attrs.evolve(result, policy_ok=self._policy_ok(call))

    async def device_detach(self, call: Call) -> DetachResult:
        params = call.params
        if (params.backend is None) != (params.device is None):
            raise failure("usage", "a device is named by its VM and its id, both or neither")
        if params.force and not call.caller.kind.may_force:
            whose = "root in dom0" if call.caller.kind is DESKTOP else "dom0's user"
            raise failure("usage", f"only {whose} can take a device away by force")
        if params.identity is not None and params.device is None:
            raise failure("usage", "an identity is that of one device, which has to be named")
        asking = Asking(call.caller, call.request, call.gone, params.force, params.identity)
        if params.device is None:
            result = await self._detach.all(asking, params.device_class, params.vm)
        else:
            result = await self._detach.one(asking, self._key(call), params.vm)
        return attrs.evolve(result, policy_ok=self._policy_ok(call))

    async def device_assign(self, call: Call) -> object:
        params = call.params
        if params.device is not None:
            params = attrs.evolve(params, device=self._key(call).device)
        result = await self._assign(call.caller, call.request, params, call.gone)
        if not params.dry_run:
            self.auto_attach.again(params.backend, params.device, params.vm)
        return attrs.evolve(result, policy_ok=self._policy_ok(call))

    async def device_unassign(self, call: Call) -> object:
        params = call.params
        if params.backend is None and (params.device or params.identity) is not None:
            raise failure("usage", "a device is named by its VM, and its id or its identity")
        if params.backend is not None and params.device is None and not params.identity:
            raise failure("usage", "which device of the VM is meant? Name its id, or its identity")
        if params.device is not None:
            params = attrs.evolve(params, device=self._key(call).device)
        result = await self._unassign(call.caller, call.request, params, call.gone)
        return attrs.evolve(result, policy_ok=self._policy_ok(call))

    async def device_assignments(self, call: Call) -> object:
        return await self._assignments(call.caller, call.params)

    def _key(self, call: Call) -> DeviceKey:
        """The device that a request names. A VM names it by its id alone: by another name it would
        learn of devices that it may not see."""
        params = call.params
        key = DeviceKey(params.device_class, params.backend, params.device)
        return self._state.registry.by_any_name(key) if call.caller.kind.sees_all else key

    def _policy_ok(self, call: Call) -> bool | None:
        """For dom0's user, who is warned when the policy in force differs from its files."""
        return policy_status(self._state).ok if call.caller.kind.sees_rules else None

    async def device_mute(self, call: Call) -> object:
        return await self._mute(call.caller, call.request, call.params)

    async def device_explain(self, call: Call) -> object:
        params = call.params
        return self._explaining.device(params.source, params.verb, self._key(call), params.vm)

    async def device_targets(self, call: Call) -> object:
        await self._state.agents.wait_expected()  # as for a list
        return await self._targets(call.caller, self._key(call))

    async def watch_next(self, call: Call) -> object:
        return await self.watch.next(call.caller, call.params)

    async def devices_suspend(self, call: Call) -> object:
        return await self.sleep.suspend(call.request)

    async def devices_resume(self, call: Call) -> object:
        return await self.sleep.resume(call.request)

    # Calls of services

    def service_call(self, call: Call) -> Awaitable[object]:
        return self.calls.broker.call(call.caller, call.request, call.params)

    async def call_list(self, call: Call) -> object:
        return await self.calls.list(call.params.after)

    async def call_end(self, call: Call) -> object:
        await self.calls.end(call.caller, call.params.call)
        return Empty()

    # VMs and the service

    async def vm_list(self, call: Call) -> object:
        await self._state.agents.wait_expected()
        return VmListed(vms=tuple(vms_now(self._state)))

    async def vm_start(self, call: Call) -> object:
        await self.interrupted.wait(call.params.vm)
        return await self._vm_start(call.params.vm, call.request, call.gone)

    async def vm_shutdown(self, call: Call) -> object:
        await self._vm_stop.shutdown(call.params.vm, call.params.force, call.request)
        return Empty()

    async def vm_used(self, _call: Call) -> object:
        return VmsUsed(await self._vm_stop.used())

    async def service_status(self, call: Call) -> object:
        return StatusResult(
            version=VERSION,
            uptime_s=round(trio.current_time() - self._started, 3),
            policy=fitting_status(policy_status(self._state)),
            agents=tuple(sorted(link.name for link in self._state.agents)),
            troubles=self._state.troubles(),
        )

    # Policy

    async def policy_explain(self, call: Call) -> object:
        params = call.params
        return self._explaining.request(
            params.service, params.argument, params.source, params.target
        )

    async def policy_mine(self, call: Call) -> object:
        return self._explaining.mine(call.caller.name, call.params.verb, self._key(call))

    async def policy_system(self, call: Call) -> object:
        return self._explaining.system(call.params.after)

    async def audit_recent(self, call: Call) -> object:
        return await self._recent(call.caller, call.params.count, call.params.device)

    async def prompter_register(self, call: Call) -> object:
        if call.background is None:
            raise failure("unavailable", "this connection cannot put questions to a user")
        self.prompters.register(call.peer, call.background, call.caller, calls=call.params.calls)
        self.auto_attach.prompter_came()
        return Empty()


def _not_served(entry: Entry | None, caller: Caller) -> CallError:
    """The table has no such method for this caller."""
    if caller.kind is DESKTOP and entry is not None and LOCAL in entry.callers:
        why = f"dom0's service does this for root alone, and not for {caller.audited}"
        return failure("unknown_method", why, hint="the same command with sudo")
    return failure(
        "unknown_method",
        "dom0's service does not know this request: it is of another version than the program that "
        "makes it",
    )


# Root alone, the desktop of dom0 too, VMs.
_ROOT = frozenset({LOCAL})
_DOM0 = _ROOT | {DESKTOP}
_VMS = frozenset({VM})
_EVERYBODY = _DOM0 | _VMS


def _always(_params: object) -> bool:
    return True


TABLE: dict[str, Entry] = {
    "device.classes": Entry(Api.device_classes, _EVERYBODY),
    "device.list": Entry(Api.device_list, _EVERYBODY, left_classes=True),
    "device.info": Entry(Api.device_info, _EVERYBODY, left_classes=True),
    "device.attach": Entry(Api.device_attach, _EVERYBODY, operation=True),
    "device.detach": Entry(
        Api.device_detach, _EVERYBODY, operation=True, takes_away=_always, left_classes=True
    ),
    "device.assign": Entry(Api.device_assign, _EVERYBODY, operation=True),
    "device.unassign": Entry(
        Api.device_unassign, _EVERYBODY, operation=True, takes_away=_always, left_classes=True
    ),
    "device.assignments": Entry(Api.device_assignments, _EVERYBODY, left_classes=True),
    "device.mute": Entry(
        Api.device_mute, _DOM0, operation=True, takes_away=lambda params: params.muted
    ),
    "device.explain": Entry(Api.device_explain, _DOM0, left_classes=True),
    "device.targets": Entry(Api.device_targets, _DOM0),
    "watch.next": Entry(Api.watch_next, _EVERYBODY, left_classes=True),
    "devices.suspend": Entry(Api.devices_suspend, _ROOT, operation=True),
    "devices.resume": Entry(Api.devices_resume, _ROOT, operation=True),
    "service.call": Entry(Api.service_call, _VMS, through_agents=True),
    "call.list": Entry(Api.call_list, _DOM0),
    "call.end": Entry(Api.call_end, _DOM0, takes_away=_always),
    "vm.list": Entry(Api.vm_list, _DOM0),
    "vm.start": Entry(Api.vm_start, _ROOT, operation=True),
    "vm.shutdown": Entry(Api.vm_shutdown, _ROOT, operation=True),
    "vm.used": Entry(Api.vm_used, _ROOT),
    "service.status": Entry(Api.service_status, _DOM0),
    "policy.explain": Entry(Api.policy_explain, _DOM0),
    "policy.mine": Entry(Api.policy_mine, _VMS),
    "policy.system": Entry(Api.policy_system, _ROOT),
    "prompter.register": Entry(Api.prompter_register, _DOM0),
    "audit.recent": Entry(Api.audit_recent, _DOM0),
}

# What takes something away, at least with some parameters.
TAKING = frozenset(method for method, entry in TABLE.items() if entry.takes_away is not _never)
