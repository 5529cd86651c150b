"""What dom0 remembers across restarts: assignments, what a person has detached and they must not
attach again, the journals of attachments and starts, and which VMs are muted.

The service is the only writer of its file (store_file.py), so memory has everything that the file
has, and reads are answered from memory: a read never waits for a disk. A write is awaited; a thread
does it, while the event loop serves other requests, in the order of the requests. When it returns
it is on the disk, and only then memory shows it.

A write either happens and returns, or raises. One that raises has not happened as far as this
service is concerned. It may be in the file all the same, but only if the store has stopped using
the file (`trouble`): then it makes no further writes, and the next service takes the file as it is.

A caller that is cancelled while it waits for its turn has written nothing; one that is cancelled
while the disk works gets the result all the same, and is cancelled at its next checkpoint, like a
caller whose disk is fast.
"""

from __future__ import annotations

import contextlib
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import attrs
import trio

from pedos_dom0.tables.assignment import ANY_PORT, Assignment, slot
from pedos_dom0.tables.database_file import StoreError
from pedos_dom0.tables.store_file import HeldBack, StartRow, StoreFile, Suspended
from pedos_dom0.tasks.disk import in_thread

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping
    from pathlib import Path

    from pedos_protocol.messages import Mode

    from pedos_dom0.tables.assignment import Slot
    from pedos_dom0.tables.leases import Lease
    from pedos_dom0.tables.registry import DeviceKey
    from pedos_dom0.tasks.disk import InThread


__all__ = [
    "Assignment",
    "HeldBack",
    "StartRow",
    "Store",
    "StoreError",
    "Suspended",
    "open_store",
]


@contextlib.asynccontextmanager
async def open_store(path: Path) -> AsyncIterator[Store]:
    """Opens the store in that file, which is made if it does not exist. StoreError: it cannot be
    used."""
    with contextlib.closing(await in_thread(partial(StoreFile, path))) as file:
        yield Store(file)


