"""vm.start and vm.shutdown: a VM starts with all that is assigned to it, or not at all.

Before anything is started, every assigned device is there, allowed and leased, so that nobody can
take it while the VM boots. A start in progress stands in the store, so that a service which is
killed meanwhile leaves no VM without its devices (see interrupted.py). A shutdown goes the other
way round: first the devices are detached, so that what the VM has not written yet is written, and
then the VM is stopped.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import attrs
import trio
from pedos_protocol.errors import CallError
from pedos_protocol.messages import VmStarted

from pedos_dom0 import errors
from pedos_dom0.access import DOM0_USER, Consents, MustAsk
from pedos_dom0.agents import AGENT_GRACE
from pedos_dom0.drivers.base import DOM0_NAME, DriverError
from pedos_dom0.leases import Taken
from pedos_dom0.options import parse_options
from pedos_dom0.registry import lasting_identity
from pedos_dom0.store import StoreError
from pedos_dom0.transaction import NO_DOMAIN, is_read_only

if TYPE_CHECKING:
    from pedos_dom0.access import Access, Grant
    from pedos_dom0.leases import Lease
    from pedos_dom0.reconcile import Reconciler
    from pedos_dom0.registry import DeviceKey
    from pedos_dom0.state import State
    from pedos_dom0.store import Assignment
    from pedos_dom0.takedown import TakeDown
    from pedos_dom0.transaction import Transaction

logger = logging.getLogger(__name__)

# From the start of a domain to its agent's first report: a VM boots in that time.
BOOT_TIMEOUT = 30.0


class _Problem(Exception):  # noqa: N818 - collected, so that all are told at once
    """Why an assigned device cannot be had, and the command that helps."""

    def __init__(self, text: str, hint: str | None = None) -> None:
        super().__init__(text)
        self.hint = hint


@attrs.define
class _Asked:
    """What dom0's user said before a start, by device: yes, or why it is a no."""

    consents: dict[DeviceKey, Consents] = attrs.field(factory=dict)
    refusals: dict[DeviceKey, CallError] = attrs.field(factory=dict)


