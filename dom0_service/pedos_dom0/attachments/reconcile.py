"""Brings dom0's journal and the agents' reports into agreement.

They diverge in two cases: the service was restarted, and the journal has attachments that may or
may not live; or an agent connects (again) and has exports and imports of an earlier run. The rule
for both is that dom0 believes its own journal: an attachment that the journal has and both ends
confirm stays as it is. Everything else ends, unless the target may refuse that and keeps what it
uses (ways.py). No agent can create an attachment by reporting one.

While a journal row waits for its two agents it is a lease like any other, so that no other VM gets
the device; a request for it waits with it (`wait_settled`).
"""

from __future__ import annotations

import contextlib
import logging
import math
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs
import trio
from pedos_protocol.device_classes import CLASSES_MAX
from pedos_protocol.errors import CallError, RemoteProtocolError
from pedos_protocol.words import request_to

from pedos_dom0.attachments.stop_timeout import STOP_TIMEOUT
from pedos_dom0.attachments.ways import AGENT_LOST, CONTRADICTED, FINISHED, GONE, RELEASED, UNDONE
from pedos_dom0.attachments.wire import is_exported, is_imported
from pedos_dom0.device_classes.registered import class_of
from pedos_dom0.drivers.base import NO_DOMAIN
from pedos_dom0.tables.leases import DETACHING, PENDING, Taken, broken_by
from pedos_dom0.tables.store import StoreError
from pedos_dom0.tasks import progress

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pedos_protocol.messages import ExportState, ImportState

    from pedos_dom0.attachments.teardown import Teardown
    from pedos_dom0.attachments.ways import Way
    from pedos_dom0.state import State
    from pedos_dom0.tables.agents import AgentLink
    from pedos_dom0.tables.leases import Lease
    from pedos_dom0.tables.registry import DeviceKey

logger = logging.getLogger(__name__)

# How long a restarted service waits for the agents of a journal row. Live agents reconnect within a
# second; the supervisor of a killed one restarts it.
SETTLE_TIMEOUT = 30.0

# Leftovers that one audit line names; it has the number of all.
LEFTOVERS_NAMED = 8


