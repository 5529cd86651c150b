"""Block devices on Xen: `xl block-attach` from the source's blkback to the target's blkfront.

xl runs in dom0, and its hotplug script in the source. What is attached stands in xenstore, where
the toolstack notes it for itself (/libxl): that, and not what either domain says, is what counts
after a restart of the service, and before anything is taken away.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Protocol

import attrs
import trio
from pedos_protocol.names import frontend_names, is_device_id

from pedos_dom0.drivers.base import DOM0_DOMID, DriverError
from pedos_dom0.drivers.xen_store import (
    Reader,
    Vbd,
    libxl_vbd,
    vbd_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from pedos_dom0.drivers.xl import Xl
    from pedos_dom0.leases import Lease

logger = logging.getLogger(__name__)

# xl itself waits 40 s for a hotplug script, and 10 s for the two ends to let go; a script that
# hangs is killed by then, and xl says which.
ATTACH_SECONDS = 60.0
DETACH_SECONDS = 30.0
# After xl has answered: the state of the backend stands in xenstore at once, or it never will.
SETTLE_SECONDS = 10.0
# From the introduction of a rebooted domain until it has all devices that it will have.
REBOOT_SECONDS = 60.0
# The toolstack takes down what a domain has when that ends, and a detach of ours may come too late
# for it; from then it takes no longer than this to make the next one.
REMEMBERED_SECONDS = 120.0
# Until it is tried again to take away what a VM came back with.
AGAIN_SECONDS = 60.0
# In the source; vm_agent/xen/block says why it is not the one that comes with Xen.
SCRIPT = "/usr/libexec/pedos/block"


class Store(Reader, Protocol):
    """A connection to xenstore of which nobody else waits for the events."""

    def watch(self, path: str) -> None: ...

    async def changed(self) -> set[str]: ...

    def close(self) -> None: ...


def source_path(lease: Lease) -> str:
    """The device's node in the source: its id is the kernel's name for it."""
    device = lease.key.device
    if not is_device_id(device):  # which is what makes it safe between commas
        raise DriverError(f"'{device}' cannot be the name of a block device")
    return f"/dev/{device}"


def attach_arguments(lease: Lease, frontend: str) -> list[str]:
    """The words of `xl block-attach`; see xl-disk-configuration(5). `target=` must be the last."""
    read_only = lease.options.get("read-only") == "yes"
    disk = ["format=raw", f"vdev={frontend}", f"access={'ro' if read_only else 'rw'}"]
    disk.append(f"script={SCRIPT}")
    if lease.backend_domid != DOM0_DOMID:
        disk.append(f"backend={lease.backend_domid}")
    return ["block-attach", str(lease.vm_domid), ",".join([*disk, f"target={source_path(lease)}"])]


class XenBlock:
    """Attaches and detaches by `xl`, and asks xenstore what is attached."""

    def __init__(
        self,
        xl: Xl,
        store: Callable[[], Reader],
        open_store: Callable[[], Store],
        has_ended: Callable[[int], bool],
    ) -> None:
        """`store` is the connection that stands, `open_store` makes one to wait with; `has_ended`
        says of a domain that it will not run any more, if it is there at all."""
        self._xl = xl
        self._store = store
        self._open_store = open_store
        self._has_ended = has_ended
        # VM -> attachments that ended with its domain, or shortly before, and when they did. The
        # toolstack remembers them, and when the VM reboots, gives the next domain those devices
        # again, which nobody has granted it.
        self._remembered: dict[str, list[tuple[float, Lease]]] = {}
        # What dom0 has given: domain and frontend.
        self._given: set[tuple[int, str | None]] = set()
        # Where a domain may yet be given what its VM had before, and what ends the wait for that.
        self._awaited: dict[tuple[int, str], tuple[Lease, trio.CancelScope]] = {}
        # Domains that the toolstack gives nothing more by itself.
        self._complete: set[int] = set()

    def free_frontend(self, domid: int, asked: str | None, taken: Collection[str]) -> str:
        """See DataPlane."""
        for name in (asked,) if asked is not None else frontend_names():
            if name not in taken and self._vbd(domid, name) is None:
                return name
        if asked is not None:
            raise DriverError(f"{asked} is already used in it", code="busy")
        raise DriverError("all its names for block devices are used", code="busy")

    def is_plugged(self, lease: Lease) -> bool:
        """See DataPlane."""
        return self._ours(lease) is not None

    def _ours(self, lease: Lease) -> Vbd | None:
        """Not one that an administrator has put in its place, be it of the same device."""
        if lease.frontend is None:
            return None
        vbd = self._vbd(lease.vm_domid, lease.frontend)
        expected = (lease.backend_domid, source_path(lease), SCRIPT)
        if vbd is None or (vbd.backend_domid, vbd.params, vbd.script) != expected:
            return None
        return vbd

    def _vbd(self, domid: int, frontend: str) -> Vbd | None:
        try:
            return vbd_of(self._store(), domid, frontend)
        except OSError as error:
            raise _silent(error) from error

    async def plug(self, lease: Lease) -> None:
        """See DataPlane."""
        frontend = lease.frontend
        if frontend is None:
            raise DriverError(f"{lease.key} has no name in {lease.vm}")
        what = f"{lease.key} could not be attached to {lease.vm}"
        self._refuse_awaited(lease)
        self._given.add((lease.vm_domid, frontend))
        await self._xl.run(*attach_arguments(lease, frontend), seconds=ATTACH_SECONDS, what=what)
        vbd = self._ours(lease)
        if vbd is None:
            raise DriverError(f"{what}: xl has attached something else as {frontend}")
        if not await self._served(vbd):
            raise DriverError(
                f"{what}: {lease.key.backend} does not serve it",
                hint=f"look at `journalctl -u pedos-devd` in {lease.key.backend}, "
                "and whether its kernel has loaded xen-blkback",
            )

    def _refuse_awaited(self, lease: Lease) -> None:
        """A VM that reboots may be given its old device at any moment, and for as long as it takes
        to take that away again, two VMs would write to it."""
        for other, _ in self._awaited.values():
            if (
                other.vm_domid != lease.vm_domid
                and other.backend_domid == lease.backend_domid
                and _overlap(other.key.device, lease.key.device)
            ):
                raise DriverError(
                    f"{other.vm} had {other.key} and is just rebooting",
                    code="busy",
                    hint=f"try again when {other.vm} has booted",
                )

    async def _served(self, vbd: Vbd) -> bool:
        """Whether the source's hotplug script has come to a good end, waiting for it a moment."""
        path = f"{vbd.backend}/hotplug-status"
        return await self._until(
            path, lambda store: store.read(path) == "connected", SETTLE_SECONDS
        )

    async def _until(self, path: str, done: Callable[[Reader], bool], seconds: float) -> bool:
        try:
            if done(self._store()):
                return True
            store = self._open_store()
            try:
                store.watch(path)
                with trio.move_on_after(seconds):
                    while not done(store):
                        await store.changed()
                return done(store)
            finally:
                store.close()
        except OSError as error:
            raise _silent(error) from error

    async def unplug(self, lease: Lease, *, force: bool) -> None:
        """See DataPlane."""
        self._given.discard((lease.vm_domid, lease.frontend))
        if lease.frontend is None:
            return
        self._remember(lease)
        if self._has_ended(lease.vm_domid):
            # The toolstack takes down what it had, and until then that is attached. It does not for
            # one that has crashed and is kept, or says of itself that it is suspended.
            if not await self._goes(lease):
                await self._detach_by_force(lease)
            return
        if self._ours(lease) is None:
            return
        domid, what = str(lease.vm_domid), _not_detached(lease)
        arguments = ["block-detach", domid, lease.frontend]
        failed: DriverError | None = None
        try:
            await self._xl.run(*arguments, seconds=DETACH_SECONDS, what=what)
        except DriverError as error:
            failed = error
        if self._ours(lease) is None:
            return  # also if xl was not content: the domain may have ended meanwhile
        if failed is None:
            if await self._goes(lease):
                return
            failed = DriverError(f"{what}: it is still there")
        if not force:
            raise DriverError(
                str(failed) if failed.code != "failed" else _refused(lease, failed),
                code="busy",
                hint=f"unmount it in {lease.vm} and try again",
            ) from failed
        await self._detach_by_force(lease)

    async def _goes(self, lease: Lease) -> bool:
        """Whether the toolstack is done with it, waiting for that a moment."""
        assert lease.frontend is not None
        path = libxl_vbd(lease.vm_domid, lease.frontend)
        return await self._until(path, lambda _: self._ours(lease) is None, SETTLE_SECONDS)

    async def _detach_by_force(self, lease: Lease) -> None:
        assert lease.frontend is not None
        words = ("block-detach", "--force", str(lease.vm_domid), lease.frontend)
        await self._xl.run(*words, seconds=DETACH_SECONDS, what=_not_detached(lease))

    def _remember(self, lease: Lease) -> None:
        now = trio.current_time()
        # Of one name in the domain only the last use counts, and there are few names.
        self._remembered[lease.vm] = [
            (when, other)
            for when, other in self._remembered.get(lease.vm, [])
            if other.frontend != lease.frontend and now - when < REMEMBERED_SECONDS
        ] + [(now, lease)]

    def domain_came(self, name: str, domid: int) -> list[Lease]:
        """A VM has a new domain: the attachments of its last one that it might come with.

        Give them to `clear_remembered`.
        """
        remembered = self._remembered.pop(name, [])
        since = trio.current_time() - REMEMBERED_SECONDS
        return [attrs.evolve(lease, vm_domid=domid) for when, lease in remembered if when > since]

    def complete(self, domid: int) -> None:
        """The toolstack is done with making this domain, and gives it nothing more by itself."""
        self._complete.add(domid)
        self._await_no_more(domid)

    def forget(self, domid: int) -> None:
        """There is no such domain any more, and so nothing that the toolstack may give it."""
        self._complete.discard(domid)
        self._await_no_more(domid)

    def _await_no_more(self, domid: int) -> None:
        for other, waiting in self._awaited.values():
            if other.vm_domid == domid:
                waiting.cancel()

    async def clear_remembered(self, lease: Lease) -> None:
        """Takes away what the toolstack gives a VM that reboots, if it does, until it is gone.

        By force: nobody has granted it, so there is nothing that the VM could ask for.
        """
        assert lease.frontend is not None
        place = (lease.vm_domid, lease.frontend)
        if place in self._awaited:
            return  # a new domain was seen, and then a lease of the old one
        waiting = trio.CancelScope()
        self._awaited[place] = (lease, waiting)
        try:
            with waiting:
                if lease.vm_domid not in self._complete:
                    await self._is_given_again(lease, place)
            while True:
                if await self._cleared(lease, place):
                    return
                await trio.sleep(AGAIN_SECONDS)
        finally:
            del self._awaited[place]

    async def _is_given_again(self, lease: Lease, place: tuple[int, str]) -> None:
        try:
            await self._until(
                libxl_vbd(*place),
                lambda _: self._ours(lease) is not None or place in self._given,
                REBOOT_SECONDS,
            )
        except DriverError as error:
            logger.error("what %s came back with: %s", lease.vm, error)

    async def _cleared(self, lease: Lease, place: tuple[int, str]) -> bool:
        """Whether it has not got what it had, or what it has was given to it by dom0."""
        try:
            if place in self._given or self._ours(lease) is None:
                return True
            logger.info("%s came back with %s, which is taken away", lease.vm, lease.key)
            self._remember(lease)
            await self._detach_by_force(lease)
            if await self._goes(lease):
                return True
            logger.critical("%s has %s without a lease", lease.vm, lease.key)
        except DriverError as error:
            logger.critical("%s has %s without a lease: %s", lease.vm, lease.key, error)
        return self._has_ended(lease.vm_domid)


def _overlap(one: str, other: str) -> bool:
    """Whether one may be a part of the other: the kernel's name of a partition begins with that of
    its disk."""
    return one.startswith(other) or other.startswith(one)


def _not_detached(lease: Lease) -> str:
    return f"{lease.key} could not be detached from {lease.vm}"


def _silent(error: OSError) -> DriverError:
    return DriverError(f"xenstore does not answer: {error.strerror or error}", code="unavailable")


def _refused(lease: Lease, failed: DriverError) -> str:
    return f"{lease.vm} does not let go of {lease.key}, which stays attached ({failed})"
