"""device.attach: looks up the request's device and VM, decides, and has a transaction attach it.

The policy says which VM gets the device: a rule may redirect it to another VM than the named one,
and with an `ask` rule dom0's user chooses. Nothing is reserved while dom0's user thinks: after the
answer, everything is looked up and decided again, and the request is denied if something has
changed.

The order of the checks is the order of what may be revealed. dom0's user gets the most helpful
error first. A VM gets the policy's verdict first, and after it nothing that distinguishes a device
or a VM that does not exist from one that it may not see.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Literal

import attrs
import trio
from pedos_protocol.errors import CallError
from pedos_protocol.frozen import frozen
from pedos_protocol.messages import AttachResult
from pedos_protocol.names import printable_text

from pedos_dom0 import errors
from pedos_dom0.access.authorizer import Consents, MustAsk
from pedos_dom0.access.recorded import recorded
from pedos_dom0.access.subjects import DeviceSubject
from pedos_dom0.attachments.fresh import unknown, wait_until_known
from pedos_dom0.device_classes.registered import class_of
from pedos_dom0.drivers.base import DOM0_NAME, DriverError
from pedos_dom0.requests.assignable import conflict
from pedos_dom0.requests.obstacles import device_to_lend, held_by, no_recipient, not_ready
from pedos_dom0.tables.agents import AGENT_GRACE
from pedos_dom0.tables.leases import ATTACHED, Taken
from pedos_dom0.tables.store import StoreError
from pedos_dom0.tasks import progress

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from pedos_protocol.messages import Device, Mode

    from pedos_dom0.access.authorizer import Authorizer, Grant
    from pedos_dom0.access.callers import Caller
    from pedos_dom0.attachments.reconcile import Reconciler
    from pedos_dom0.attachments.transaction import Transaction
    from pedos_dom0.device_classes.base import Options
    from pedos_dom0.state import State
    from pedos_dom0.tables.assignment import Assignment
    from pedos_dom0.tables.leases import Lease
    from pedos_dom0.tables.registry import DeviceKey

# An agent's words about a device, cut to a sentence.
NOTE_MAX = 300

Outcome = Literal["attached", "already", "assigned"]


@frozen
class AttachRequest:
    """Who asks for which device in which VM. Answers and audit lines share the id `request`."""

    caller: Caller
    request: str
    key: DeviceKey
    vm: str
    options: Options
    persistent: bool
    asker_gone: trio.Event
    # The one that the device had when it was chosen; None if any will do.
    identity: str | None = None
    consents: Consents = attrs.field(factory=Consents)
    # That of the assignment by which the service attaches it by itself; None for a request.
    mode: Mode | None = None
    # Whether a rule may send it to another VM; not if this one was agreed on before.
    may_redirect: bool = True

    @property
    def subject(self) -> DeviceSubject:
        return DeviceSubject("attach", self.key)


class Attach:
    """Serves device.attach."""

    def __init__(
        self, state: State, authorizer: Authorizer, transaction: Transaction, reconciler: Reconciler
    ) -> None:
        self._state = state
        self._authorizer = authorizer
        self._transaction = transaction
        self._reconciler = reconciler

    async def __call__(
        self,
        caller: Caller,
        request: str,
        key: DeviceKey,
        vm: str,
        raw_options: Mapping[str, str],
        persistent: bool,
        asker_gone: trio.Event,
        identity: str | None = None,
        *,
        may_redirect: bool = True,
    ) -> AttachResult:
        """Returns when the device is in the VM, or assigned to it. Raises CallError."""
        options = class_of(key.device_class).parse_options(raw_options)
        class_of(key.device_class).check_asker(options, is_dom0=caller.kind.sees_all)
        asked = AttachRequest(
            caller=caller,
            request=request,
            key=key,
            vm=vm,
            options=options,
            persistent=persistent,
            asker_gone=asker_gone,
            identity=identity,
            may_redirect=may_redirect,
        )
        return await self._served(asked)

    async def assigned(
        self,
        caller: Caller,
        request: str,
        key: DeviceKey,
        assignment: Assignment,
        identity: str,
        asker_gone: trio.Event,
        consents: Consents,
    ) -> AttachResult:
        """Attaches an assigned device by itself, and to no other VM than that of the assignment.
        `consents` has what dom0's user was asked before."""
        options = class_of(key.device_class).parse_options(assignment.options)
        asked = AttachRequest(
            caller=caller,
            request=request,
            key=key,
            vm=assignment.vm,
            options=options,
            persistent=False,
            asker_gone=asker_gone,
            identity=identity,
            consents=consents,
            mode=assignment.mode,
            may_redirect=False,
        )
        return await self._served(asked)

    async def _served(self, asked: AttachRequest) -> AttachResult:
        """The answer to it, and a line in the audit log."""
        key, by_mode = asked.key, {} if asked.mode is None else {"mode": asked.mode}
        with recorded(
            self._state,
            "attach",
            asked.caller,
            asked.request,
            device_class=key.device_class,
            device=str(key),
            vm=asked.vm,
            options=asked.options.canonical(),
            persistent=asked.persistent,
            **by_mode,
        ) as ending:
            result, ending.fields["vm"] = await self._attach(asked)
            ending.outcome = result.outcome
            ending.changed = result.outcome != "already"
        return result

    async def _attach(self, asked: AttachRequest) -> tuple[AttachResult, str]:
        """The answer, and the VM that has the device then."""
        if asked.vm == DOM0_NAME:
            raise errors.target_is_dom0()
        if asked.vm == asked.key.backend:
            raise errors.target_is_backend(asked.vm)
        device, grant = await self._granted(asked)
        # From there to the lease nothing is awaited: what was looked up and decided still holds
        # when the device is leased.
        vm = grant.vm
        if (held := held_by(self._state, asked.key, vm)) is not None:
            newly = await self._assign(asked, vm, device, held)
            return self._result(asked, vm, "assigned" if newly else "already", held.options), vm

        domain = self._state.known_domain(vm)
        if asked.persistent:
            self._check_assignable(asked, vm, ())  # before any step of the attach
        if asked.persistent and not self._can_give_now(asked, vm, domain.domid):
            await self._assign(asked, vm, device)
            return self._result(asked, vm, "assigned", asked.options.canonical()), vm
        if (error := not_ready(self._state, asked.key, device, vm)) is not None:
            raise self._tell(asked, vm, error)
        assert domain.domid is not None, vm  # or it would not be ready

        lease = self._reserve(asked, grant, device, domain.domid)
        attempt = self._transaction.attempt(lease)
        lease = await self._transaction.establish(lease, asked.request)
        try:
            await self._assign(asked, vm, device, lease)
        except (CallError, StoreError) as failed:
            # The request was for both, so it gets both or nothing.
            try:
                await self._transaction.undo(lease, "it could not be assigned", asked.request)
            except CallError as refused:
                message = f"it could not be assigned ({failed}); and {refused.message}"
                raise self._tell(asked, vm, errors.failure("busy", message)) from failed
            raise
        return self._result(asked, vm, "attached", lease.options, attempt.note), vm

    def _can_give_now(self, asked: AttachRequest, vm: str, domid: int | None) -> bool:
        """Whether the VM can get it before its next start."""
        try:
            carrier = self._state.carrier(asked.key.device_class)
            return domid is not None and carrier.can_give_live(domid)
        except DriverError as error:
            raise self._tell(asked, vm, errors.failure(error.code, str(error))) from error

    async def _granted(self, asked: AttachRequest) -> tuple[Device, Grant]:
        """The device and its recipient, as of the moment of the return. Raises CallError.

        Each turn looks everything up and decides it again. A turn that has to wait for a VM, or for
        dom0's user, is followed by another; there are at most a few, because each VM and each verb
        is waited for once.
        """
        settled: set[str] = set()
        await self._wait(asked, asked.vm, settled)
        while True:
            try:
                if asked.caller.kind.sees_all:
                    device = self._look_up(asked, asked.vm)
                    grant = self._decide(asked)
                else:
                    grant = self._decide(asked)
                    device = self._look_up_for_vm(asked, grant.vm)
            except MustAsk as needed:
                if not asked.caller.kind.sees_all:
                    self._look_up_for_vm(asked, asked.caller.name)
                await self._authorizer.ask(
                    *(asked.caller, needed, asked.request, asked.consents, asked.asker_gone),
                    assigned=asked.mode,
                )
                continue
            self._check_target(asked, grant.vm)
            if grant.vm in settled or grant.vm == asked.vm:
                return device, grant
            await self._wait(asked, grant.vm, settled)

    async def _wait(self, asked: AttachRequest, target: str, settled: set[str]) -> None:
        """Waits until the tables about both VMs are settled, and the device is identified: after a
        restart, and after the device was plugged in, that takes a moment."""
        settled.add(target)
        caller, source = asked.caller.name, asked.key.backend
        is_denied = False
        if asked.caller.kind.sees_all:
            await self._wait_for_agents(source, target)
        else:
            decision = self._authorizer.decide(caller, asked.subject, asked.vm)
            is_denied = decision.verdict == "deny"
        # A VM must not learn of others from the duration of a denial.
        if not is_denied:
            await self._reconciler.wait_settled(source, target)
            await self._reconciler.wait_ended([asked.key], target)
        # For other VMs an unidentified device does not exist, see `_look_up_for_vm`.
        if asked.caller.kind.sees_all or source == caller:
            await wait_until_known(self._state, [asked.key])

    def _check_target(self, asked: AttachRequest, vm: str) -> None:
        """Whether a rule redirects it to a VM that can have it."""
        may_redirect = asked.may_redirect
        error = no_recipient(self._state, asked.key, asked.vm, vm, may_redirect=may_redirect)
        if error is not None:
            raise self._tell(asked, vm, error)

    async def _wait_for_agents(self, *names: str) -> None:
        """An agent that was just restarted is worth waiting for, if its VM runs."""
        state = self._state

        def runs(name: str) -> bool:
            domain = state.domain(name)
            return domain is not None and domain.domid is not None

        with trio.move_on_after(AGENT_GRACE):
            for name in names:
                if runs(name) and state.agents.get(name) is None:
                    progress.at("connect", name)
                    await state.agents.wait_for(
                        name, timeout=AGENT_GRACE, worthwhile=partial(runs, name)
                    )

    def _look_up(self, asked: AttachRequest, vm: str) -> Device:
        """The device, if everything that was named exists and is known."""
        self._state.known_domain(vm)
        return device_to_lend(self._state, asked.key, asked.identity)

    def _look_up_for_vm(self, asked: AttachRequest, vm: str) -> Device:
        """As `_look_up`, for a VM that policy allows to ask.

        Policy may allow names with a wildcard; that does not entitle the VM to learn which of them
        exist and run. What it owns itself is no secret to it. An unidentified device may be one
        that a rule denies it by its identity: until it is identified, it does not exist for the VM,
        in the answer and in its duration.
        """
        try:
            return self._look_up(asked, vm)
        except CallError as error:
            its_own = asked.key.backend == asked.caller.name
            is_the_vm = self._state.domain(vm) is None
            is_unknown = unknown(self._state, asked.key) is not None
            if (error.code == "not_found" or is_unknown) and (is_the_vm or not its_own):
                raise self._authorizer.hidden(asked.subject, asked.vm, error) from error
            raise

    def _tell(self, asked: AttachRequest, vm: str, error: CallError) -> CallError:
        """`error`, unless it would tell a VM about the state of another one."""
        if asked.caller.kind.sees_all or asked.vm == vm == asked.caller.name:
            return error
        return self._authorizer.hidden(asked.subject, asked.vm, error)

    def _decide(self, asked: AttachRequest) -> Grant:
        """The permission. An assignment has to be attachable too: otherwise it would only keep the
        VM from starting; and it is one to the VM that gets the device now."""
        grant = self._authorizer.require(
            asked.caller, asked.subject, asked.vm, asked.request, asked.consents
        )
        if asked.persistent:
            assign = DeviceSubject("assign", asked.key)
            self._authorizer.require(asked.caller, assign, grant.vm, asked.request, asked.consents)
        return grant

    def _reserve(self, asked: AttachRequest, grant: Grant, device: Device, vm_domid: int) -> Lease:
        key, vm, frontend = asked.key, grant.vm, asked.options.frontend
        if frontend is not None:
            for other in self._state.leases.of_vm(vm):
                if other.frontend == frontend and other.key != key:
                    raise self._tell(asked, vm, errors.frontend_taken(vm, frontend, other))
        try:
            return self._transaction.reserve(
                key, device, vm, vm_domid, asked.options, read_only_by_rule=grant.read_only
            )
        except Taken as taken:
            raise errors.taken(key, taken.holder) from taken

    async def _assign(
        self, asked: AttachRequest, vm: str, device: Device, lease: Lease | None = None
    ) -> bool:
        """Writes the assignment, if one was requested; False if it existed already.

        With `lease`, only while that stands: a detach meanwhile also removes the assignment.
        Without one, the VM does not run, and must not be starting with what was assigned before.
        """
        if not asked.persistent:
            return False
        state, key = self._state, asked.key

        def check() -> None:
            held = None if lease is None else state.leases.get(lease.attachment)
            if lease is not None and (held is None or held.state != ATTACHED):
                raise errors.failure("failed", f"{key} was detached from {vm} meanwhile")
            is_noted = any(row.vm == vm for row in state.store.starts())
            if lease is None and is_noted and vm in state.facts.starting:
                raise self._tell(asked, vm, errors.being_started(vm))
            self._check_assignable(asked, vm, own)

        own = await self._own_frontends(asked, vm)
        options = asked.options.canonical()
        identity = class_of(key.device_class).lasting_identity(device.identity)
        domain = state.domain(vm)
        uuid = None if domain is None else domain.uuid
        await state.store.let_go(key, vm)
        newly = await state.store.assign(vm, key, options, identity, uuid=uuid, check=check)
        if newly:
            state.registry.touch(key)
        return newly

    def _check_assignable(self, asked: AttachRequest, vm: str, own: Collection[str]) -> None:
        """CallError if the VM could never start with it."""
        state, frontend = self._state, asked.options.frontend
        assigned = state.store.assignments(vm)
        error = conflict(vm, asked.key, frontend, assigned, state.registry, own)
        if error is not None:
            raise self._tell(asked, vm, error)

    async def _own_frontends(self, asked: AttachRequest, vm: str) -> Collection[str]:
        """The names of the VM's own disks, where they matter and the hypervisor knows them."""
        if asked.options.frontend is None:
            return ()
        try:
            return await self._state.carrier(asked.key.device_class).own_names(vm)
        except DriverError as error:
            what = f"which disks {vm} has of its own could not be looked at: {error}"
            raise self._tell(asked, vm, errors.failure(error.code, what)) from error

    def _result(
        self,
        asked: AttachRequest,
        vm: str,
        outcome: Outcome,
        options: Mapping[str, str],
        note: str | None = None,
    ) -> AttachResult:
        if not asked.caller.kind.sees_all and vm not in (asked.vm, asked.caller.name):
            # It was redirected to a VM that the requester knows nothing about.
            return AttachResult(outcome="attached", options={}, request=asked.request, vm=None)
        notes = [] if note is None else [f"{vm} says: {printable_text(note, NOTE_MAX)}"]
        device_class = asked.key.device_class
        may_know = asked.caller.kind.sees_all or vm == asked.caller.name
        if may_know and outcome != "assigned" and self._state.store.is_muted(device_class, vm):
            notes.append(f"{vm} is muted, and hears nothing until dom0's user unmutes it")
        return AttachResult(
            outcome=outcome,
            options=dict(options),
            request=asked.request,
            vm=vm,
            note="; ".join(notes) or None,
        )
