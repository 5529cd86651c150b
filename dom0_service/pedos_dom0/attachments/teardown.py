"""Ending attachments: the one way by which a lease ends, for any reason.

A user's detach, an attach that failed half-way, a device that was unplugged, a child process that
died, an agent or a VM that is gone, and leftovers of an earlier run of the service all come here.

There is no lock. The lease itself excludes others: it is granted and freed in one step without a
checkpoint, and while it stands no other VM can get the device. So the question is only when it may
be freed: when the target was stopped (after which it writes no more) and then the source, or when
the side that does not confirm was cut off. The export ends at the source, so that the data channel
of a hanging target is dead; reconcile.py stops what that target still reports when it comes back.
The steps are bounded, and the last one always happens, with two exceptions:

- A target that may refuse (ways.py) and uses the device, or does not answer, keeps it. It is
  attached then, whatever it was before, and can be detached like any other attachment. If a reason
  comes up meanwhile that the target may not refuse, the attachment ends for that reason.
- If the hypervisor carries the device and does not take it away even by force, or if a source in
  local mode cannot be cut off without harm to others, the lease stays; the end is repeated until it
  works (left_over.py).

The end of the service cuts a teardown short; the journal then says what is left to do.
"""

from __future__ import annotations

import logging
import math
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import trio
from pedos_host.throttle import Throttle
from pedos_protocol.errors import CallError
from pedos_protocol.names import harmless_text

from pedos_dom0.attachments.left_over import TOOLSTACK, LeftOvers
from pedos_dom0.attachments.stop_timeout import STOP_TIMEOUT
from pedos_dom0.attachments.stops import stop_source, stop_target
from pedos_dom0.attachments.ways import AGENT_LOST, GONE, RELEASED, UNDONE
from pedos_dom0.attachments.wire import export_params, import_params
from pedos_dom0.device_classes.registered import class_of
from pedos_dom0.drivers.base import DriverError
from pedos_dom0.errors import failure
from pedos_dom0.tables.leases import ATTACHED, DETACHING, PENDING, broken_by
from pedos_dom0.tables.store import StoreError
from pedos_dom0.tasks import progress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pedos_dom0.attachments.ways import Way
    from pedos_dom0.state import State
    from pedos_dom0.tables.agents import AgentLink
    from pedos_dom0.tables.leases import Lease

logger = logging.getLogger(__name__)

# The stops in their order: the target first, because its unwritten data goes through the source.
BOTH_SIDES = frozenset({"import.stop", "export.stop"})
# Between the two, where the hypervisor carries the device (Carrier.by_hypervisor). A full undo
# includes it.
DETACH = "detach"


class Attempt:
    """An attach in progress, so that it can be told that it has become pointless."""

    def __init__(self) -> None:
        self.scope = trio.CancelScope()
        self.done = trio.Event()
        self.broken: str | None = None
        self.way = UNDONE  # how it is undone, if it must be
        # The stops that would undo the steps that were begun.
        self.begun: frozenset[str] = frozenset()
        # Whether everything is done that is possible before the target runs.
        self.prepared = False
        # What the source's agent answered for the target's.
        self.handover: str | None = None
        # What the target's agent said of the device, for a user.
        self.note: str | None = None

    def break_off(self, reason: str, way: Way) -> None:
        if self.broken is None or way.outranks(self.way):
            self.broken, self.way = reason, way
        self.scope.cancel()


