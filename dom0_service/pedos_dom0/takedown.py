"""Ending attachments: the one way by which a lease ends, whatever the reason.

A user's detach, an attach that failed half way, a device that was unplugged, a child process that
died, an agent or a VM that is gone, and leftovers of an earlier life of the service all come here.

There is no lock. The lease itself is what excludes others: it is granted and freed in one step
without a checkpoint, and while it stands nobody else can be given the device. So the question is
only when it may be freed: when the target was stopped (after which nobody writes any more) and then
the source, or when the one that does not confirm was disconnected. A target that hangs loses its
control channel and the export is ended at the source, so its data channel is dead; what it still
reports when it comes back is stopped before it gets anything else (see reconcile.py). Therefore a
take-down does not fail because of a VM: its steps are bounded, and the last one always happens. The
end of the service cuts it short, and then the journal says what is left to do. And where the
hypervisor carries the device and does not take it away even by force, the lease stays, so that
nobody else gets what is still attached; that is tried again until it works.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING

import trio
from pedos_protocol.errors import CallError
from pedos_protocol.names import harmless_text

from pedos_dom0.drivers.base import AGAIN_SECONDS, DriverError
from pedos_dom0.errors import failure
from pedos_dom0.leases import DETACHING
from pedos_dom0.start_params import import_params
from pedos_dom0.store import StoreError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pedos_dom0.agents import AgentLink
    from pedos_dom0.drivers.base import DataPlane
    from pedos_dom0.leases import Lease
    from pedos_dom0.registry import DeviceKey
    from pedos_dom0.state import State

logger = logging.getLogger(__name__)

# An agent that unmounts gracefully, then by force, and then waits for its tools to end and for the
# channel to drain is done within 18 s at worst; one that has not answered after this hangs.
STOP_TIMEOUT = 20.0

# The stops in their order: the target first, because what it has not written yet goes through the
# source.
BOTH_SIDES = frozenset({"import.stop", "export.stop"})
# Between the two, where the hypervisor carries the device (State.plane). When all is to be undone,
# so is this.
UNPLUG = "unplug"


@contextmanager
def _journal_trouble(lease: Lease) -> Iterator[None]:
    """A disk that is full must not keep a device attached. What then stands in the journal too
    long is found to be gone by the next start of the service."""
    try:
        yield
    except StoreError as error:
        logger.critical("end of %s -> %s is not in the journal: %s", lease.key, lease.vm, error)


class Attempt:
    """An attach in progress, so that it can be told that it has become pointless."""

    def __init__(self) -> None:
        self.scope = trio.CancelScope()
        self.done = trio.Event()
        self.broken: str | None = None
        # The stops that would undo the steps that were begun.
        self.begun: frozenset[str] = frozenset()
        # Whether everything is done that can be done before the target runs.
        self.prepared = False

    def break_off(self, reason: str) -> None:
        if self.broken is None:
            self.broken = reason
        self.scope.cancel()


class TakeDown:
    """Ends attachments. Background work runs in `nursery`, which is the service's own."""

    def __init__(self, state: State, nursery: trio.Nursery) -> None:
        self._state = state
        self._nursery = nursery
        self._ending: dict[str, trio.Event] = {}
        # Attachment -> why it must end, even if the target may refuse the end that is going on.
        self._insisted: dict[str, str] = {}
        # What is still attached although it has ended, and is to be tried again; and of which of
        # these that stands in the audit log.
        self._left_over: set[str] = set()
        self._noted: set[str] = set()
        # Attachment -> the attach that works on it; that one also undoes what it did.
        self.attempts: dict[str, Attempt] = {}

    async def end(
        self,
        attachment: str,
        reason: str,
        *,
        request: str | None = None,
        sides: frozenset[str] = BOTH_SIDES | {UNPLUG},
        may_refuse: bool = False,
    ) -> bool:
        """Ends an attachment and returns when its lease is free; False if there was none, or if the
        hypervisor does not take it away: then the lease stands, and it is tried again.

        If somebody else is ending it already, waits for that. `sides` are the stops that are
        needed; a side that never was asked to start need not be asked to stop. With `may_refuse`,
        where the hypervisor carries the device, a target that uses it, or that does not say, keeps
        it: CallError(busy).
        """
        while (other := self._ending.get(attachment)) is not None:
            await other.wait()
            if self._state.leases.get(attachment) is None:
                return True
        lease = self._state.leases.get(attachment)
        if lease is None:
            return False
        may_refuse = may_refuse and self._state.plane is not None
        done = self._ending[attachment] = trio.Event()
        began = trio.current_time()
        try:
            self._state.leases.update(lease.attachment, state=DETACHING)
            if not may_refuse:
                self._journal_detaching(lease)
            self._state.registry.touch(lease.key)
            await self._reach("detach.started")
            try:
                if "import.stop" in sides:
                    await self._stop(
                        lease.vm, lease.vm_domid, "import.stop", attachment, may_refuse=may_refuse
                    )
                if may_refuse:
                    # Not before: what the next service finds so it ends by force.
                    self._journal_detaching(lease)
                await self._reach("detach.unimported")
                if UNPLUG in sides and self._state.plane is not None:
                    await self._unplug(self._state.plane, lease, may_refuse=may_refuse)
            except CallError:
                self._keep(lease)
                raise
            if UNPLUG in sides and self._is_left_over(lease):
                self._try_again(lease, reason)
                return False
            if "export.stop" in sides:
                await self._stop(lease.key.backend, lease.backend_domid, "export.stop", attachment)
            await self._reach("detach.unexported")
            self.free(lease)
            self._state.audit.write(
                "ended",
                request=request,
                attachment=attachment,
                device_class=lease.key.device_class,
                device=str(lease.key),
                vm=lease.vm,
                reason=reason,
                seconds=round(trio.current_time() - began, 3),
            )
            logger.info("%s is detached from %s: %s", lease.key, lease.vm, reason)
            await self._reach("detach.freed")
        finally:
            del self._ending[attachment]
            done.set()
            insisted = self._insisted.pop(attachment, None)
            if insisted is not None and self._state.leases.get(attachment) is not None:
                self.end_soon(attachment, insisted)
        return True

    def end_soon(self, attachment: str, reason: str) -> None:
        """Like `end`, without waiting. An attach that is in progress is told to undo itself; what
        is left over is tried again in its time, whoever insists."""
        if attachment in self._left_over:
            return
        attempt = self.attempts.get(attachment)
        if attempt is not None:
            attempt.break_off(reason)
        elif attachment in self._ending:
            self._insisted[attachment] = reason  # should the target refuse what is going on
        else:
            self._nursery.start_soon(self._end_safely, attachment, reason)

    async def _end_safely(self, attachment: str, reason: str) -> None:
        try:
            await self.end(attachment, reason)
        except Exception:
            # A mistake in this program; the lease stays, which is the safe side.
            logger.exception("attachment %s could not be ended", attachment)

    def agent_gone(self, link: AgentLink, reason: str) -> None:
        """The control connection to an agent ended: so does all that it has a part in."""
        self._state.registry.remove_backend(link.name)
        for lease in list(self._state.leases):
            is_source = (lease.key.backend, lease.backend_domid) == (link.name, link.domid)
            is_target = (lease.vm, lease.vm_domid) == (link.name, link.domid)
            if is_source or is_target:
                self.end_soon(lease.attachment, f"{link.name} is gone: {reason}")

    def devices_gone(self, keys: Iterable[DeviceKey]) -> None:
        """Devices are no longer reported by their source: they were unplugged."""
        for key in keys:
            for lease in self._state.leases.of_device(key):
                self.end_soon(lease.attachment, "the device was unplugged")

    def free(self, lease: Lease) -> None:
        """Gives the device back: lease, journal row, and word to those who watch."""
        self._state.leases.free(lease.attachment)
        self._noted.discard(lease.attachment)
        with _journal_trouble(lease):
            self._state.store.journal_delete(lease.attachment)
        self._state.registry.touch(lease.key)

    def _journal_detaching(self, lease: Lease) -> None:
        with _journal_trouble(lease):
            self._state.store.journal_state(lease.attachment, DETACHING)

    def _keep(self, lease: Lease) -> None:
        """The target did not let go: all is as it was."""
        self._state.leases.update(lease.attachment, state=lease.state)
        with _journal_trouble(lease):
            self._state.store.journal_state(lease.attachment, lease.state)
        self._state.registry.touch(lease.key)

    async def _unplug(self, plane: DataPlane, lease: Lease, *, may_refuse: bool) -> None:
        """Has the hypervisor take the device away, by force unless the target may refuse."""
        try:
            await plane.unplug(lease, force=not may_refuse)
        except DriverError as error:
            if may_refuse:
                await self._import_again(lease)
                raise failure(error.code, str(error), hint=error.hint) from error
            logger.critical("%s", error)

    def _is_left_over(self, lease: Lease) -> bool:
        """Whether the hypervisor still has what it was told to take away."""
        if self._state.plane is None:
            return False
        try:
            return self._state.plane.is_plugged(lease)
        except DriverError as error:
            logger.critical("whether %s is still in %s: %s", lease.key, lease.vm, error)
            return True  # the safe side

    def _try_again(self, lease: Lease, reason: str) -> None:
        logger.critical("%s is still attached to %s, and so nobody gets it", lease.key, lease.vm)
        if lease.attachment not in self._noted:
            self._noted.add(lease.attachment)
            self._state.audit.write(
                "left_over",
                attachment=lease.attachment,
                device_class=lease.key.device_class,
                device=str(lease.key),
                vm=lease.vm,
                reason=reason,
            )

        async def later() -> None:
            await trio.sleep(AGAIN_SECONDS)
            self._left_over.discard(lease.attachment)
            self.end_soon(lease.attachment, reason)

        if lease.attachment not in self._left_over:
            self._left_over.add(lease.attachment)
            self._nursery.start_soon(later)

    async def _import_again(self, lease: Lease) -> None:
        """The target has said that it let go, and yet has it: it is to know of it again."""
        link = self._state.agents.at(lease.vm, lease.vm_domid)
        if link is None:
            return
        try:
            await link.call("import.start", import_params(lease), timeout=STOP_TIMEOUT)
        except CallError as error:
            logger.warning("%s does not know of its %s: %s", lease.vm, lease.key, error.message)

    async def _stop(
        self, name: str, domid: int, method: str, attachment: str, *, may_refuse: bool = False
    ) -> None:
        """Stops one side, or makes sure that it is cut off; CallError(busy) if it may refuse."""
        link = self._state.agents.at(name, domid)
        if link is None:
            return
        try:
            await link.call(method, {"attachment": attachment}, timeout=STOP_TIMEOUT)
        except CallError as error:
            if self._state.plane is not None and method == "import.stop" and error.code == "busy":
                # It uses the device. The hypervisor takes it away all the same, if it must be.
                if may_refuse:
                    said = harmless_text(error.message)
                    raise failure(
                        "busy",
                        f"it stays attached to {name}: {said}",
                        hint=f"unmount it in {name} and try again",
                    ) from error
                return
            if may_refuse and link.connected:
                # A paused VM, or one whose agent hangs, may have it mounted.
                raise failure(
                    "busy",
                    f"it stays attached to {name}, whose agent does not say whether it is used "
                    f"there ({harmless_text(error.message)})",
                    hint=f"look after {name} and try again; detach --force takes it all the same",
                ) from error
            # That the connection ended is as good as an answer. What the agent answers is not:
            # it may say anything, also "unavailable".
            if link.connected:
                link.disconnect(f"it did not confirm {method}: {error.message}")

    async def _reach(self, step: str) -> None:
        try:
            await self._state.reach(step)
        except Exception:
            logger.exception("fault point %s", step)
