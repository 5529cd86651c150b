"""VM starts that a killed service did not finish.

A VM runs with all devices that are assigned to it, or not at all. A service that is killed between
starting the VM and attaching the last device would break that, so the store has a start while it is
in progress (see requests/vm_start.py). The next service finds it there: if every device is attached
after all, the start is over; otherwise it stops the VM. It does not finish the start, because the
requester has gone and the situation may have changed since; the VM can simply be started again.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import trio

from pedos_dom0.drivers.base import DOM0_NAME, RETRY_SECONDS, DriverError
from pedos_dom0.tables.leases import ATTACHED

if TYPE_CHECKING:
    from pedos_dom0.attachments.reconcile import Reconciler
    from pedos_dom0.attachments.vm_stop import VmStop
    from pedos_dom0.state import State
    from pedos_dom0.tables.store import StartRow

logger = logging.getLogger(__name__)

# Seconds for a VM that is starting or stopping to arrive. Local mode's machine continues that while
# the service is away, and needs 20 s at most (drivers/local.py). On Xen no VM is starting when the
# service begins: an xl that was making one has ended with the service that ran it.
TRANSIENT_TIMEOUT = 30.0


class Interrupted:
    """Settles the starts that the store has when the service begins."""

    def __init__(self, state: State, reconciler: Reconciler, stops: VmStop) -> None:
        self._state = state
        self._reconciler = reconciler
        self._stops = stops
        self._open: dict[str, trio.Event] = {}

    def load(self) -> list[StartRow]:
        """The starts to settle. Call it before any request is served."""
        rows = self._state.store.starts()
        self._open = {row.vm: trio.Event() for row in rows}
        return rows

    async def wait(self, vm: str) -> None:
        """Waits until no start of this VM is open any more."""
        if (done := self._open.get(vm)) is not None:
            await done.wait()

    async def settle(self, row: StartRow) -> None:
        """Ends one interrupted start, in either way."""
        try:
            done = await self._settled(row, again=False)
        finally:
            self._open.pop(row.vm).set()
        # A start that never got a number looks like a new start of the VM: the next service settles
        # it.
        while not done and row.domid is not None:
            await trio.sleep(RETRY_SECONDS)
            done = await self._settled(row, again=True)
        self._state.announce()  # the VM may go on running

    async def _settled(self, row: StartRow, *, again: bool) -> bool:
        """False if it has to be repeated."""
        try:
            return row not in self._state.store.starts() or await self._settle(row, again)
        except Exception:
            logger.exception("the interrupted start of %s could not be settled", row.vm)
            return True

    async def _settle(self, row: StartRow, again: bool) -> bool:
        state, vm = self._state, row.vm
        domid = await self._domid(vm)
        if domid is None or row.domid not in (None, domid):
            await state.store.start_delete(vm)  # it never ran, or that run of it is over
            return True
        await self._reconciler.wait_settled(vm)
        missing = self._missing(vm)
        done = True
        # If the row stays, this is repeated, if need be by the next service. The toolstack may have
        # been killed before it was done: then the VM's own disks may be missing.
        half_made = row.domid is None and self._stops.waits(vm)
        if not missing and not half_made:
            if await self._released(vm, domid):
                await state.store.start_delete(vm)
                outcome = "started"
                logger.info("%s has all its devices: its start was interrupted at its end", vm)
            else:
                done = False
                outcome = "failed: it was interrupted, and the VM could not be unpaused"
        elif await self._stops.stop_interrupted(
            vm,
            f"the start of {vm} was interrupted",
            has_run=row.may_run or not self._stops.waits(vm),
        ):
            await state.store.start_delete(vm)
            outcome = "failed: it was interrupted, and the VM was stopped"
            logger.warning("start of %s was interrupted; it was stopped", vm)
        else:
            done = False
            outcome = "failed: it was interrupted, and the VM could not be stopped"
            logger.critical("start of %s was interrupted, and it could not be stopped", vm)
        if done or not again:  # the log is for events, not for attempts
            state.audit.write(
                "start", request=None, caller=DOM0_NAME, vm=vm, outcome=outcome, missing=missing
            )
        return done

    async def _released(self, vm: str, domid: int) -> bool:
        """Unpauses a VM that was made, and perhaps waits for this; False if the result is
        unknown."""
        if not self._state.driver.starts_paused:
            return True
        try:
            await self._state.driver.resume(vm, domid)
        except DriverError as error:
            if error.code != "failed":
                logger.critical("%s", error)
                return False
            logger.info("%s need not be unpaused: %s", vm, error)
        return True

    async def _domid(self, vm: str) -> int | None:
        """The VM's domain, as soon as it is clear whether it has one."""
        with self._state.driver.events() as events, trio.move_on_after(TRANSIENT_TIMEOUT):
            while (domain := self._state.domain(vm)) is not None and domain.state == "Transient":
                await events.receive()
        domain = self._state.domain(vm)
        return None if domain is None or domain.state == "Halted" else domain.domid

    def _missing(self, vm: str) -> list[str]:
        """The assigned devices that the VM does not have, as far as is known: a VM whose agent does
        not report keeps what it may use, and has not started for these devices."""
        state = self._state
        leases = [] if self._stops.waits(vm) else state.leases.of_vm(vm)
        has = {lease.key for lease in leases if lease.state == ATTACHED}
        return [
            str(each)
            for each in state.store.assignments(vm)
            if each.mode == "required"
            if each.key not in has and has.isdisjoint(state.matches(each))
        ]
