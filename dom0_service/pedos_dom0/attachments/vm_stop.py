"""vm.shutdown, and the end of a VM whose start has failed: no VM loses what it uses.

What the VM lends is detached first, and a VM that uses it may refuse (ways.py). What the VM has
borrowed ends with it, so that unwritten data is written: the guest is asked to shut down, and only
then its disks are free. In local mode, where no guest closes the files of a VM's users, these are
detached first too, and that may be refused.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import trio
from pedos_protocol.errors import CallError
from pedos_protocol.fields import ATTACHMENTS_MAX, TEXT_MAX
from pedos_protocol.names import printable_text

from pedos_dom0 import errors
from pedos_dom0.access.callers import DOM0_USER
from pedos_dom0.access.recorded import recorded
from pedos_dom0.attachments.stops import check_target
from pedos_dom0.attachments.ways import GONE, RELEASED, SHUT_DOWN, UNDONE
from pedos_dom0.drivers.base import DOM0_NAME, DriverError
from pedos_dom0.tables.leases import ATTACHED
from pedos_dom0.tasks import progress

if TYPE_CHECKING:
    from pedos_dom0.attachments.teardown import Teardown
    from pedos_dom0.attachments.ways import Way
    from pedos_dom0.state import State
    from pedos_dom0.tables.leases import Lease

logger = logging.getLogger(__name__)


class VmStop:
    """Serves vm.shutdown, for dom0's user alone; and stops VMs whose start failed."""

    def __init__(self, state: State, teardown: Teardown) -> None:
        self._state = state
        self._teardown = teardown

    async def shutdown(self, vm: str, force: bool, request: str) -> None:
        """Ends a VM, and with it all attachments from and to it. CallError: it runs on."""
        with recorded(self._state, "shutdown", DOM0_USER, request, vm=vm) as ending:
            await self._shutdown(vm, force, request)
            ending.outcome, ending.changed = "halted", True

    async def _shutdown(self, vm: str, force: bool, request: str) -> None:
        if vm == DOM0_NAME:
            raise errors.failure("usage", "dom0 cannot be shut down from here")
        domain = self._state.known_domain(vm)
        if domain.state == "Halted":
            raise errors.failure("failed", f"{vm} is not running", hint="qvm-ls")
        reason = f"{vm} is shut down"
        with self._state.going_down(vm):
            if force:
                await self._driver_shutdown(vm, force=True)
            else:
                await self._end_vm(vm, reason, request)
            # What it had or lent has ended with it; this waits for that.
            await self._free_all(vm, reason, request)

    async def used(self) -> tuple[str, ...]:
        """The borrowed devices that VMs use, and that would make a shutdown of all of them fail: as
        many as fit into an answer, and how many more."""
        refusals = await self._refused(list(self._state.leases))
        said = sorted(f"{lease.key}: {refused.message}" for lease, refused in refusals)
        if len(said) > ATTACHMENTS_MAX:
            more = len(said) - ATTACHMENTS_MAX + 1
            said[ATTACHMENTS_MAX - 1 :] = [f"and {more} more that are in use"]
        return tuple(printable_text(each, TEXT_MAX) for each in said)

    async def _end_vm(self, vm: str, reason: str, request: str | None) -> None:
        """Asks a VM to shut down, when no VM uses what ends with it any more; CallError."""
        leases = self._state.leases
        before = leases.from_backend(vm)
        before += [each for each in leases.of_vm(vm) if not self._state.is_by_hypervisor(each)]
        # All are asked before one of them is taken: a refusal leaves everything as it was.
        refusals = await self._refused(before)
        if not refusals:
            refusals = await self._free(before, reason, request, SHUT_DOWN)
        if refusals:
            freed = [lease for lease in before if leases.get(lease.attachment) is None]
            raise errors.not_shut_down(vm, refusals, freed)
        await self._driver_shutdown(vm, force=False)

    async def _driver_shutdown(self, vm: str, *, force: bool) -> None:
        try:
            progress.at("stop", vm)
            await self._state.driver.shutdown(vm, force)
        except DriverError as error:
            raise errors.failure(error.code, str(error), hint=error.hint) from error

    async def stop_interrupted(self, vm: str, reason: str, *, has_run: bool) -> bool:
        """Stops a VM whose start was interrupted, and undoes its attachments; False if it still
        runs."""
        with self._state.going_down(vm):
            stopped = await self.stop(vm, reason, has_run=has_run) is None
            if stopped:
                await self._free_all(vm, reason, None)
        return stopped

    def waits(self, vm: str) -> bool:
        """Whether it may wait for the unpause; a VM whose agent has connected does not."""
        domain = self._state.domain(vm)
        if not self._state.driver.starts_paused or domain is None or domain.domid is None:
            return False
        return self._state.agents.at(vm, domain.domid) is None

    async def _refused(self, leases: list[Lease]) -> list[tuple[Lease, CallError]]:
        """Which of these VMs would refuse a release now, and why."""
        refusals: list[tuple[Lease, CallError]] = []

        async def ask(lease: Lease) -> None:
            try:
                await check_target(self._state, lease)
            except CallError as refused:
                refusals.append((lease, refused))

        async with trio.open_nursery() as nursery:
            for lease in leases:
                if lease.state == ATTACHED and self._state.may_run(lease.vm, lease.vm_domid):
                    nursery.start_soon(ask, lease)
        return refusals

    async def _free(
        self, leases: list[Lease], reason: str, request: str | None, way: Way
    ) -> list[tuple[Lease, CallError]]:
        """Ends attachments, all at once, and waits for that; returns the refused ones, and why."""
        refusals: list[tuple[Lease, CallError]] = []

        async def free(lease: Lease) -> None:
            attempt = self._teardown.attempts.get(lease.attachment)
            if attempt is not None:
                attempt.break_off(reason, way)
                await attempt.done.wait()
            try:
                await self._teardown.end_or_leave(lease, reason, way=way, request=request)
            except CallError as refused:
                refusals.append((lease, refused))

        async with trio.open_nursery() as nursery:
            for lease in leases:
                nursery.start_soon(free, lease)
        return refusals

    async def _free_all(self, vm: str, reason: str, request: str | None) -> None:
        """Ends everything that a VM which has ended had or lent."""
        leases = self._state.leases
        await self._free(leases.of_vm(vm), reason, request, RELEASED)
        await self._free(leases.from_backend(vm), reason, request, GONE)

    async def stop(self, vm: str, reason: str, *, has_run: bool) -> str | None:
        """Stops a VM whose start failed; returns why it keeps running, if it does. By force only if
        it cannot be asked, because it has not run yet, or if no VM uses what ends with it."""
        if has_run:
            try:
                await self._end_vm(vm, reason, None)
                return None
            except CallError as error:
                why = error.message
                logger.error("%s could not be stopped again: %s", vm, why)
            leases = self._state.leases
            if borrowed := await self._refused(leases.from_backend(vm)):
                return errors.not_shut_down(vm, borrowed, ()).message
            if await self._free(leases.of_vm(vm), reason, None, UNDONE):
                return why
        try:
            await self._driver_shutdown(vm, force=True)
        except CallError as error:
            logger.error("%s could not be stopped again: %s", vm, error.message)
            return error.message
        return None