class Store:
    """All methods that are coroutines raise StoreError when the file fails."""

    def __init__(self, file: StoreFile, in_thread: InThread = in_thread) -> None:
        """Takes over `file`. StoreError: its contents are damaged."""
        self._file = file
        self._in_thread = in_thread
        # Held by the write in progress until memory shows it; first come, first served.
        self._turn = trio.Lock()
        self._of_vm: dict[str, dict[Slot, Assignment]] = {}
        self._of_slot: dict[Slot, dict[str, Assignment]] = {}
        self._from: dict[str, dict[tuple[str, Slot], Assignment]] = {}
        for assignment in file.assignments():
            self._show(assignment)
        self._journal = {lease.attachment: lease for lease in file.journal()}
        self._starts = {row.vm: row for row in file.starts()}
        self._held_back = {row.key: row for row in file.held_back()}
        self._suspended = {row.attachment: row for row in file.suspended()}
        self._muted = set(file.muted())

    def close(self) -> None:
        """Safe to call twice; no write may be in progress."""
        self._file.close()

    @property
    def is_broken(self) -> bool:
        """Whether the store has stopped writing."""
        return self._file.is_broken

    @property
    def trouble(self) -> str | None:
        """Why the store has stopped writing, or why the last write failed; None if neither."""
        return self._file.trouble

    # Assignments

    async def assign(
        self,
        vm: str,
        key: DeviceKey,
        options: Mapping[str, str],
        identity: str = "",
        *,
        mode: Mode = "required",
        uuid: str | None = None,
        check: Callable[[], object] | None = None,
    ) -> bool:
        """Adds an assignment, or gives an existing one new options, mode and the current identity,
        and makes it one to the VM that has the name now; False if it exists just so.

        `check` raises if it must not be made. It is called when every earlier write is in memory
        and no other one can come between; what it has seen still holds when the assignment is
        written.
        """
        assignment = Assignment(vm, key, dict(options), identity, uuid=uuid, mode=mode)
        async with self._turn:
            if self._of_vm.get(vm, {}).get(assignment.slot) == assignment:
                return False
            if check is not None:
                check()
            await self._in_thread(partial(self._file.assign, assignment))
            self._show(assignment)
            return True

    async def unassign(self, vm: str, key: DeviceKey, identity: str = "") -> bool:
        """Removes an assignment: that to a port, or without one to an identity. False if there was
        none."""
        its = slot(key, identity)
        async with self._turn:
            if its not in self._of_vm.get(vm, {}):
                return False
            await self._in_thread(partial(self._file.unassign, vm, its))
            _remove(self._of_vm, vm, its)
            _remove(self._of_slot, its, vm)
            _remove(self._from, key.backend, (vm, its))
            return True

    async def orphan(self, vm: str, is_gone: Callable[[], bool]) -> list[Assignment]:
        """Marks all assignments of a VM as those of a removed one. Returns those that were not
        marked before.

        `is_gone` is called when it is the write's turn, like assign's `check`: a VM that is back by
        then keeps its assignments.
        """
        async with self._turn:
            marked = [each for each in self.assignments(vm) if not each.orphaned]
            if not marked or not is_gone():
                return []
            await self._in_thread(partial(self._file.orphan, vm))
            for assignment in marked:
                self._show(attrs.evolve(assignment, orphaned=True))
            return marked

    async def tell_apart(self, vm: str, uuid: str) -> list[Assignment]:
        """Notes the UUID of the VM that has the name now: marks assignments to a VM with another
        UUID, as `orphan` does, and gives this UUID to assignments to a VM whose UUID was not known.
        Returns the marked ones."""
        async with self._turn:
            theirs = [each for each in self.assignments(vm) if not each.orphaned]
            if all(each.uuid == uuid for each in theirs):
                return []
            await self._in_thread(partial(self._file.tell_apart, vm, uuid))
            marked = [each for each in theirs if each.uuid not in (None, uuid)]
            for each in theirs:
                its = uuid if each.uuid is None else each.uuid
                self._show(attrs.evolve(each, uuid=its, orphaned=each in marked))
            return marked

    def assignments(self, vm: str | None = None) -> list[Assignment]:
        """All assignments (of a VM), in the order of VM and device."""
        if vm is not None:
            return sorted(self._of_vm.get(vm, {}).values(), key=_order)
        return sorted(self.all_assignments(), key=_order)

    def all_assignments(self) -> list[Assignment]:
        """All assignments in any order: with thousands of them, sorting takes long."""
        return [each for of in self._of_vm.values() for each in of.values()]

    def assignments_of(self, key: DeviceKey, identity: str = "") -> list[Assignment]:
        """The assignments to that port, and to that identity at any port, in the order of VMs."""
        found = [*self._of_slot.get((key, ""), {}).values()]
        if identity:
            any_port = attrs.evolve(key, device=ANY_PORT)
            found += self._of_slot.get((any_port, identity), {}).values()
        return sorted(found, key=_order)

    def assignments_from(self, backend: str) -> list[Assignment]:
        """The assignments of the devices of one VM, in any order."""
        return list(self._from.get(backend, {}).values())

    def sources(self) -> set[str]:
        """The VMs of whose devices some are assigned, or held back."""
        return {*self._from, *(key.backend for key in self._held_back)}

    def _show(self, assignment: Assignment) -> None:
        self._of_vm.setdefault(assignment.vm, {})[assignment.slot] = assignment
        self._of_slot.setdefault(assignment.slot, {})[assignment.vm] = assignment
        its = self._from.setdefault(assignment.key.backend, {})
        its[assignment.vm, assignment.slot] = assignment

    # What is held back

    async def hold_back(self, row: HeldBack) -> None:
        """Notes which VMs do not get a device again by themselves: by its `runs`, and by those that
        are noted of the same instance already."""
        async with self._turn:
            known = self._held_back.get(row.key)
            if known is not None and known.instance == row.instance:
                row = attrs.evolve(row, runs={**known.runs, **row.runs})
            if row != known:
                await self._in_thread(partial(self._file.hold_back, row))
                self._held_back[row.key] = row

    async def let_go(self, key: DeviceKey, vm: str | None = None) -> bool:
        """Nothing keeps the device from that VM any more, or from any; False if nothing did."""
        async with self._turn:
            row = self._held_back.get(key)
            if row is None or (vm is not None and vm not in row.runs):
                return False
            rest = {name: domid for name, domid in row.runs.items() if vm not in (None, name)}
            if rest:
                row = attrs.evolve(row, runs=rest)
                await self._in_thread(partial(self._file.hold_back, row))
                self._held_back[key] = row
            else:
                await self._in_thread(partial(self._file.let_go, key))
                del self._held_back[key]
            return True

    def held_back(self, key: DeviceKey) -> HeldBack | None:
        """From which VMs a device is kept, if it is."""
        return self._held_back.get(key)

    def all_held_back(self) -> list[HeldBack]:
        """Every device that is kept from some VMs."""
        return list(self._held_back.values())

    # Journal

    async def journal_put(self, lease: Lease) -> None:
        """Notes an attachment before its first step, or its later changes."""
        async with self._turn:
            await self._in_thread(partial(self._file.journal_put, lease))
            self._journal[lease.attachment] = lease

    async def journal_state(self, attachment: str, state: str) -> bool:
        """Notes the state of an attachment; False if the journal has none with that id."""
        async with self._turn:
            lease = self._journal.get(attachment)
            if lease is None:
                return False
            lease = attrs.evolve(lease, state=state)
            await self._in_thread(partial(self._file.journal_put, lease))
            self._journal[attachment] = lease
            return True

    async def journal_delete(self, attachment: str) -> bool:
        """Ends an attachment; False if the journal has none with that id."""
        async with self._turn:
            if attachment not in self._journal:
                return False
            await self._in_thread(partial(self._file.journal_delete, attachment))
            del self._journal[attachment]
            return True

    def journal(self) -> list[Lease]:
        """Every attachment, complete or in progress, in the order of ids."""
        return sorted(self._journal.values(), key=lambda lease: lease.attachment)

    # Starts of VMs

    async def start_put(self, vm: str, domid: int | None, *, may_run: bool = False) -> None:
        """The VM is being started: before the hypervisor is asked, when it has answered, and before
        the VM is unpaused (`may_run`)."""
        row = StartRow(vm, domid, may_run)
        async with self._turn:
            await self._in_thread(partial(self._file.start_put, row))
            self._starts[vm] = row

    async def start_delete(self, vm: str) -> bool:
        """The start is over, successful or not; False if there was none."""
        async with self._turn:
            if vm not in self._starts:
                return False
            await self._in_thread(partial(self._file.start_delete, vm))
            del self._starts[vm]
            return True

    def starts(self) -> list[StartRow]:
        """The starts that are in progress, in the order of VMs."""
        return sorted(self._starts.values(), key=lambda row: row.vm)

    # Attachments that ended for the machine's sleep

    async def suspended_put(self, row: Suspended) -> None:
        """The attachment is about to be ended, and is to be made again; or that failed."""
        async with self._turn:
            await self._in_thread(partial(self._file.suspended_put, row))
            self._suspended[row.attachment] = row

    async def suspended_delete(self, attachment: str) -> None:
        """It is made again, or is not to be."""
        async with self._turn:
            if attachment in self._suspended:
                await self._in_thread(partial(self._file.suspended_delete, attachment))
                del self._suspended[attachment]

    def suspended(self) -> list[Suspended]:
        """Those that are to be made again, in the order of devices."""
        return sorted(self._suspended.values(), key=lambda row: (str(row.key), row.attachment))

    # Muted VMs

    async def mute(
        self, device_class: str, vm: str, check: Callable[[], object] = lambda: None
    ) -> bool:
        """Notes that the VM is muted for a class; False if it was. `check` is as in `assign`."""
        async with self._turn:
            if (device_class, vm) in self._muted:
                return False
            check()
            await self._in_thread(partial(self._file.mute, device_class, vm))
            self._muted.add((device_class, vm))
            return True

    async def unmute(self, device_class: str, vm: str) -> bool:
        """Notes that it is not muted any more; False if it was not."""
        async with self._turn:
            if (device_class, vm) not in self._muted:
                return False
            await self._in_thread(partial(self._file.unmute, device_class, vm))
            self._muted.remove((device_class, vm))
            return True

    def is_muted(self, device_class: str, vm: str) -> bool:
        """Whether the VM hears nothing of the devices of that class."""
        return (device_class, vm) in self._muted

    def muted(self, device_class: str) -> list[str]:
        """The VMs that are muted for a class, whether they exist or not, in the order of names."""
        return sorted(vm for name, vm in self._muted if name == device_class)


def _order(assignment: Assignment) -> tuple[str, ...]:
    key, identity = assignment.slot
    return assignment.vm, key.device_class, key.backend, key.device, identity


K = TypeVar("K")
L = TypeVar("L")


def _remove(index: dict[K, dict[L, Assignment]], outer: K, inner: L) -> None:
    """Removes one, and with the last one its table, so that names of removed things do not pile
    up."""
    del index[outer][inner]
    if not index[outer]:
        del index[outer]
