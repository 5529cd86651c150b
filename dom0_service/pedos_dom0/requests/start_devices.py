"""The devices of a VM's start: all assigned ones are asked about, allowed and leased, or none.

The assignments may change while dom0's user thinks. So they are read again until there is nothing
new to ask about, and leased in the same step. Once the store has the start too, nothing more is
assigned to the VM before it runs (attach.py), and a leased device cannot be detached.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import trio
from pedos_protocol.errors import CallError

from pedos_dom0 import errors
from pedos_dom0.access.authorizer import Consents, MustAsk
from pedos_dom0.access.callers import DOM0_USER
from pedos_dom0.access.subjects import DeviceSubject
from pedos_dom0.attachments.fresh import unknown, wait_until_known
from pedos_dom0.device_classes.registered import class_of
from pedos_dom0.drivers.base import DOM0_NAME, NO_DOMAIN
from pedos_dom0.requests.assignable import removal
from pedos_dom0.tables.agents import AGENT_GRACE
from pedos_dom0.tables.assignment import ANY_PORT, named
from pedos_dom0.tables.leases import Taken
from pedos_dom0.tables.store import StoreError
from pedos_dom0.tasks import progress

if TYPE_CHECKING:
    from pedos_dom0.access.authorizer import Authorizer, Grant
    from pedos_dom0.attachments.reconcile import Reconciler
    from pedos_dom0.attachments.transaction import Transaction
    from pedos_dom0.state import State
    from pedos_dom0.tables.assignment import Slot
    from pedos_dom0.tables.leases import Lease
    from pedos_dom0.tables.registry import DeviceKey
    from pedos_dom0.tables.store import Assignment


class _Problem(Exception):  # noqa: N818 - collected, so that all are told at once
    """Why an assigned device cannot be had, and the command that helps."""

    def __init__(self, text: str, hint: str | None = None) -> None:
        super().__init__(text)
        self.hint = hint


@attrs.define
class _Asked:
    """What dom0's user said before a start, by device: yes, or why it is denied."""

    consents: dict[DeviceKey, Consents] = attrs.field(factory=dict)
    refusals: dict[DeviceKey, CallError] = attrs.field(factory=dict)


