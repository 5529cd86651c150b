"""vm.start: a VM starts with all devices that are assigned to it, or not at all.

Before the VM is started, every assigned device is present, allowed and leased (start_devices.py),
so that no other VM can take it while this one boots. The store has a start in progress, so that a
service which is killed meanwhile leaves no VM without its devices (see attachments/interrupted.py).
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import trio
from pedos_protocol.errors import CallError
from pedos_protocol.messages import VmStarted

from pedos_dom0 import errors
from pedos_dom0.access.callers import DOM0_USER
from pedos_dom0.access.recorded import recorded
from pedos_dom0.attachments.ways import RELEASED, UNDONE
from pedos_dom0.drivers.base import DriverError
from pedos_dom0.requests.start_devices import StartDevices
from pedos_dom0.tables.store import StoreError
from pedos_dom0.tasks import progress

if TYPE_CHECKING:
    from pedos_dom0.access.authorizer import Authorizer
    from pedos_dom0.access.callers import Caller
    from pedos_dom0.attachments.reconcile import Reconciler
    from pedos_dom0.attachments.transaction import Transaction
    from pedos_dom0.attachments.vm_stop import VmStop
    from pedos_dom0.attachments.ways import Way
    from pedos_dom0.state import State
    from pedos_dom0.tables.leases import Lease

logger = logging.getLogger(__name__)


class VmStart:
    """Serves vm.start; dom0's user alone may ask for it."""

    def __init__(
        self,
        state: State,
        authorizer: Authorizer,
        transaction: Transaction,
        reconciler: Reconciler,
        stops: VmStop,
    ) -> None:
        self._state = state
        self._transaction = transaction
        self._devices = StartDevices(state, authorizer, transaction, reconciler)
        self._stops = stops

    async def __call__(
        self, vm: str, request: str, asker_gone: trio.Event, caller: Caller = DOM0_USER
    ) -> VmStarted:
        """Starts a VM; returns when every assigned device is in it. Raises CallError. `caller` is
        who has it started, in the audit log."""
        with recorded(self._state, "start", caller, request, vm=vm) as ending:
            result = await self._start(vm, request, asker_gone)
            ending.outcome, ending.changed = "started", True
        return result

    async def _start(self, vm: str, request: str, asker_gone: trio.Event) -> VmStarted:
        domain = self._state.known_domain(vm)
        if domain.domid is not None:
            raise errors.failure("failed", f"{vm} is already running", hint="qvm-ls")
        if vm in self._state.facts.starting or domain.state != "Halted":
            raise errors.failure("failed", f"{vm} is being started or shut down already")
        with self._state.starting(vm):
            try:
                leases = await self._devices.reserve(vm, request, asker_gone)
            except CallError:
                await self._forget_start(vm)
                raise
            return await self._start_with(vm, leases, request)

    async def _start_with(self, vm: str, leases: list[Lease], request: str) -> VmStarted:
        """Starts the VM and attaches; undoes everything if a step fails."""
        state = self._state
        waiting = list(leases)
        begun: list[Lease] = []
        attached: list[Lease] = []
        domid: int | None = None
        try:
            await state.reach("start.reserved")
            made_with = await self._make_ready((waiting, begun), request)
            progress.at("make", vm)
            domid = await state.driver.start(vm, made_with)
            await state.store.start_put(vm, domid)
            await state.reach("start.started")
            await self._bring_up(vm, domid, (waiting, begun, attached), request)
            await state.reach("start.attached")
            # Before success is reported: a row that stayed would later stop the VM.
            await state.store.start_delete(vm)
            return VmStarted(domid=domid, attached=tuple(str(lease.key) for lease in attached))
        except Exception as raised:
            error: CallError | DriverError
            may_run = False
            if isinstance(raised, CallError | DriverError):
                error = raised
                may_run = error.code in ("timeout", "unavailable")
            elif isinstance(raised, StoreError):
                error = errors.failure("failed", str(raised))
            else:
                logger.exception("start of %s", vm)
                may_run = True
                error = errors.failure("failed", "an internal error; the service's log has it")
            hint = error.hint if isinstance(error, DriverError) else error.data.get("hint")
            for lease in waiting:
                self._transaction.release(lease)
            # A hypervisor that did not answer in time, or is lost, may have started it, or may
            # still do so; and after an unexpected error, that is not known either.
            if domid is None and not may_run:
                await self._undo_all(begun, f"{vm} was not made", request, RELEASED)
                await self._forget_start(vm)
                code = error.code
                raise errors.failure(code, f"{vm} was not started: {error}", hint=hint) from error
            leases = [*begun, *attached]
            what = await self._take_back(vm, leases, f"the start of {vm} failed", request)
            raise errors.failure("failed", f"{vm} {what}: {error}", hint=hint) from error

    async def _make_ready(
        self, stages: tuple[list[Lease], list[Lease]], request: str
    ) -> list[Lease]:
        """Moves leases that the VM is made with from waiting to begun; returns them."""
        state, (waiting, begun) = self._state, stages
        for lease in [e for e in waiting if state.carrier(e.key.device_class).at_creation]:
            waiting.remove(lease)
            begun.append(lease)
            begun[-1] = await self._transaction.make_ready(lease, request)
        if begun:
            await state.reach("start.ready")
        return list(begun)

    async def _bring_up(
        self,
        vm: str,
        domid: int,
        stages: tuple[list[Lease], list[Lease], list[Lease]],
        request: str,
    ) -> None:
        """Moves leases from one stage to the next: waiting, begun, attached. A lease whose step
        fails stays where it is, because its VM may have kept it."""
        state, (waiting, begun, attached) = self._state, stages
        if state.driver.starts_paused:
            # Everything possible is attached before its first instruction.
            for number, lease in enumerate(begun):  # what it was made with
                begun[number] = self._transaction.rebind(lease, domid)
            for number, lease in enumerate(begun):
                begun[number] = await self._transaction.prepare(lease, request)
            early = [each for each in waiting if state.carrier(each.key.device_class).before_boot]
            for lease in early:
                waiting.remove(lease)
                begun.append(self._transaction.rebind(lease, domid))
                begun[-1] = await self._transaction.prepare(begun[-1], request)
            await state.reach("start.carried")
            # Before that: a VM that may run is not destroyed like one that has not begun to.
            await state.store.start_put(vm, domid, may_run=True)
            await state.driver.resume(vm, domid)
        if (waiting or begun) and not await self._booted(vm, domid):
            raise errors.failure("failed", "its agent did not connect in time")
        await state.reach("start.agent")
        while begun or waiting:
            if not begun:
                begun.append(self._transaction.rebind(waiting.pop(0), domid))
            attached.append(await self._transaction.establish(begun[0], request))
            begun.pop(0)

    async def _take_back(self, vm: str, leases: list[Lease], reason: str, request: str) -> str:
        """Stops a VM whose start has failed, and then undoes its attachments; reports the
        result."""
        for lease in leases:
            self._transaction.give_up(lease)
        with self._state.going_down(vm):
            runs_on = await self._stops.stop(vm, reason, has_run=self._has_run(vm))
            way = UNDONE if runs_on else RELEASED
            kept = await self._undo_all(leases, reason, request, way)
        if runs_on is None:
            await self._forget_start(vm)
            return "was stopped again"
        what = f"with what it uses ({'; '.join(kept)})" if kept else "without its devices"
        return f"runs {what}, as it could not be stopped again ({runs_on})"

    async def _undo_all(
        self, leases: list[Lease], reason: str, request: str, way: Way
    ) -> list[str]:
        """Undoes attachments, all at once; returns what the VM keeps, and why."""
        kept: list[str] = []

        async def undo(lease: Lease) -> None:
            try:
                await self._transaction.undo(lease, reason, request, way)
            except CallError as refused:
                kept.append(f"{lease.key}: {refused.message}")

        async with trio.open_nursery() as nursery:
            for lease in leases:
                nursery.start_soon(undo, lease)
        return kept

    def _has_run(self, vm: str) -> bool:
        """Whether a VM whose start is in the store has been unpaused, or may have been."""
        rows = self._state.store.starts()
        return not self._state.driver.starts_paused or any(
            row.vm == vm and row.may_run for row in rows
        )

    async def _forget_start(self, vm: str) -> None:
        """The VM does not run, so a row that cannot be removed does no harm."""
        try:
            await self._state.store.start_delete(vm)
        except StoreError as error:
            logger.critical("the end of the start of %s is not in the store: %s", vm, error)

    async def _booted(self, vm: str, domid: int) -> bool:
        """Waits for the agent of the new domain; False if the domain ends or takes too long."""
        state, seen = self._state, False

        def alive() -> bool:
            # The driver's event may come after its answer to `start`.
            nonlocal seen
            running = state.runs(vm, domid)
            seen = seen or running
            return running or not seen

        progress.at("boot", vm)
        await state.agents.wait_for(vm, timeout=state.driver.boot_timeout, worthwhile=alive)
        return state.agents.at(vm, domid) is not None
