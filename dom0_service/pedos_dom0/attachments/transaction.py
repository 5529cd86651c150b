"""The attach itself: lease and journal, export at the source, import at the target, commit.

Where the hypervisor carries the device (Carrier.by_hypervisor), the carrier attaches it between the
two.

Only `reserve` gives a device to a VM. It has no checkpoint, so of two requests for the same device
one gets it and the other gets Taken. `establish` does the steps; if one of them fails, the earlier
ones are undone in reverse and the lease is freed before the error is raised. The lease stands in
memory from the first moment; its journal row is awaited before the first step, so that after a kill
between any two steps the next service finds the row and undoes the attach (see reconcile.py).
"""

from __future__ import annotations

import logging
import secrets
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs
import trio
from pedos_protocol.errors import CallError, RemoteProtocolError
from pedos_protocol.fields import ATTACHMENTS_MAX
from pedos_protocol.messages import parse_result
from pedos_protocol.names import harmless_text
from pedos_protocol.words import request_to

from pedos_dom0.attachments.strays import held_by_stray
from pedos_dom0.attachments.teardown import DETACH, Attempt
from pedos_dom0.attachments.ways import GONE, RELEASED, UNDONE
from pedos_dom0.attachments.wire import export_params, import_params
from pedos_dom0.device_classes.registered import class_of
from pedos_dom0.drivers.base import DriverError
from pedos_dom0.errors import (
    NotStoredError,
    QuotaError,
    agent_missing,
    cannot_mute,
    failure,
    not_to_be_had,
    shutting_down,
)
from pedos_dom0.tables.leases import ATTACHED, PENDING, Lease, Taken, broken_by
from pedos_dom0.tables.store import StoreError
from pedos_dom0.tasks import progress

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from pedos_protocol.messages import Device

    from pedos_dom0.attachments.muting import Muting
    from pedos_dom0.attachments.teardown import Teardown
    from pedos_dom0.attachments.ways import Way
    from pedos_dom0.device_classes.base import Options
    from pedos_dom0.drivers.carrier import Carrier
    from pedos_dom0.state import State
    from pedos_dom0.tables.agents import AgentLink
    from pedos_dom0.tables.registry import DeviceKey

logger = logging.getLogger(__name__)

# Opening a device and starting its server takes milliseconds; a source that takes longer than this
# hangs.
EXPORT_TIMEOUT = 10.0
# The target also connects, starts a file system process and waits for its first answer.
IMPORT_TIMEOUT = 15.0

# dom0's user sees an agent's words about a failure, cut to a sentence.
_AGENT_TEXT_MAX = 200