class Reconciler:
    """Settles journal rows after a start, and the leftovers of agents when they connect."""

    def __init__(self, state: State, teardown: Teardown) -> None:
        self._state = state
        self._teardown = teardown
        self._settling: dict[str, trio.Event] = {}

    async def load_journal(self) -> list[Lease]:
        """Turns every journal row into a lease. Call it before any agent is connected."""
        state, rows = self._state, []
        for row in state.store.journal():
            lease = await self._with_carrier(row)
            try:
                # Disks and partitions are unknown until the source has reported. A request for one
                # of them compares its own family with this lease.
                shared = class_of(lease.key.device_class).shared
                state.leases.grant(lease, {lease.key}, shared)
            except (Taken, ValueError) as error:
                logger.error("journal row %s is dropped: %s", lease.attachment, error)
                await state.store.journal_delete(lease.attachment)
                continue
            self._settling[lease.attachment] = trio.Event()
            rows.append(lease)
        if unknown := sorted(state.unknown_classes()):
            logger.warning(
                "devices are attached or assigned of classes that this dom0 does not know, as it "
                "is older than the last one: %s. They stay so until they are detached",
                ", ".join(unknown[:CLASSES_MAX]),
            )
        return rows

    async def _with_carrier(self, lease: Lease) -> Lease:
        """The row of a version that did not note how an attachment is carried: as its class is."""
        if lease.by_hypervisor is not None:
            return lease
        by_hypervisor = self._state.carrier(lease.key.device_class).by_hypervisor
        lease = attrs.evolve(lease, by_hypervisor=by_hypervisor)
        with contextlib.suppress(StoreError):  # which is told of elsewhere
            await self._state.store.journal_put(lease)
        return lease

    async def settle(self, lease: Lease) -> None:
        """Keeps a journal row whose attachment lives, and ends any other."""
        began = trio.current_time()
        try:
            reason = await self._verdict(lease, SETTLE_TIMEOUT)
            if reason is not None and self._may_live(lease, reason[1]):
                logger.warning("%s may be used in %s: %s", lease.key, lease.vm, reason[0])
                self._over(lease)  # no request waits for that, and reports are processed meanwhile
                reason = await self._verdict(lease, math.inf)
            if reason is not None and reason[1] is AGENT_LOST and self._outlives(lease):
                self._keep(lease)
                self._teardown.remind_soon(lease)
            elif reason is None:
                self._keep(lease)
            elif self._state.leases.get(lease.attachment) is not None:
                why, way = reason
                await self._teardown.end_or_keep(lease.attachment, f"after a restart: {why}", way)
        except Exception:
            logger.exception("journal row %s could not be settled", lease.attachment)
        finally:
            self._over(lease)
            logger.debug(
                "journal row %s settled after %.3f s",
                lease.attachment,
                trio.current_time() - began,
            )

    def _outlives(self, lease: Lease) -> bool:
        is_there = self._state.leases.get(lease.attachment) is not None
        return is_there and self._teardown.outlives_agents(lease)

    def _over(self, lease: Lease) -> None:
        if (done := self._settling.pop(lease.attachment, None)) is not None:
            done.set()

    def is_settling(self, attachment: str) -> bool:
        """Whether it is a journal row that still waits for its agents."""
        return attachment in self._settling

    async def wait_settled(self, *names: str) -> None:
        """Waits until no journal row with one of these VMs is open any more."""
        for attachment, done in list(self._settling.items()):
            lease = self._state.leases.get(attachment)
            if lease is not None and (lease.vm in names or lease.key.backend in names):
                progress.at("connect", lease.key.backend, lease.key)
                await done.wait()

    async def wait_ended(self, keys: Iterable[DeviceKey], vm: str) -> None:
        """Waits until no VM that has ended, as `vm` may have a moment ago, holds one of these
        devices any more: the hypervisor tells of the end of a VM before its attachments end."""
        state = self._state
        for key in keys:
            while (lease := state.holder(key, vm)) is not None:
                if lease.vm_domid == NO_DOMAIN or state.runs(lease.vm, lease.vm_domid):
                    break
                why = f"{lease.vm} has ended"
                if (attempt := self._teardown.attempts.get(lease.attachment)) is not None:
                    if lease.vm in state.facts.starting and lease.vm != vm:
                        break  # its end is not certain: it may be about to be reported
                    attempt.break_off(why, RELEASED)
                    await attempt.done.wait()
                    continue
                progress.at("detach", lease.vm, lease.key)
                await self._teardown.end_or_leave(lease, why, way=RELEASED, request=None)
                if self._teardown.why_held(lease.attachment) is not None:
                    break  # it is ended again in its time

    def _may_live(self, lease: Lease, way: Way) -> bool:
        """Whether an agent that does not come back may still have it: in local mode the machine
        restarts an agent that has ended, or its VM is halted. So this agent hangs."""
        is_missing = any(
            self._state.agents.at(name, domid) is None
            for name, domid in (
                (lease.key.backend, lease.backend_domid),
                (lease.vm, lease.vm_domid),
            )
        )
        by_agents = not self._state.is_by_hypervisor(lease)
        return by_agents and is_missing and way is AGENT_LOST and lease.is_made

    async def _verdict(self, lease: Lease, timeout: float) -> tuple[str, Way] | None:
        """None if the attachment lives, or why it does not, and the way to end it. Waits for both
        agents in any case, because an attachment should end in the right order, target first."""
        state = self._state
        sides = ((lease.key.backend, lease.backend_domid), (lease.vm, lease.vm_domid))
        with trio.move_on_after(timeout):
            for name, domid in sides:
                runs = partial(state.runs, name, domid)
                await state.agents.wait_for(name, timeout=timeout, worthwhile=runs)
        for name, domid in sides:
            if not state.runs(name, domid):
                return f"{name} does not run any more", RELEASED if name == lease.vm else GONE
        # One that was there may have gone while the other was waited for.
        source, target = (state.agents.at(name, domid) for name, domid in sides)
        if source is None:
            return f"the agent of {lease.key.backend} did not come back", AGENT_LOST
        broken = broken_by(lease, state.registry.get(lease.key))
        if target is None:
            if broken is not None:
                return broken, GONE
            return f"the agent of {lease.vm} did not come back", AGENT_LOST
        exports = source.report.exports if source.report else ()
        imports = target.report.imports if target.report else ()
        has_export, has_import = _has(exports, lease), _has(imports, lease)
        carrier = state.carrier_of(lease)
        by_hypervisor = carrier.by_hypervisor
        wrong = (
            (state.leases.get(lease.attachment) is None, "it has ended meanwhile", GONE),
            (broken is not None, broken or "", GONE),
            (lease.state == PENDING, "it was only pending", UNDONE),
            (
                lease.state == DETACHING,
                "it was only detaching",
                # In local mode the target's report decides, also that it has released the device.
                FINISHED if has_import or by_hypervisor else RELEASED,
            ),
            (
                not is_exported(exports, lease),
                f"{lease.key.backend} does not export it any more",
                CONTRADICTED if has_export else AGENT_LOST,
            ),
            (
                by_hypervisor and not carrier.is_attached(lease),
                "the hypervisor has detached it",
                RELEASED,
            ),
            (
                not is_imported(imports, lease),
                f"{lease.vm} has not got it any more",
                CONTRADICTED if has_import else AGENT_LOST,
            ),
        )
        return next(((reason, way) for is_wrong, reason, way in wrong if is_wrong), None)

    def _keep(self, lease: Lease) -> None:
        state = self._state
        state.registry.touch(lease.key)
        state.audit.write("kept", **lease.in_audit())
        logger.info("%s is still attached to %s", lease.key, lease.vm)

    async def stop_unknown(self, link: AgentLink) -> None:
        """Tells an agent to stop the exports and imports that no lease stands for.

        For an agent that has just connected this happens before its devices are published, so that
        a device which is still exported from an earlier run cannot be lent a second time. All at
        once, imports before exports: however many there are, it takes no longer than two stops.
        Raises RemoteProtocolError if the agent does not stop them.
        """
        imports, exports = self._unknown(link)
        for method, attachments in (("import.stop", imports), ("export.stop", exports)):
            refusals: list[str] = []
            async with trio.open_nursery() as nursery:
                for attachment in attachments:
                    nursery.start_soon(self._stop, link, method, attachment, refusals)
            if refusals:
                raise RemoteProtocolError(refusals[0])
        if imports or exports:
            self._state.audit_throttle.write(
                "leftovers",
                of=link.name,
                throttled=True,
                vm=link.name,
                imports=len(imports),
                exports=len(exports),
                attachments=[*imports, *exports][:LEFTOVERS_NAMED],
            )
            logger.info(
                "%s released %d imports and %d exports of an earlier life",
                link.name,
                len(imports),
                len(exports),
            )

    def has_unknown(self, link: AgentLink) -> bool:
        """Whether `stop_unknown` would have something to do."""
        return link.report is not None and any(self._unknown(link))

    def invented(self, link: AgentLink) -> int:
        """The number of attachments in the agent's report that were never named on its connection.

        A report may be late, and contain what was ended meanwhile. After the first report an agent
        can have no attachments other than those that dom0 gave it.
        """
        return sum(
            not link.was_told_of(attachment)
            for attachments in self._unknown(link)
            for attachment in attachments
        )

    def _unknown(self, link: AgentLink) -> tuple[list[str], list[str]]:
        """The imports and the exports of an agent's last report that no lease stands for."""
        report = link.report
        assert report is not None
        return (
            [each.attachment for each in report.imports if not self._knows_import(link, each)],
            [each.attachment for each in report.exports if not self._knows_export(link, each)],
        )

    def _knows_export(self, link: AgentLink, exported: ExportState) -> bool:
        lease = self._state.leases.get(exported.attachment)
        return lease is not None and (lease.key.backend, lease.backend_domid) == (
            link.name,
            link.domid,
        )

    def _knows_import(self, link: AgentLink, imported: ImportState) -> bool:
        lease = self._state.leases.get(imported.attachment)
        return lease is not None and (lease.vm, lease.vm_domid) == (link.name, link.domid)

    async def _stop(
        self, link: AgentLink, method: str, attachment: str, refusals: list[str]
    ) -> None:
        params: dict[str, Any] = {"attachment": attachment}
        try:
            await link.call(method, params, timeout=STOP_TIMEOUT)
        except CallError as error:
            refusals.append(f"it did not confirm {request_to(method)}, a leftover: {error.message}")


def _has(reported: Iterable[ExportState | ImportState], lease: Lease) -> bool:
    """Whether an agent reports it at all, even if differently from the journal."""
    return any(each.attachment == lease.attachment for each in reported)
