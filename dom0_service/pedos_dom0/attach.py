"""device.attach: what is asked for is looked up, decided, and then done by a transaction.

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
from pedos_dom0.agents import AGENT_GRACE
from pedos_dom0.drivers.base import DOM0_NAME
from pedos_dom0.leases import ATTACHED, Taken
from pedos_dom0.options import Options, parse_options
from pedos_dom0.store import StoreError
from pedos_dom0.transaction import is_read_only

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pedos_protocol.messages import Device

    from pedos_dom0.access import Access, Caller
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
        )
        outcome = "failed"
        try:
            result = await self._attach(asked)
            outcome = result.outcome
            return result
        except CallError as error:
            outcome = f"{error.code}: {error.message}"
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
                vm=vm,
                options=asked.options.canonical(),
                persistent=persistent,
                outcome=outcome,
                seconds=round(trio.current_time() - began, 3),
            )

    async def _attach(self, asked: AttachRequest) -> AttachResult:
        if asked.vm == DOM0_NAME:
            raise errors.target_is_dom0()
        if asked.vm == asked.key.backend:
            raise errors.target_is_backend(asked.vm)
        await self._wait(asked)
        # From here to the lease nothing is awaited: what is looked up and decided is still so when
        # the device is given out.
        if asked.caller.is_dom0:
            device = self._look_up(asked)
            parameters = self._decide(asked)
        else:
            parameters = self._decide(asked)
            device = self._look_up_for_vm(asked)
        held = self._held(asked)
        if held is not None and held.state == ATTACHED:
            newly = self._assign(asked)
            return self._result(asked, "assigned" if newly else "already", held.options)

        domain = self._state.known_domain(asked.vm)
        if domain.domid is None and asked.persistent:
            self._assign(asked)
            return self._result(asked, "assigned", asked.options.canonical())
        if domain.domid is None:
            raise self._tell(asked, errors.target_halted(asked.vm))
        if self._state.agents.at(asked.vm, domain.domid) is None:
            raise self._tell(asked, errors.agent_missing(asked.vm, "failed"))

        read_only = is_read_only(device, parameters, asked.options.read_only)
        lease = self._reserve(asked, device, domain.domid, read_only)
        lease = await self._transaction.establish(lease, asked.request)
        try:
            self._assign(asked)
        except (CallError, StoreError):
            # Asked for was both, so it is both or nothing.
            await self._transaction.undo(lease, "it could not be assigned", asked.request)
            raise
        return self._result(asked, "attached", lease.options)

    async def _wait(self, asked: AttachRequest) -> None:
        """Waits until what is known of both VMs is what is so: after a restart that takes a bit."""
        source, target = asked.key.backend, asked.vm
        if asked.caller.is_dom0:
            await self._wait_for_agents(source, target)
        elif self._access.decide(asked.caller.name, "attach", asked.key, target).verdict != "allow":
            return  # a VM is not to learn from the time that a denial takes
        await self._reconciler.wait_settled(source, target)

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

    def _look_up(self, asked: AttachRequest) -> Device:
        """The device, if all that was named is there."""
        state, key = self._state, asked.key
        state.known_domain(asked.vm)
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

    def _look_up_for_vm(self, asked: AttachRequest) -> Device:
        """As `_look_up`, for a VM that policy allows to ask.

        Policy may allow names with a wildcard; that does not entitle the VM to learn which of them
        exist and run. What it owns itself is no secret to it.
        """
        try:
            return self._look_up(asked)
        except CallError as error:
            its_own = asked.key.backend == asked.caller.name
            is_the_vm = self._state.domain(asked.vm) is None
            if error.code == "not_found" and (is_the_vm or not its_own):
                raise self._access.hidden(asked.key, asked.vm) from error
            raise

    def _tell(self, asked: AttachRequest, error: CallError) -> CallError:
        """`error`, unless it would tell a VM about the state of another one."""
        if asked.caller.is_dom0 or asked.vm == asked.caller.name:
            return error
        return self._access.hidden(asked.key, asked.vm)

    def _decide(self, asked: AttachRequest) -> Mapping[str, str]:
        """The parameters of the rule that allows it. An assignment has to be attachable too:
        otherwise it would only keep the VM from starting."""
        decision = self._access.require(asked.caller, "attach", asked.key, asked.vm, asked.request)
        if asked.persistent:
            self._access.require(asked.caller, "assign", asked.key, asked.vm, asked.request)
        return decision.parameters

    def _held(self, asked: AttachRequest) -> Lease | None:
        """The target's own lease of this device, if it has one."""
        leases = self._state.leases.of_device(asked.key)
        return next((lease for lease in leases if lease.vm == asked.vm), None)

    def _reserve(
        self, asked: AttachRequest, device: Device, vm_domid: int, read_only: bool
    ) -> Lease:
        key, frontend = asked.key, asked.options.frontend
        if frontend is not None:
            for other in self._state.leases.of_vm(asked.vm):
                if other.frontend == frontend and other.key != key:
                    raise errors.frontend_taken(asked.vm, frontend, other)
        try:
            lease = self._transaction.reserve(
                key, asked.vm, vm_domid, read_only=read_only, frontend=frontend
            )
        except Taken as taken:
            raise errors.taken(key, taken.holder) from taken
        if device.busy is not None:
            self._transaction.release(lease)
            raise errors.in_use_at_source(key, device.busy)
        return lease

    def _assign(self, asked: AttachRequest) -> bool:
        """Writes the assignment, if one was asked for; False if it stood there already."""
        if not asked.persistent:
            return False
        store, options = self._state.store, asked.options.canonical()
        known = any(
            assignment.key == asked.key and assignment.options == options
            for assignment in store.assignments(asked.vm)
        )
        if not known:
            if len(store.assignments(asked.vm)) >= ATTACHMENTS_MAX:
                raise errors.QuotaError(asked.vm, f"{asked.vm} has {ATTACHMENTS_MAX} assignments")
            store.assign(asked.vm, asked.key, options)
            self._state.registry.touch(asked.key)
        return not known

    def _result(
        self, asked: AttachRequest, outcome: Outcome, options: Mapping[str, str]
    ) -> AttachResult:
        return AttachResult(outcome=outcome, options=dict(options), request=asked.request)