class Transaction:
    """Makes attachments. Ends none but those that it could not finish."""

    def __init__(self, state: State, teardown: Teardown, muting: Muting) -> None:
        self._state = state
        self._teardown = teardown
        self._muting = muting

    def reserve(
        self,
        key: DeviceKey,
        device: Device,
        vm: str,
        vm_domid: int,
        options: Options,
        *,
        read_only_by_rule: bool,
    ) -> Lease:
        """Leases the device to the VM, in memory. Follow it with `establish` or `release`.

        `device` is the device of the decision: from now on, another one under its id breaks the
        lease. It is read-only if one of the three says so: the device, a rule, or `options`.

        Raises Taken; CallError if the source has gone or cannot lend it now, if one of the two VMs
        is being shut down, or if one has or lends as much as it may. Then nothing is leased.
        """
        state = self._state
        if (why := why_not_leased(state, key, device, vm)) is not None:
            raise why
        source = state.agents.get(key.backend)
        assert source is not None, key  # or it would not be leased
        device_class = class_of(key.device_class)
        lease = Lease(
            attachment=secrets.token_hex(8),
            key=key,
            vm=vm,
            options=device_class.granted(
                options,
                read_only=device.read_only or read_only_by_rule or options.read_only is True,
            ),
            frontend=options.frontend,
            port=state.leases.ports.next(),
            backend_domid=source.domid,
            vm_domid=vm_domid,
            state=PENDING,
            identity=device.identity,
            instance=device.instance,
            by_hypervisor=state.carrier(key.device_class).by_hypervisor,
        )
        state.leases.grant(lease, state.registry.family(key), device_class.shared)
        self._teardown.attempts[lease.attachment] = Attempt()
        return lease

    def release(self, lease: Lease) -> None:
        """Frees a reservation for which no step was taken."""
        self._state.leases.free(lease.attachment)
        self._teardown.attempts.pop(lease.attachment).done.set()

    def rebind(self, lease: Lease, vm_domid: int) -> Lease:
        """A reservation's VM has started: the same lease for its present domain."""
        return self._state.leases.update(lease.attachment, vm_domid=vm_domid)

    def attempt(self, lease: Lease) -> Attempt:
        """What is in progress for a lease that was just reserved."""
        return self._teardown.attempts[lease.attachment]

    def give_up(self, lease: Lease) -> None:
        """No further step will be taken: an end of it need not wait for one."""
        if (attempt := self._teardown.attempts.pop(lease.attachment, None)) is not None:
            attempt.done.set()

    async def undo(self, lease: Lease, reason: str, request: str | None, way: Way = UNDONE) -> None:
        """Undoes an attachment that was prepared or established, because a later step failed.
        CallError(busy) if the VM uses it already: then it has it."""
        self.give_up(lease)
        await self._teardown.end_or_leave(lease, reason, way=way, request=request)

    async def make_ready(self, lease: Lease, request: str) -> Lease:
        """Takes the steps before the VM is made, for a device that it is made with
        (Carrier.at_creation). Follow it with `rebind` and `prepare`.

        Raises CallError, as `establish` does.
        """
        attempt = self._teardown.attempts[lease.attachment]
        steps = partial(self._steps_before_creation, lease, attempt)
        return await self._take(lease, request, steps, RELEASED)

    async def prepare(self, lease: Lease, request: str) -> Lease:
        """Takes the steps that need no agent of the target: for a VM that does not run yet.

        Only where that works (Carrier.before_boot). Follow it with `establish`.
        Raises CallError, as `establish` does. What the VM was made with it keeps until it is
        destroyed: then the lease stands, for `undo` after that.
        """
        attempt = self._teardown.attempts[lease.attachment]
        steps = partial(self._first_steps, lease, attempt)
        stays = self._state.carrier(lease.key.device_class).at_creation
        return await self._take(lease, request, steps, RELEASED, stays=stays)

    async def establish(self, lease: Lease, request: str) -> Lease:
        """Takes the steps; returns the lease as it is when the device is in the target.

        Raises CallError, and then nothing is left of the attempt; or, if that is "busy" because the
        VM uses it already, it is attached.
        """
        attempt = self._teardown.attempts[lease.attachment]
        lease = await self._take(lease, request, partial(self._steps, lease, attempt), UNDONE)
        self.give_up(lease)
        return lease

    async def _take(
        self,
        lease: Lease,
        request: str,
        steps: Callable[[], Awaitable[Lease]],
        way: Way,
        *,
        stays: bool = False,
    ) -> Lease:
        """Takes steps, or undoes them in that `way`, unless the device `stays` with the VM."""
        attempt = self._teardown.attempts[lease.attachment]
        error: CallError
        try:
            if attempt.broken is None:
                attempt.way = way
                attempt.scope = trio.CancelScope()
                with attempt.scope:
                    lease = await steps()
            if attempt.broken is None:
                return lease
            error = _broken(lease, attempt.broken)
        except CallError as failed:
            error = failed
        except StoreError as failed:
            error = NotStoredError(failed)
        except Exception:
            logger.exception("attach of %s to %s", lease.key, lease.vm)
            error = failure("failed", "an internal error; the service's log has it")
        except BaseException:
            # The service ends, and the journal has it.
            self.give_up(lease)
            raise
        # From here on the teardown has it, and reacts to whatever comes up.
        self.give_up(lease)
        if stays:
            raise error
        try:
            await self._teardown.end(
                lease.attachment,
                f"the attach failed: {error.message}",
                way=attempt.way,
                request=request,
                sides=attempt.begun,
            )
        except CallError as refused:
            if (kept := self._state.leases.get(lease.attachment)) is not None:
                self._teardown.remind_soon(kept)
            hint = f"qvm-device {lease.key.device_class} detach {lease.vm} {lease.key}"
            message = f"{error.message}; and {refused.message}"
            raise failure("busy", message, hint=hint) from refused
        if (held := self._teardown.why_held(lease.attachment)) is not None:
            error = failure(error.code, f"{error.message}; and {held.message}")
        raise error

    async def _steps_before_creation(self, lease: Lease, attempt: Attempt) -> Lease:
        state = self._state
        await self._teardown.delete_overdue()
        await state.store.journal_put(lease)
        await state.reach("attach.leased")
        attempt.begun = frozenset({DETACH})
        try:
            await state.carrier(lease.key.device_class).prepare(lease)
        except DriverError as error:
            raise failure(error.code, str(error), hint=error.hint) from error
        await state.reach("attach.ready")
        return lease

    async def _first_steps(self, lease: Lease, attempt: Attempt) -> Lease:
        """The journal and the source; and the hypervisor, where it carries the device."""
        state, key = self._state, lease.key
        carrier = state.carrier(key.device_class)
        source = state.agents.at(key.backend, lease.backend_domid)
        if source is None:
            raise agent_missing(key.backend, "failed")
        # In the journal before it is attached, so that it can be found and taken away.
        lease = state.leases.update(lease.attachment, frontend=self._name(lease, carrier))
        await self._teardown.delete_overdue()
        await state.store.journal_put(lease)
        await state.reach("attach.leased")
        muted = state.is_muted(lease)
        if muted and not source.serves("export.mute"):
            raise cannot_mute(lease)
        attempt.begun |= {"export.stop"}
        progress.at("lend", key.backend, key)
        params = export_params(lease, muted=muted)
        untrusted_result = await _ask(source, "export.start", params, EXPORT_TIMEOUT)
        started = _parsed(source, "export.start", untrusted_result)
        if class_of(key.device_class).description.heard:
            source.heard.started(lease.attachment, muted=muted)
            await self._muting.apply(lease)  # if the VM was muted, or unmuted, meanwhile
        attempt.handover = started.handover
        await state.reach("attach.exported")
        if carrier.by_hypervisor:
            attempt.begun |= {DETACH}
            progress.at("attach", lease.vm, key)
            try:
                await carrier.attach(lease)
                # The toolstack opens it by its name, and the agent holds the device of the
                # decision: they must be the same.
                is_it = started.number is None or carrier.number(lease) == started.number
                name = carrier.given_name(lease)
            except DriverError as error:
                raise failure(error.code, str(error), hint=error.hint) from error
            if not is_it:
                attempt.way = GONE
                raise _broken(lease, f"{key.backend} serves another disk under that name")
            if name != lease.frontend:  # the kernel has chosen it: it must be found by it again
                lease = state.leases.update(lease.attachment, frontend=name)
                await state.store.journal_put(lease)
            attempt.prepared = True
            await state.reach("attach.carried")
        return lease

    def _name(self, lease: Lease, carrier: Carrier) -> str | None:
        leases = self._state.leases.of_vm(lease.vm)
        taken = {other.frontend for other in leases if other.attachment != lease.attachment}
        try:
            return carrier.name_in_target(
                lease.vm_domid, lease.frontend, {name for name in taken if name is not None}
            )
        except DriverError as error:
            raise failure(error.code, f"{lease.vm}: {error}", hint=error.hint) from error

    async def _steps(self, lease: Lease, attempt: Attempt) -> Lease:
        state, key = self._state, lease.key
        target = state.agents.at(lease.vm, lease.vm_domid)
        if target is None:
            # Before the source is asked, unless that was done before the VM ran.
            if state.agents.at(key.backend, lease.backend_domid) is None:
                raise agent_missing(key.backend, "failed")
            raise agent_missing(lease.vm, "failed")
        if not attempt.prepared:
            lease = await self._first_steps(lease, attempt)
        attempt.begun |= {"import.stop"}
        progress.at("take", lease.vm, key)
        untrusted_result = await _ask(
            target,
            "import.start",
            {**import_params(lease, state.registry.get(key)), "handover": attempt.handover},
            IMPORT_TIMEOUT,
        )
        started = _parsed(target, "import.start", untrusted_result)
        frontend: str | None = started.frontend
        attempt.note = started.note
        if (wrong := class_of(key.device_class).wrong_name(frontend)) is not None:
            raise _breach(target, "import.start", wrong)
        if state.is_by_hypervisor(lease):
            frontend = lease.frontend  # which the hypervisor knows, and the VM cannot change
        await state.reach("attach.imported")
        if attempt.broken is None:
            broken = broken_by(lease, state.registry.get(key))
            if broken is not None:
                attempt.broken, attempt.way = broken, GONE
        if attempt.broken is not None:
            raise _broken(lease, attempt.broken)
        options = class_of(key.device_class).in_effect(lease.options, frontend)
        made = attrs.evolve(lease, state=ATTACHED, frontend=frontend, options=options)
        # It may be cancelled while the disk works; `_take` checks again.
        await state.store.journal_put(made)
        lease = state.leases.update(
            lease.attachment, state=ATTACHED, frontend=frontend, options=options
        )
        await state.reach("attach.committed")
        state.registry.touch(key)
        return lease