class VmLife:
    """Serves vm.start and vm.shutdown; dom0's user alone may ask for them."""

    def __init__(
        self,
        state: State,
        access: Access,
        transaction: Transaction,
        takedown: TakeDown,
        reconciler: Reconciler,
    ) -> None:
        self._state = state
        self._access = access
        self._transaction = transaction
        self._takedown = takedown
        self._reconciler = reconciler

    async def start(self, vm: str, request: str, asker_gone: trio.Event) -> VmStarted:
        """Starts a VM; returns when every assigned device is in it. Raises CallError."""
        began = trio.current_time()
        outcome = "failed"
        try:
            result = await self._start(vm, request, asker_gone)
            outcome = "started"
            return result
        except CallError as error:
            outcome = f"{error.code}: {error.message}"
            raise
        finally:
            self._write("start", vm, request, outcome, began)

    async def shutdown(self, vm: str, force: bool, request: str) -> None:
        """Detaches what the VM has and lends, then stops it. Raises CallError."""
        began = trio.current_time()
        outcome = "failed"
        try:
            await self._shutdown(vm, force, request)
            outcome = "halted"
        except CallError as error:
            outcome = f"{error.code}: {error.message}"
            raise
        finally:
            self._write("shutdown", vm, request, outcome, began)

    def _write(self, event: str, vm: str, request: str, outcome: str, began: float) -> None:
        self._state.audit.write(
            event,
            request=request,
            caller=DOM0_NAME,
            vm=vm,
            outcome=outcome,
            seconds=round(trio.current_time() - began, 3),
        )

    # Start

    async def _start(self, vm: str, request: str, asker_gone: trio.Event) -> VmStarted:
        domain = self._state.known_domain(vm)
        if domain.domid is not None:
            raise errors.failure("failed", f"{vm} is already running", hint="qvm-ls")
        starting = self._state.facts.starting
        if vm in starting or domain.state != "Halted":
            raise errors.failure("failed", f"{vm} is being started or shut down already")
        starting.add(vm)
        try:
            assignments = self._state.store.assignments(vm)
            await self._wait_for_sources(assignments)
            await self._reconciler.wait_settled(vm, *(a.key.backend for a in assignments))
            asked = await self._ask_for(vm, assignments, request, asker_gone)
            leases = self._reserve_all(vm, assignments, request, asked)
            return await self._start_with(vm, leases, request)
        finally:
            starting.discard(vm)

    async def _wait_for_sources(self, assignments: list[Assignment]) -> None:
        """Sources that are running but whose agents were restarted a moment ago."""
        with trio.move_on_after(AGENT_GRACE):
            for name in sorted({a.key.backend for a in assignments}):
                domain = self._state.domain(name)
                if domain is not None and domain.domid is not None:
                    await self._state.agents.wait_for(name, timeout=AGENT_GRACE)

    async def _ask_for(
        self, vm: str, assignments: list[Assignment], request: str, asker_gone: trio.Event
    ) -> _Asked:
        """Asks dom0's user about the assigned devices where the policy says so, all at once."""
        asked = _Asked()

        async def ask(key: DeviceKey) -> None:
            consents = asked.consents[key] = Consents()
            try:
                await self._access.allow(
                    DOM0_USER, "attach", key, vm, request, asker_gone, consents
                )
            except CallError as error:
                asked.refusals[key] = error

        async with trio.open_nursery() as nursery:
            for assignment in assignments:
                key = assignment.key
                decision = self._access.decide(DOM0_NAME, "attach", key, vm)
                if decision.verdict == "ask" and self._state.registry.get(key) is not None:
                    nursery.start_soon(ask, key)
        return asked

    def _reserve_all(
        self,
        vm: str,
        assignments: list[Assignment],
        request: str,
        asked: _Asked,
    ) -> list[Lease]:
        """A lease of every assigned device, or CallError that says what is wrong, and none."""
        leases: list[Lease] = []
        problems: list[_Problem] = []
        for assignment in assignments:
            try:
                leases.append(self._reserve(vm, assignment, request, asked))
            except _Problem as problem:
                problems.append(problem)
        if problems:
            for lease in leases:
                self._transaction.release(lease)
            hint = next((problem.hint for problem in problems if problem.hint), None)
            what = "; ".join(map(str, problems))
            raise errors.failure("failed", f"{vm} was not started: {what}", hint=hint)
        return leases

    def _grant(self, vm: str, key: DeviceKey, its: str, request: str, asked: _Asked) -> Grant:
        """What policy, and dom0's user, grant the VM that starts; or raises _Problem."""
        explain = f"qvm-device {key.device_class} explain {vm} {key}"
        try:
            if (refusal := asked.refusals.get(key)) is not None:
                raise refusal
            grant = self._access.require(
                DOM0_USER, "attach", key, vm, request, asked.consents.get(key)
            )
        except MustAsk as needed:  # since dom0's user was asked about the others
            raise _Problem(
                f"{its} must be asked about ({needed.decision.reason})", explain
            ) from None
        except CallError as error:
            why = error.data.get("reason") or error.data.get("rule") or "no rule matched"
            raise _Problem(f"{its} is denied by policy ({why})", explain) from error
        if grant.vm != vm:
            raise _Problem(f"{its} is sent to {grant.vm} by policy", explain)
        return grant

    def _reserve(
        self,
        vm: str,
        assignment: Assignment,
        request: str,
        asked: _Asked,
    ) -> Lease:
        """A lease of one assigned device for a VM that has no domain yet; or raises _Problem."""
        state, key = self._state, assignment.key
        its = f"its assigned device {key}"
        detach = f"qvm-device {key.device_class} detach {vm} {key}"
        device = state.registry.get(key)
        if device is None:
            source = state.domain(key.backend)
            if source is not None and source.domid is None:
                raise _Problem(
                    f"{its} is missing, because {key.backend} is halted",
                    f"qvm-start {key.backend}, or {detach}",
                )
            raise _Problem(f"{its} is missing", f"plug it in, or {detach}")
        if (lack := state.unsupported.get(key.device_class)) is not None:
            raise _Problem(f"{its} cannot be attached ({lack})", detach)
        found = lasting_identity(device)
        if assignment.identity not in ("", found):
            raise _Problem(
                f"{its} is another one than was assigned ({found or 'without an identity'} instead "
                f"of {assignment.identity})",
                f"qvm-device {key.device_class} attach --persistent {vm} {key} to assign this one, "
                f"or {detach}",
            )
        grant = self._grant(vm, key, its, request, asked)
        try:
            options = parse_options(key.device_class, assignment.options)
            lease = self._transaction.reserve(
                key,
                vm,
                NO_DOMAIN,
                options=options.granted(is_read_only(device, grant.read_only, options.read_only)),
                frontend=options.frontend,
            )
        except Taken as taken:
            holder = taken.holder
            raise _Problem(
                f"{its} is attached to {holder.vm}",
                f"qvm-device {holder.key.device_class} detach {holder.vm} {holder.key}",
            ) from taken
        except CallError as error:
            raise _Problem(f"{its} cannot be had ({error.message})") from error
        if device.busy is not None:
            self._transaction.release(lease)
            raise _Problem(f"{its} is in use in {key.backend} ({device.busy})")
        return lease

    async def _start_with(self, vm: str, leases: list[Lease], request: str) -> VmStarted:
        """Starts the VM and attaches; takes everything back if anything fails."""
        state = self._state
        waiting = list(leases)
        prepared: list[Lease] = []
        attached: list[Lease] = []
        domid: int | None = None
        try:
            # A VM to which nothing is assigned needs nothing that could be missing; but one that
            # waits to be let go must not wait for ever.
            if leases or state.plane is not None:
                state.store.start_put(vm, None)
            await state.reach("start.reserved")
            domid = await state.driver.start(vm)
            if leases or state.plane is not None:
                state.store.start_put(vm, domid)
            await state.reach("start.started")
            await self._bring_up(vm, domid, (waiting, prepared, attached), request)
            await state.reach("start.attached")
            # Before anybody is told that it succeeded: a row that stayed would later stop the VM.
            state.store.start_delete(vm)
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
            # A hypervisor that did not answer in time, or is lost, may have started it, or still do
            # so; and after an error that nobody has foreseen, it is not known either.
            if domid is None and not may_run:
                self._forget_start(vm)
                code = error.code
                raise errors.failure(code, f"{vm} was not started: {error}", hint=hint) from error
            await self._undo_all([*prepared, *attached], f"the start of {vm} failed", request)
            if await self._stop_again(vm):
                self._forget_start(vm)
                what = "was stopped again"
            else:
                what = "runs without its devices, as it could not be stopped again"
            raise errors.failure("failed", f"{vm} {what}: {error}", hint=hint) from error

    async def _bring_up(
        self,
        vm: str,
        domid: int,
        stages: tuple[list[Lease], list[Lease], list[Lease]],
        request: str,
    ) -> None:
        """Moves leases from one stage to the next: those that wait, are prepared, are attached."""
        state, (waiting, prepared, attached) = self._state, stages
        if state.plane is not None:
            # All that is assigned is in it before it runs its first instruction.
            while waiting:
                lease = self._transaction.rebind(waiting.pop(0), domid)
                prepared.append(await self._transaction.prepare(lease, request))
            await state.reach("start.plugged")
            await state.plane.resume(vm, domid)
        if (waiting or prepared) and not await self._booted(vm, domid):
            raise errors.failure("failed", "its agent did not connect in time")
        await state.reach("start.agent")
        while prepared:
            attached.append(await self._transaction.establish(prepared.pop(0), request))
        while waiting:
            lease = self._transaction.rebind(waiting.pop(0), domid)
            attached.append(await self._transaction.establish(lease, request))

    async def _undo_all(self, attached: list[Lease], reason: str, request: str) -> None:
        """Takes attachments back, all at once: those that hang are waited for together."""
        async with trio.open_nursery() as nursery:
            for lease in attached:
                nursery.start_soon(self._transaction.undo, lease, reason, request)

    def _forget_start(self, vm: str) -> None:
        """The VM does not run, so a row that cannot be removed does no harm."""
        try:
            self._state.store.start_delete(vm)
        except StoreError as error:
            logger.critical("the end of the start of %s is not in the store: %s", vm, error)

    async def _booted(self, vm: str, domid: int) -> bool:
        """Waits for the agent of the new domain; False if it ends or takes too long."""
        state, seen = self._state, False

        def alive() -> bool:
            # The driver's event may come after its answer to `start`.
            nonlocal seen
            running = state.runs(vm, domid)
            seen = seen or running
            return running or not seen

        timeout = BOOT_TIMEOUT if state.plane is None else state.plane.boot_timeout
        await state.agents.wait_for(vm, timeout=timeout, worthwhile=alive)
        return state.agents.at(vm, domid) is not None

    async def _stop_again(self, vm: str, *, waits: bool = False) -> bool:
        """Stops a VM whose start did not come to a good end; by force if it must be, or if it
        waits to be let go and so would hear nothing."""
        for force in (True,) if waits else (False, True):
            try:
                await self._state.driver.shutdown(vm, force)
                return True
            except DriverError as error:
                logger.error("%s could not be stopped again: %s", vm, error)
        return False

    # Shutdown

    async def _shutdown(self, vm: str, force: bool, request: str) -> None:
        if vm == DOM0_NAME:
            raise errors.failure("usage", "dom0 cannot be shut down from here")
        domain = self._state.known_domain(vm)
        if domain.state == "Halted":
            raise errors.failure("failed", f"{vm} is not running", hint="qvm-ls")
        self._state.closing.add(vm)
        reason = f"{vm} is shut down"
        try:
            if not force:
                await self._free_all(vm, reason, request)
            try:
                await self._state.driver.shutdown(vm, force)
            except DriverError as error:
                raise errors.failure(error.code, str(error), hint=error.hint) from error
            # Those that a forced shutdown left to its agent's end are waited for.
            await self._free_all(vm, reason, request)
        finally:
            self._state.closing.discard(vm)

    async def stop(self, vm: str, reason: str) -> bool:
        """Detaches everything from a VM whose start was interrupted, and stops it, by force if it
        must be; False if it runs still."""
        self._state.closing.add(vm)
        try:
            await self._free_all(vm, reason, None)
            stopped = await self._stop_again(vm, waits=self.waits(vm))
            await self._free_all(vm, reason, None)
        finally:
            self._state.closing.discard(vm)
        return stopped

    def waits(self, vm: str) -> bool:
        """Whether it may wait to be let go; one whose agent has connected does not."""
        domain = self._state.domain(vm)
        if self._state.plane is None or domain is None or domain.domid is None:
            return False
        return self._state.agents.at(vm, domain.domid) is None

    async def _free_all(self, vm: str, reason: str, request: str | None) -> None:
        """Ends every attachment to and from the VM, all at once, and waits for that."""

        async def free(lease: Lease) -> None:
            attempt = self._takedown.attempts.get(lease.attachment)
            if attempt is not None:
                attempt.break_off(reason)
                await attempt.done.wait()
            await self._takedown.end(lease.attachment, reason, request=request)

        state = self._state
        async with trio.open_nursery() as nursery:
            for lease in (*state.leases.of_vm(vm), *state.leases.from_backend(vm)):
                nursery.start_soon(free, lease)