class StartDevices:
    """Reserves what is assigned to a VM that is to start."""

    def __init__(
        self, state: State, authorizer: Authorizer, transaction: Transaction, reconciler: Reconciler
    ) -> None:
        self._state = state
        self._authorizer = authorizer
        self._transaction = transaction
        self._reconciler = reconciler

    async def reserve(self, vm: str, request: str, asker_gone: trio.Event) -> list[Lease]:
        """Leases every device that is assigned to the VM, and puts its start into the store.
        CallError has the reason of a failure; then nothing is leased."""
        asked = _Asked()
        known: set[Slot] = set()
        await self._reconciler.wait_settled(vm)
        while True:
            # From here to the leases nothing is awaited, unless there is something new.
            assignments = self._required(vm)
            new = [each for each in assignments if each.slot not in known]
            if not new:
                leases = self._reserve_all(vm, assignments, request, asked)
                if await self._note(vm, assignments, leases):
                    return leases
                continue
            known |= {each.slot for each in new}
            # What cannot be attached in any case is neither waited for nor asked about.
            possible = [each for each in new if self._lack(each) is None]
            await self._wait_for_sources(possible)
            await self._reconciler.wait_settled(*(each.key.backend for each in possible))
            await wait_until_known(self._state, self._ports(possible))
            # One that is to an identity has its port now, if it has one.
            possible = [each for each in self._required(vm) if self._lack(each) is None]
            await self._reconciler.wait_ended([each.key for each in possible], vm)
            possible = [each for each in possible if each.key not in asked.consents]
            await self._ask_for(vm, possible, request, asker_gone, asked)

    def _required(self, vm: str) -> list[Assignment]:
        """What the VM does not start without. One that is to an identity is shown as one at the
        port where that is, if it is at one alone. Of two for one device, the more specific
        counts."""
        found: dict[Slot, Assignment] = {}
        for each in self._state.store.assignments(vm):
            if each.mode != "required":
                continue
            at = each
            matches = self._state.matches(each)
            if each.key.device == ANY_PORT and len(matches) == 1:
                at = attrs.evolve(each, key=matches[0])
            before = found.get(at.slot)
            if before is None or each.key.device != ANY_PORT:
                found[at.slot] = at
        return list(found.values())

    def _ports(self, assignments: list[Assignment]) -> list[DeviceKey]:
        """Those that have to be identified: of one to an identity, all of its class and source."""
        keys = [each.key for each in assignments]
        for each in assignments:
            if each.key.device == ANY_PORT:
                devices = self._state.registry.devices_of(each.key.backend)
                keys += [key for _, key in devices.in_order(each.key.device_class)]
        return keys

    def _lack(self, assignment: Assignment) -> str | None:
        return self._state.carrier(assignment.key.device_class).lack

    async def _note(self, vm: str, assignments: list[Assignment], leases: list[Lease]) -> bool:
        """Puts the start into the store. By then every earlier write is done; False, and nothing is
        leased, if one of them has changed the assignments."""
        is_noted = False
        try:
            await self._state.store.start_put(vm, None)
            is_noted = self._required(vm) == assignments
        except StoreError as error:
            raise errors.failure("failed", f"{vm} was not started: {error}") from error
        finally:
            if not is_noted:
                for lease in leases:
                    self._transaction.release(lease)
        return is_noted

    async def _wait_for_sources(self, assignments: list[Assignment]) -> None:
        """Sources that are running but whose agents were just restarted."""
        with trio.move_on_after(AGENT_GRACE):
            for name in sorted({a.key.backend for a in assignments}):
                domain = self._state.domain(name)
                if domain is not None and domain.domid is not None:
                    progress.at("connect", name)
                    await self._state.agents.wait_for(name, timeout=AGENT_GRACE)

    async def _ask_for(
        self,
        vm: str,
        assignments: list[Assignment],
        request: str,
        asker_gone: trio.Event,
        asked: _Asked,
    ) -> None:
        """Asks dom0's user about the assigned devices where the policy says so, all at once."""

        async def ask(key: DeviceKey) -> None:
            consents, subject = Consents(), DeviceSubject("attach", key)
            asked.consents[key] = consents
            try:
                await self._authorizer.allow(DOM0_USER, subject, vm, request, asker_gone, consents)
            except CallError as error:
                asked.refusals[key] = error

        async with trio.open_nursery() as nursery:
            for assignment in assignments:
                key = assignment.key
                if self._state.registry.get(key) is None or unknown(self._state, key) is not None:
                    continue  # `_reserve` says so
                subject = DeviceSubject("attach", key)
                if self._authorizer.decide(DOM0_NAME, subject, vm).verdict == "ask":
                    nursery.start_soon(ask, key)

    def _reserve_all(
        self,
        vm: str,
        assignments: list[Assignment],
        request: str,
        asked: _Asked,
    ) -> list[Lease]:
        """A lease of every assigned device, or CallError with the reason, and none."""
        leases: list[Lease] = []
        problems: list[_Problem] = []
        for assignment in assignments:
            try:
                leases.append(self._reserve(vm, assignment, request, asked))
            except _Problem as problem:
                problems.append(problem)
        # An assignment that asks for a name gets it before another one does.
        leases.sort(key=lambda lease: lease.frontend is None)
        if problems:
            for lease in leases:
                self._transaction.release(lease)
            hint = next((problem.hint for problem in problems if problem.hint), None)
            what = "; ".join(map(str, problems))
            raise errors.failure("failed", f"{vm} was not started: {what}", hint=hint)
        return leases

    def _grant(self, vm: str, key: DeviceKey, its: str, request: str, asked: _Asked) -> Grant:
        """The permission of policy, and dom0's user, for the VM that starts; or raises _Problem."""
        explain = f"qvm-device {key.device_class} explain {vm} {key}"
        try:
            if (refusal := asked.refusals.get(key)) is not None:
                raise refusal
            subject, consents = DeviceSubject("attach", key), asked.consents.get(key)
            grant = self._authorizer.require(DOM0_USER, subject, vm, request, consents)
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
        its = f"its assigned device {assignment}"
        detach = removal(assignment)
        if (lack := self._lack(assignment)) is not None:
            raise _Problem(f"{its} cannot be attached ({lack})", detach)
        device = state.registry.get(key)
        if device is None:
            source = state.domain(key.backend)
            if source is not None and source.domid is None:
                raise _Problem(
                    f"{its} is missing, because {key.backend} is halted",
                    f"qvm-start {key.backend}, or {detach}",
                )
            if (missing := state.registry.missing(key.backend, key.device_class)) is not None:
                raise _Problem(
                    f"{its} is missing, and {key.backend} does not report all devices that it has "
                    f"({missing.reason})",
                    detach,
                )
            if matches := state.matches(assignment):
                raise _Problem(f"{its} is ambiguous: {named(map(str, matches))} have it", detach)
            raise _Problem(f"{its} is missing", f"plug it in, or {detach}")
        if state.is_orphan(assignment):
            raise _Problem(
                f"{its} was assigned to a VM of that name that was removed since",
                f"qvm-device {key.device_class} attach --persistent {vm} {key} if this one is to "
                f"have it, or {detach}",
            )
        if unknown(state, key) is not None:
            raise _Problem(f"{its} cannot be had ({errors.not_known(key, device).message})")
        found = class_of(key.device_class).lasting_identity(device.identity)
        if assignment.identity not in ("", found):
            raise _Problem(
                f"{its} is another one than was assigned ({found or 'without an identity'} instead "
                f"of {assignment.identity})",
                f"qvm-device {key.device_class} attach --persistent {vm} {key} to assign this one, "
                f"or {detach}",
            )
        if not (claim := state.claim(key, vm)).is_for(vm):
            first = named(each.vm for each in claim.first)
            raise _Problem(claim.conflict or f"{its} is for {first}, more specifically", detach)
        grant = self._grant(vm, key, its, request, asked)
        try:
            options = class_of(key.device_class).parse_options(assignment.options)
            return self._transaction.reserve(
                key, device, vm, NO_DOMAIN, options, read_only_by_rule=grant.read_only
            )
        except Taken as taken:
            holder = taken.holder
            if holder.vm == vm and holder.key != key:
                raise _Problem(
                    f"{its} shares data with {holder.key}, which is assigned, too", detach
                ) from taken
            raise _Problem(
                f"{its} is attached to {holder.vm}",
                f"qvm-device {holder.key.device_class} detach {holder.vm} {holder.key}",
            ) from taken
        except CallError as error:
            raise _Problem(f"{its} cannot be had ({error.message})") from error