def why_not_leased(
    state: State, key: DeviceKey, device: Device, vm: str
) -> CallError | Taken | None:
    """Why `reserve` would refuse to lease the device to the VM now; None if it would not."""
    if state.agents.get(key.backend) is None:
        return agent_missing(key.backend, "not_found")
    for name in (vm, key.backend):
        if name in state.closing:
            return shutting_down(name)
    if len(state.leases.of_vm(vm)) >= ATTACHMENTS_MAX:
        return QuotaError(vm, f"{vm} has {ATTACHMENTS_MAX} devices already")
    if len(state.leases.from_backend(key.backend)) >= ATTACHMENTS_MAX:
        return QuotaError(key.backend, f"{key.backend} lends {ATTACHMENTS_MAX} devices already")
    if (holder := state.holder(key, vm)) is not None:
        return Taken(holder)
    # A device that another VM has is also in use in its source: that it has it says more.
    return held_by_stray(state, key, vm) or not_to_be_had(key, device)


def _broken(lease: Lease, reason: str) -> CallError:
    return failure("failed", f"{lease.key} could not be attached to {lease.vm}: {reason}")


def _parsed(link: AgentLink, method: str, untrusted_result: dict[str, Any]) -> Any:
    """The result of a step; an agent whose answer is malformed is disconnected."""
    try:
        return parse_result(method, untrusted_result)
    except RemoteProtocolError as error:
        raise _breach(link, method, str(error)) from error


def _breach(link: AgentLink, method: str, why: str) -> CallError:
    link.disconnect(f"its answer to {request_to(method)} is malformed: {why}")
    return failure("failed", f"{link.name} gave a malformed answer")


async def _ask(
    link: AgentLink, method: str, params: dict[str, Any], timeout: float
) -> dict[str, Any]:
    """One step at one agent; its failure in words that name the VM. The words of an agent are a
    VM's: harmless, short and marked as its own."""
    try:
        return await link.call(method, params, timeout=timeout)
    except CallError as error:
        if error.code == "timeout":
            raise failure(
                "failed", f"{link.name} did not answer {request_to(method)} in time"
            ) from error
        if error.code == "unavailable":
            raise failure("failed", f"the agent of {link.name} went away") from error
        said = harmless_text(error.message, _AGENT_TEXT_MAX)
        code = "busy" if error.code == "busy" else "failed"
        raise failure(code, f"{link.name} could not do it: {said}") from error
