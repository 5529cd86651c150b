"""device.attach: what is asked for is looked up, decided, and then done by a transaction.

Which VM gets the device is for policy to say: a rule may send it to another one than was named, and
where the rule says `ask`, dom0's user chooses. While dom0's user thinks, nothing is held: once they
have spoken, all is looked up and decided anew, and what is not as it was then is a no.

The order of the checks is the order of what may be said. dom0's user gets the most helpful error
first. A VM gets the policy's verdict first, and behind it nothing that tells a device or a VM that
does not exist from one that it may not see.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Literal

import attrs
import trio
from pedos_protocol.errors import CallError
from pedos_protocol.fields import ATTACHMENTS_MAX
from pedos_protocol.messages import AttachResult

from pedos_dom0 import errors
from pedos_dom0.access import Consents, MustAsk
from pedos_dom0.agents import AGENT_GRACE
from pedos_dom0.drivers.base import DOM0_NAME
from pedos_dom0.leases import ATTACHED, Taken
from pedos_dom0.options import Options, parse_options
from pedos_dom0.registry import lasting_identity
from pedos_dom0.store import Assignment, StoreError
from pedos_dom0.transaction import is_read_only

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pedos_protocol.messages import Device

    from pedos_dom0.access import Access, Caller, Grant
    from pedos_dom0.leases import Lease
    from pedos_dom0.reconcile import Reconciler
    from pedos_dom0.registry import DeviceKey
    from pedos_dom0.state import State
    from pedos_dom0.transaction import Transaction

Outcome = Literal["attached", "already", "assigned"]


@attrs.frozen
class AttachRequest:
    """Who asks for which device in which VM. `request` is the id that answers and audit share."""

    caller: Caller
    request: str
    key: DeviceKey
    vm: str
    options: Options
    persistent: bool
    asker_gone: trio.Event
    consents: Consents = attrs.field(factory=Consents)


class Attach:
    """Serves device.attach."""

    def __init__(
        self, state: State, access: Access, transaction: Transaction, reconciler: Reconciler
    ) -> None:
        self._state = state
        self._access = access
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
    ) -> AttachResult:
        """Returns when the device is in the VM, or assigned to it. Raises CallError."""
        began = trio.current_time()
        asked = AttachRequest(
            caller=caller,
            request=request,
            key=key,
            vm=vm,
            options=parse_options(key.device_class, raw_options),
            persistent=persistent,
            asker_gone=asker_gone,
        )
        outcome, reason, landed = "failed", None, vm
        try:
            result, landed = await self._attach(asked)
            outcome = result.outcome
            return result
        except CallError as error:
            outcome, reason = f"{error.code}: {error.message}", errors.hidden_truth(error)
            raise
        finally:
            self._state.noise.write(
                "attach",
                of=caller.name,
                noise=outcome not in ("attached", "assigned") and not caller.is_dom0,
                request=request,
                caller=caller.name,
                device_class=key.device_class,
                device=str(key),
                vm=landed,
                options=asked.options.canonical(),
                persistent=persistent,
                outcome=outcome,
                reason=reason,
                seconds=round(trio.current_time() - began, 3),
            )

    async def _attach(self, asked: AttachRequest) -> tuple[AttachResult, str]:
        """What is answered, and the VM that has it then."""
        if asked.vm == DOM0_NAME:
            raise errors.target_is_dom0()
        if asked.vm == asked.key.backend:
            raise errors.target_is_backend(asked.vm)
        device, grant = await self._granted(asked)
        # From there to the lease nothing is awaited: what was looked up and decided is still so
        # when the device is given out.
        vm = grant.vm
        held = self._held(asked.key, vm)
        if held is not None and held.state == ATTACHED:
            newly = self._assign(asked, vm, device)
            return self._result(asked, vm, "assigned" if newly else "already", held.options), vm

        domain = self._state.known_domain(vm)
        if domain.domid is None and asked.persistent:
            self._assign(asked, vm, device)
            return self._result(asked, vm, "assigned", asked.options.canonical()), vm
        if domain.domid is None:
            raise self._tell(asked, vm, errors.target_halted(vm))
        if self._state.agents.at(vm, domain.domid) is None:
            raise self._tell(asked, vm, errors.agent_missing(vm, "failed"))

        read_only = is_read_only(device, grant.read_only, asked.options.read_only)
        lease = self._reserve(asked, vm, device, domain.domid, asked.options.granted(read_only))
        lease = await self._transaction.establish(lease, asked.request)
        try:
            self._assign(asked, vm, device)
        except (CallError, StoreError):
            # Asked for was both, so it is both or nothing.
            await self._transaction.undo(lease, "it could not be assigned", asked.request)
            raise
        return self._result(asked, vm, "attached", lease.options), vm

    async def _granted(self, asked: AttachRequest) -> tuple[Device, Grant]:
        """The device and who gets it, as of the moment of the return. Raises CallError.

        Each turn looks everything up and decides it anew. A turn that has to wait for a VM, or for
        dom0's user, is followed by another; there are at most a few, as each VM and each verb is
        waited for once.
        """
        settled: set[str] = set()
        await self._wait(asked, asked.vm, settled)
        while True:
            try:
                if asked.caller.is_dom0:
                    device = self._look_up(asked, asked.vm)
                    grant = self._decide(asked)
                else:
                    grant = self._decide(asked)
                    device = self._look_up_for_vm(asked, grant.vm)
            except MustAsk as needed:
                if not asked.caller.is_dom0:
                    self._look_up_for_vm(asked, asked.caller.name)
                await self._access.ask(
                    asked.caller, needed, asked.request, asked.consents, asked.asker_gone
                )
                continue
            self._check_target(asked, grant.vm)
            if grant.vm in settled or grant.vm == asked.vm:
                return device, grant
            await self._wait(asked, grant.vm, settled)

    async def _wait(self, asked: AttachRequest, target: str, settled: set[str]) -> None:
        """Waits until what is known of both VMs is what is so: after a restart that takes a bit."""
        settled.add(target)
        source = asked.key.backend
        if asked.caller.is_dom0:
            await self._wait_for_agents(source, target)
        elif (
            self._access.decide(asked.caller.name, "attach", asked.key, asked.vm).verdict == "deny"
        ):
            return  # a VM is not to learn from the time that a denial takes
        await self._reconciler.wait_settled(source, target)

    def _check_target(self, asked: AttachRequest, vm: str) -> None:
        """Whether a rule sends it to a VM that can have it."""
        error = None
        if vm == DOM0_NAME:
            error = errors.target_is_dom0()
        elif vm == asked.key.backend:
            error = errors.target_is_backend(vm)
        elif self._state.domain(vm) is None:
            error = errors.no_such_target(vm)
        if error is not None:
            raise self._tell(asked, vm, error)

    async def _wait_for_agents(self, *names: str) -> None:
        """An agent that was restarted a moment ago is worth waiting for, if its VM runs."""
        state = self._state

        def runs(name: str) -> bool:
            domain = state.domain(name)
            return domain is not None and domain.domid is not None

        with trio.move_on_after(AGENT_GRACE):
            for name in names:
                if runs(name) and state.agents.get(name) is None:
                    await state.agents.wait_for(
                        name, timeout=AGENT_GRACE, worthwhile=partial(runs, name)
                    )

    def _look_up(self, asked: AttachRequest, vm: str) -> Device:
        """The device, if all that was named is there."""
        state, key = self._state, asked.key
        state.known_domain(vm)
        source = state.known_domain(key.backend)
        device = state.registry.get(key)
        if device is None:
            if source.domid is None:
                raise errors.backend_halted(key.backend)
            if state.agents.get(key.backend) is None:
                raise errors.agent_missing(key.backend, "not_found")
            raise errors.no_device(key)
        if (lack := state.unsupported.get(key.device_class)) is not None:
            raise errors.unsupported(lack)
        return device

    def _look_up_for_vm(self, asked: AttachRequest, vm: str) -> Device:
        """As `_look_up`, for a VM that policy allows to ask.

        Policy may allow names with a wildcard; that does not entitle the VM to learn which of them
        exist and run. What it owns itself is no secret to it.
        """
        try:
            return self._look_up(asked, vm)
        except CallError as error:
            its_own = asked.key.backend == asked.caller.name
            is_the_vm = self._state.domain(vm) is None
            if error.code == "not_found" and (is_the_vm or not its_own):
                raise self._access.hidden(asked.key, asked.vm, error) from error
            raise

    def _tell(self, asked: AttachRequest, vm: str, error: CallError) -> CallError:
        """`error`, unless it would tell a VM about the state of another one."""
        if asked.caller.is_dom0 or asked.vm == vm == asked.caller.name:
            return error
        return self._access.hidden(asked.key, asked.vm, error)

    def _decide(self, asked: AttachRequest) -> Grant:
        """What the rules allow. An assignment has to be attachable too: otherwise it would only
        keep the VM from starting; and it is one to the VM that gets the device now."""
        grant = self._access.require(
            asked.caller, "attach", asked.key, asked.vm, asked.request, asked.consents
        )
        if asked.persistent:
            self._access.require(
                asked.caller, "assign", asked.key, grant.vm, asked.request, asked.consents
            )
        return grant

    def _held(self, key: DeviceKey, vm: str) -> Lease | None:
        """The target's own lease of this device, if it has one."""
        leases = self._state.leases.of_device(key)
        return next((lease for lease in leases if lease.vm == vm), None)

    def _reserve(
        self,
        asked: AttachRequest,
        vm: str,
        device: Device,
        vm_domid: int,
        options: Mapping[str, str],
    ) -> Lease:
        key, frontend = asked.key, asked.options.frontend
        if frontend is not None:
            for other in self._state.leases.of_vm(vm):
                if other.frontend == frontend and other.key != key:
                    raise self._tell(asked, vm, errors.frontend_taken(vm, frontend, other))
        try:
            lease = self._transaction.reserve(key, vm, vm_domid, options=options, frontend=frontend)
        except Taken as taken:
            raise errors.taken(key, taken.holder) from taken
        if device.busy is not None:
            self._transaction.release(lease)
            raise errors.in_use_at_source(key, device.busy)
        return lease

    def _assign(self, asked: AttachRequest, vm: str, device: Device) -> bool:
        """Writes the assignment, if one was asked for; False if it stood there already."""
        if not asked.persistent:
            return False
        store, options = self._state.store, asked.options.canonical()
        wanted = Assignment(vm, asked.key, options, lasting_identity(device))
        known = wanted in store.assignments(vm)
        if not known:
            if len(store.assignments(vm)) >= ATTACHMENTS_MAX:
                raise errors.QuotaError(vm, f"{vm} has {ATTACHMENTS_MAX} assignments")
            store.assign(vm, asked.key, options, wanted.identity)
            self._state.registry.touch(asked.key)
        return not known

    def _result(
        self, asked: AttachRequest, vm: str, outcome: Outcome, options: Mapping[str, str]
    ) -> AttachResult:
        if not asked.caller.is_dom0 and vm not in (asked.vm, asked.caller.name):
            # It was sent on to a VM of which the one that asked knows nothing.
            return AttachResult(outcome="attached", options={}, request=asked.request, vm=None)
        return AttachResult(outcome=outcome, options=dict(options), request=asked.request, vm=vm)