class Teardown:
    """Ends attachments. Background work runs in `nursery`, which is the service's own."""

    def __init__(self, state: State, nursery: trio.Nursery) -> None:
        self._state = state
        self._nursery = nursery
        self._ending: dict[str, trio.Event] = {}
        # Attachment -> why it must end, even if the target refuses the end in progress.
        self._insisted: dict[str, tuple[str, Way]] = {}
        self._left_overs = LeftOvers(state, nursery, self._end_left_over)
        # Attachments whose target has released them, so that only the source's part is left.
        self._released: set[str] = set()
        # Lines that a VM causes as often as it attaches and detaches.
        self._throttle = Throttle()
        # Attachment -> the wait for an absent agent of it, or for the domain's end.
        self._awaited: dict[str, trio.CancelScope] = {}
        # Attachment -> the attach that works on it, until that has been completed or is to be
        # undone.
        self.attempts: dict[str, Attempt] = {}

    async def end(
        self,
        attachment: str,
        reason: str,
        *,
        way: Way,
        request: str | None = None,
        sides: frozenset[str] = BOTH_SIDES | {DETACH},
    ) -> bool:
        """Ends an attachment and returns when its lease is free; False if there was none, or if it
        is left over (`why_held`): then the lease stands, and the end is repeated.

        If it is being ended already, waits for that. `sides` are the stops that are needed; a side
        that was never asked to start need not be asked to stop. Only a target to which the carrier
        attached it is always asked: a VM that runs may use it at once. CallError(busy) if the
        target may refuse and does: then it is attached.
        """
        while (other := self._ending.get(attachment)) is not None:
            await other.wait()
            if self._state.leases.get(attachment) is None:
                return True
        lease = self._state.leases.get(attachment)
        if lease is None:
            return False
        done = self._ending[attachment] = trio.Event()
        began = trio.current_time()
        try:
            self._state.leases.update(lease.attachment, state=DETACHING)
            self._state.registry.touch(lease.key)
            if (holder := await self._tear_down(lease, way, sides)) is not None:
                self._left_overs.note(lease, holder, reason, way, request)
                return False
            self._write_end(lease, reason, request, trio.current_time() - began)
            self._left_overs.forget(attachment)
            await self._reach("detach.freed")
        finally:
            del self._ending[attachment]
            done.set()
            insisted = self._insisted.pop(attachment, None)
            if insisted is not None and self._state.leases.get(attachment) is not None:
                self.end_soon(attachment, *insisted)
        return True

    async def no_longer_ending(self, attachment: str) -> None:
        """Waits until nothing ends it any more: then it is gone, kept or left over."""
        while (other := self._ending.get(attachment)) is not None:
            await other.wait()

    async def end_or_leave(
        self, lease: Lease, reason: str, *, way: Way, request: str | None
    ) -> None:
        """As `end`, for an operation that does not depend on the source: if that has not confirmed
        an end before, and is still connected, it is asked again in its time, and not waited for."""
        left_over = self._left_overs.get(lease.attachment)
        source = self._state.agents.at(lease.key.backend, lease.backend_domid)
        if left_over is None or left_over.holder == TOOLSTACK or source is None:
            await self.end(lease.attachment, reason, way=way, request=request)
        else:
            self.end_soon(lease.attachment, reason, way)

    def why_held(self, attachment: str) -> CallError | None:
        """Why an attachment that should have ended is not free; None if that is not so."""
        left_over = self._left_overs.get(attachment)
        return None if left_over is None else left_over.error

    def why_left_over(self, attachment: str) -> str | None:
        """As `why_held`, in some words."""
        left_over = self._left_overs.get(attachment)
        return None if left_over is None else left_over.why

    async def _tear_down(self, lease: Lease, way: Way, sides: frozenset[str]) -> str | None:
        """Target, hypervisor, source, lease; returns the name of the holder if it is left over."""
        by_hypervisor = self._state.is_by_hypervisor(lease)
        if by_hypervisor or lease.attachment not in self._released:
            await self._end_target(lease, way, sides)
            self._released.add(lease.attachment)
        if by_hypervisor and DETACH in sides and self._is_left_over(lease):
            return TOOLSTACK
        if "export.stop" in sides:
            progress.at("end", lease.key.backend, lease.key)
            if not await stop_source(self._state, lease, self._released):
                return lease.key.backend
        await self._reach("detach.unexported")
        await self.free(lease)
        return None

    async def _end_target(self, lease: Lease, way: Way, sides: frozenset[str]) -> None:
        """The target's part, and the hypervisor's; CallError(busy) if the target keeps it."""
        is_carried = self._state.is_by_hypervisor(lease)
        detaches = is_carried and DETACH in sides
        if not self._state.may_run(lease.vm, lease.vm_domid):
            way = RELEASED  # it has not begun to run, or has ended: it uses nothing
        may_refuse = way.lets_refuse(by_hypervisor=is_carried)
        # Where the hypervisor carries it, not before the target has released it: the next service
        # completes what it finds so.
        notes_at_once = not (may_refuse and is_carried)
        if notes_at_once:
            await self._journal_detaching(lease)
        await self._reach("detach.started")
        try:
            if "import.stop" in sides or detaches:
                progress.at("return", lease.vm, lease.key)
                await stop_target(self._state, lease, may_refuse=may_refuse)
            if not notes_at_once:
                await self._journal_detaching(lease)
            await self._reach("detach.unimported")
            if detaches:
                progress.at("detach", lease.vm, lease.key)
                await self._detach(lease, by_force=way.by_force)
        except CallError:
            await self._keep(lease)
            raise

    def _write_end(self, lease: Lease, reason: str, request: str | None, seconds: float) -> None:
        left_over = self._left_overs.get(lease.attachment)
        was_attached = lease.is_made if left_over is None else left_over.was_attached
        if request is None and left_over is not None:
            request = left_over.request
        self._state.audit_throttle.write_whole(
            "ended" if was_attached else "undone",
            request=request,
            **lease.in_audit(),
            reason=reason,
            seconds=round(seconds, 3),
        )
        # A VM may attach and detach as often as it likes. The audit log has each time.
        if (more := self._throttle.more(f"ended {lease.vm}")) is not None:
            what = "is detached from" if was_attached else "was not attached to"
            logger.info("%s %s %s: %s%s", lease.key, what, lease.vm, reason, more)

    def end_soon(self, attachment: str, reason: str, way: Way) -> None:
        """Like `end`, without waiting. An attach in progress is told to undo itself; what is left
        over is repeated in its time, also if something else comes up meanwhile."""
        if attachment not in self._ending and (left_over := self._left_overs.get(attachment)):
            left_over.insist(reason, way)
        elif attachment in self._ending:
            # If the target refuses the end in progress.
            insisted = self._insisted.get(attachment)
            if insisted is None or way.outranks(insisted[1]):
                self._insisted[attachment] = (reason, way)
        elif (attempt := self.attempts.get(attachment)) is not None:
            attempt.break_off(reason, way)
        else:
            self._nursery.start_soon(self.end_or_keep, attachment, reason, way)

    async def end_or_keep(self, attachment: str, reason: str, way: Way) -> None:
        """As `end`, without a caller to tell that the target keeps it: dom0's log is told."""
        try:
            await self.end(attachment, reason, way=way)
        except CallError as refused:
            if (lease := self._state.leases.get(attachment)) is not None:
                await self._kept(lease, reason, refused)
        except Exception:
            # A bug in this program; the lease stays, which is the safe side.
            logger.exception("attachment %s could not be ended", attachment)

    async def _kept(self, lease: Lease, reason: str, refused: CallError) -> None:
        # A VM can cause this as often as it likes.
        self._state.audit_throttle.write(
            "kept",
            of=lease.vm,
            throttled=True,
            say=f"{lease.key}: {reason}: {refused.message}",
            **lease.in_audit(),
            reason=f"{reason}: {refused.message}",
        )
        if self._stands(lease):
            await self._remind(lease)

    def remind_soon(self, lease: Lease) -> None:
        """The target keeps it: restarted agents have to know of it again."""
        if self._stands(lease):
            self._nursery.start_soon(self._remind, lease)

    async def _remind(self, lease: Lease) -> None:
        await self._import_again(lease)
        if self._stands(lease):
            muted = self._state.is_muted(lease)
            export = {**export_params(lease, muted=muted), "again": True}
            await self._start_again(lease.key.backend, lease.backend_domid, "export.start", export)

    def _stands(self, lease: Lease) -> bool:
        is_there = self._state.leases.get(lease.attachment) is not None
        return is_there and lease.attachment not in self._ending

    def _await_agents(self, lease: Lease, reason: str) -> None:
        """Where the hypervisor carries it, it works without an agent. When both are back, the
        target is asked whether it uses it; when a domain has ended, there is nothing to ask."""
        if lease.attachment not in self._awaited:
            scope = self._awaited[lease.attachment] = trio.CancelScope()
            self._nursery.start_soon(self._end_when_back, lease, reason, scope)

    async def _end_when_back(self, lease: Lease, reason: str, scope: trio.CancelScope) -> None:
        state = self._state
        sides = (
            (lease.vm, lease.vm_domid, RELEASED),
            (lease.key.backend, lease.backend_domid, GONE),
        )

        def both_run() -> bool:
            return all(state.runs(name, domid) for name, domid, _ in sides)

        with scope:  # which `free` cancels
            for name, _, _ in sides:
                await state.agents.wait_for(name, timeout=math.inf, worthwhile=both_run)
        if self._awaited.pop(lease.attachment, None) is not None:
            ended = (way for name, domid, way in sides if not state.runs(name, domid))
            if (way := next(ended, None)) is None and self.outlives_agents(lease):
                self.remind_soon(lease)
            else:
                self.end_soon(lease.attachment, reason, way or AGENT_LOST)

    def outlives_agents(self, lease: Lease) -> bool:
        """Whether the target has it, and needs no agent for that (Carrier.outlives_agents)."""
        carrier = self._state.carrier_of(lease)
        if not carrier.outlives_agents or lease.state != ATTACHED:
            return False
        try:
            return carrier.is_attached(lease)
        except DriverError as error:
            logger.warning("whether %s is still in %s: %s", lease.key, lease.vm, error)
            return True  # the next look tells

    def is_in_the_making(self, lease: Lease) -> bool:
        """Whether an unfinished attach works on it."""
        return lease.state == PENDING and lease.attachment in self.attempts

    def agent_gone(self, link: AgentLink, reason: str) -> None:
        """The control connection to an agent ended: so do all attachments that it has a part in.
        Where the hypervisor carries one, that waits for the agent, or for the end of its domain: a
        VM that shuts down ends its agent first, and unmounts its file systems then."""
        self._state.registry.remove_backend(link.name)
        for lease in list(self._state.leases):
            is_source = (lease.key.backend, lease.backend_domid) == (link.name, link.domid)
            is_target = (lease.vm, lease.vm_domid) == (link.name, link.domid)
            if not is_source and not is_target:
                continue
            why = f"{link.name} is gone: {reason}"
            waits = self._state.is_by_hypervisor(lease) and self._state.runs(link.name, link.domid)
            if not waits:
                self.end_soon(lease.attachment, why, RELEASED if is_target else GONE)
                if is_source:
                    self.source_has_ended(lease.attachment)
            elif lease.attachment in self.attempts:  # which is not finished without it
                self.end_soon(lease.attachment, why, AGENT_LOST)
            else:
                self._await_agents(lease, why)

    def reported(self, link: AgentLink, is_settling: Callable[[str], bool]) -> None:
        """A source's report is in the registry: attachments end whose device is missing, or is
        another one than was granted. An attachment of the previous service is left to
        `Reconciler.settle`, until that ends it."""
        for lease in self._state.leases.from_backend(link.name):
            reason = broken_by(lease, self._state.registry.get(lease.key))
            if (
                reason is not None
                and lease.backend_domid == link.domid
                and (lease.attachment in self._ending or not is_settling(lease.attachment))
            ):
                self.end_soon(lease.attachment, reason, GONE)

    def source_has_ended(self, attachment: str) -> None:
        """Its source's part is over: whatever waits for that is tried at once."""
        self._left_overs.wake(attachment)

    async def free(self, lease: Lease) -> None:
        """Frees the device: journal row, lease, and a notice to watchers."""
        with self._journal_trouble(lease):
            await self._state.store.journal_delete(lease.attachment)
        self._state.leases.free(lease.attachment)
        self._released.discard(lease.attachment)
        if (awaited := self._awaited.pop(lease.attachment, None)) is not None:
            awaited.cancel()
        self._state.registry.touch(lease.key)

    async def delete_overdue(self) -> None:
        """Deletes rows without a lease: attachments that ended while the disk was full. Done before
        a row is added, because the next service could take the old one of a device for the new.
        StoreError."""
        for row in self._state.store.journal():
            if self._state.leases.get(row.attachment) is None:
                await self._state.store.journal_delete(row.attachment)

    async def _journal_detaching(self, lease: Lease) -> None:
        with self._journal_trouble(lease):
            await self._state.store.journal_state(lease.attachment, DETACHING)

    async def _keep(self, lease: Lease) -> None:
        """The target did not release it. So it has it: attached, also if its attach was in
        progress, or the previous service was ending it."""
        self._released.discard(lease.attachment)
        self._left_overs.forget(lease.attachment)
        frontend = self._frontend(lease)
        options = class_of(lease.key.device_class).in_effect(lease.options, frontend)
        kept = self._state.leases.update(
            lease.attachment, state=ATTACHED, frontend=frontend, options=options
        )
        with self._journal_trouble(lease):
            await self._state.store.journal_put(kept)
        self._state.registry.touch(kept.key)
        if not self._state.is_by_hypervisor(lease):
            return  # the wait for an absent agent began with the service, if at all
        for name, domid in ((lease.vm, lease.vm_domid), (lease.key.backend, lease.backend_domid)):
            if self._state.agents.at(name, domid) is None:
                self._await_agents(kept, f"the agent of {name} was not there")

    def _frontend(self, lease: Lease) -> str | None:
        """Its name in the target. In local mode the target chooses it, and an attach that got no
        answer has to take it from a report."""
        link = self._state.agents.at(lease.vm, lease.vm_domid)
        if lease.frontend is not None or link is None or link.report is None:
            return lease.frontend
        names = {each.attachment: each.frontend for each in link.report.imports}
        return names.get(lease.attachment)

    async def _detach(self, lease: Lease, *, by_force: bool) -> None:
        """Has the hypervisor take the device away; CallError if it does not, and need not."""
        try:
            await self._state.carrier_of(lease).detach(lease, force=by_force)
        except DriverError as error:
            if not by_force:
                # The target has confirmed the release, and yet has it: it has to know of it again.
                await self._import_again(lease)
                raise failure(error.code, str(error), hint=error.hint) from error
            is_first = self._left_overs.get(lease.attachment) is None
            logger.log(logging.CRITICAL if is_first else logging.DEBUG, "%s", error)

    def _is_left_over(self, lease: Lease) -> bool:
        """Whether the hypervisor still has what it was told to take away."""
        try:
            return self._state.carrier_of(lease).is_attached(lease)
        except DriverError as error:
            logger.critical("whether %s is still in %s: %s", lease.key, lease.vm, error)
            return True  # the safe side

    async def _end_left_over(self, attachment: str, reason: str, way: Way) -> None:
        if attachment not in self._ending:
            await self.end_or_keep(attachment, reason, way)

    async def _import_again(self, lease: Lease) -> None:
        params = import_params(lease, self._state.registry.get(lease.key))
        await self._start_again(lease.vm, lease.vm_domid, "import.start", params)

    async def _start_again(
        self, name: str, domid: int, method: str, params: dict[str, Any]
    ) -> None:
        """Tells an agent again of an existing attachment; fine if it knows of it, or is absent."""
        link = self._state.agents.at(name, domid)
        if link is None:
            return
        try:
            await link.call(method, params, timeout=STOP_TIMEOUT)
        except CallError as error:
            level = logging.DEBUG if error.code == "busy" else logging.WARNING
            logger.log(level, "%s, told %s again: %s", name, method, harmless_text(error.message))

    @contextmanager
    def _journal_trouble(self, lease: Lease) -> Iterator[None]:
        """A full disk must not keep a device attached. A row that then stays too long is deleted
        before the next attachment is noted, or the next start of the service finds that its
        attachment is gone."""
        try:
            yield
        except StoreError as error:
            if (more := self._throttle.more(f"journal {lease.vm}")) is not None:
                text = "what became of %s -> %s is not in the journal: %s%s"
                logger.critical(text, lease.key, lease.vm, error, more)

    async def _reach(self, step: str) -> None:
        try:
            await self._state.reach(step)
        except Exception:
            logger.exception("fault point %s", step)
