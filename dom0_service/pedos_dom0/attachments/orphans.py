"""Assignments of removed VMs.

A new VM may get the name of a removed one. So the service marks an assignment when its VM is gone,
or has another UUID than the one that it was made for. From then on it is listed as one of a removed
VM, and a VM of that name does not start with the device until dom0's user decides: `attach
--persistent` again, or `detach`.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING

import trio

from pedos_dom0.tables.store import StoreError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from pedos_dom0.state import State
    from pedos_dom0.tables.store import Assignment

logger = logging.getLogger(__name__)

# An editor that rewrites a VM's configuration may remove the file for a moment, and when the
# service starts the folder may be about to be mounted.
GONE_SECONDS = 10.0


class Orphans:
    """Marks assignments when their VMs have been gone for GONE_SECONDS, or were replaced."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._missing: dict[str, trio.CancelScope] = {}

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        state = self._state
        async with trio.open_nursery() as nursery:
            with state.driver.events() as events:
                # Those that disappeared, or were replaced, while no service ran.
                assigned = {each.vm for each in state.store.assignments()}
                for vm in assigned | state.driver.domains().keys():
                    self._look(vm, nursery)
                task_status.started()
                async for domain in events:
                    self._look(domain.name, nursery)
            nursery.cancel_scope.cancel()  # the hypervisor is lost, and knows of no VM

    def _look(self, vm: str, nursery: trio.Nursery) -> None:
        domain = self._state.domain(vm)
        if domain is None:
            if vm not in self._missing:
                scope = self._missing[vm] = trio.CancelScope()
                nursery.start_soon(self._mark_later, vm, scope)
            return
        if vm in self._missing:
            self._missing.pop(vm).cancel()
        if domain.uuid is not None:
            # A mark that cannot be written now is repeated at the VM's next change, and by the next
            # service.
            write = partial(self._state.store.tell_apart, vm, domain.uuid)
            nursery.start_soon(self._mark, vm, write)

    async def _mark_later(self, vm: str, scope: trio.CancelScope) -> None:
        with scope:
            store, gone = self._state.store, partial(self._state.is_gone, vm)
            is_left = True
            while is_left:  # the look, or the write, may succeed later
                await trio.sleep(GONE_SECONDS)
                if gone():
                    await self._mark(vm, partial(store.orphan, vm, gone))
                unmarked = any(not each.orphaned for each in store.assignments(vm))
                is_left = unmarked and not store.is_broken  # which stays
        if self._missing.get(vm) is scope:
            del self._missing[vm]

    async def _mark(self, vm: str, write: Callable[[], Awaitable[list[Assignment]]]) -> None:
        state = self._state
        try:
            marked = await write()
        except StoreError as error:
            logger.critical(
                "it cannot be noted whether what is assigned to %s is its own still: %s", vm, error
            )
            return
        if marked:
            logger.warning(
                "the VM named %s was removed, and %d devices are assigned to it", vm, len(marked)
            )
            state.audit.write("orphaned", vm=vm, devices=[str(each) for each in marked])
        for assignment in marked:
            state.touch(assignment)
