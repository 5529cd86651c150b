"""Block devices on Xen: `xl block-attach` from the source's blkback to the target's blkfront.

xl runs in dom0, and its hotplug script in the source. The toolstack records attached devices in
xenstore, for itself (/libxl). That record, and not what either domain says, counts after a restart
of the service, and before anything is taken away.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from pedos_protocol.names import frontend_names, harmless_text, is_device_id

from pedos_dom0.device_classes.block import CDROM
from pedos_dom0.drivers.base import DOM0_DOMID, DriverError
from pedos_dom0.drivers.carrier import GivenLive
from pedos_dom0.drivers.xen.reclaim import Place, Reclaimer
from pedos_dom0.drivers.xen.xenstore import (
    DOMAINS,
    SCRIPT,
    Reader,
    Store,
    Vbd,
    libxl_vbd,
    silent,
    vbd_number,
    vbd_of,
    wait_for,
)
from pedos_dom0.drivers.xen.xl import WORDS_MAX, quoted

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterable
    from pathlib import Path

    from pedos_dom0.drivers.xen.xl import Xl
    from pedos_dom0.tables.leases import Lease

# xl itself waits 40 s for a hotplug script, and 10 s for the two ends to release the device; by
# then it has killed a hanging script, and says which.
ATTACH_SECONDS = 60.0
DETACH_SECONDS = 30.0
# After xl has answered: the state of the backend is in xenstore at once, or it never will be.
SETTLE_SECONDS = 10.0
# XenbusStateClosed of xen/io/xenbus.h: this end does not use the device any more.
CLOSED = "6"
# The final values of `hotplug-status` that Xen's scripts write.
CONNECTED, FAILED = "connected", "error"


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
    if lease.options.get("devtype") == CDROM:
        disk.append(f"devtype={CDROM}")
    if lease.backend_domid != DOM0_DOMID:
        disk.append(f"backend={lease.backend_domid}")
    return ["block-attach", str(lease.vm_domid), ",".join([*disk, f"target={source_path(lease)}"])]


class XenBlock(GivenLive):
    """The carrier of block devices: attaches and detaches by `xl`, and reads from xenstore what is
    attached."""

    device_class = "block"
    lack = None
    by_hypervisor = True
    before_boot = True

    def __init__(
        self,
        xl: Xl,
        store: Callable[[], Reader],
        open_store: Callable[[], Store],
        has_ended: Callable[[int], bool],
        is_held_back: Callable[[int], bool],
        own_names: Callable[[str], Awaitable[Collection[str]]],
        userdata: Path,
    ) -> None:
        """`store` is the permanent connection, `open_store` makes one to wait with; `has_ended`
        tells of a domain that it will not run any more, if it exists at all, and `is_held_back`
        that it has not run yet; `own_names` are Carrier's; `userdata` is the folder of libxl."""
        self._xl = xl
        self._store = store
        self._open_store = open_store
        self._has_ended = has_ended
        self._is_held_back = is_held_back
        self._own_names = own_names
        # The leases that dom0 has given.
        self._given: set[Place] = set()
        self.reclaimer = Reclaimer(
            store=store,
            take=self._take,
            is_given=self._given.__contains__,
            userdata=userdata,
        )

    def adopt(self, leases: Iterable[Lease]) -> None:
        """See Carrier."""
        self._given.update(place for lease in leases if (place := _place(lease)) is not None)
        self.reclaimer.adopted()

    async def own_names(self, vm: str) -> Collection[str]:
        """See Carrier."""
        return await self._own_names(vm)

    def name_in_target(self, domid: int, asked: str | None, taken: Collection[str]) -> str:
        """See Carrier."""
        for name in (asked,) if asked is not None else frontend_names():
            if name not in taken and self._vbd(domid, name) is None:
                return name
        if asked is not None:
            raise DriverError(f"{asked} is already used in it", code="busy")
        raise DriverError("all its names for block devices are used", code="busy")

    def number(self, lease: Lease) -> str | None:
        """See Carrier. The script writes the number, and the backend opens by it."""
        vbd = self._ours(lease)
        try:
            return None if vbd is None else self._store().read(f"{vbd.backend}/physical-device")
        except OSError as error:
            raise silent(error) from error

    def is_attached(self, lease: Lease) -> bool:
        """See Carrier."""
        return self._ours(lease) is not None

    def _ours(self, lease: Lease) -> Vbd | None:
        """Not one that an administrator has attached in its place, even of the same device."""
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
            raise silent(error) from error

    async def attach(self, lease: Lease) -> None:
        """See Carrier."""
        frontend = lease.frontend
        if frontend is None:
            raise DriverError(f"{lease.key} has no name in {lease.vm}")
        what = f"{lease.key} could not be attached to {lease.vm}"
        self.reclaimer.refuse(lease)
        self._given.add((lease.vm_domid, frontend))
        await self._xl.run(*attach_arguments(lease, frontend), seconds=ATTACH_SECONDS, what=what)
        vbd = self._ours(lease)
        if vbd is None:
            raise DriverError(f"{what}: xl has attached something else as {frontend}")
        await self._check_served(vbd, lease, what)

    async def _check_served(self, vbd: Vbd, lease: Lease, what: str) -> None:
        """DriverError unless the source's hotplug script succeeds within a moment: xl does not wait
        for that of another domain."""
        path = f"{vbd.backend}/hotplug-status"
        await self._until(
            path, lambda store: store.read(path) in (CONNECTED, FAILED), SETTLE_SECONDS
        )
        try:
            if self._store().read(path) == CONNECTED:
                return
            untrusted_words = self._store().read(f"{vbd.backend}/hotplug-error") or ""
        except OSError as error:
            raise silent(error) from error
        raise DriverError(
            f"{what}: {lease.key.backend} does not serve it"
            f"{quoted(harmless_text(untrusted_words, WORDS_MAX))}",
            hint=f"look at `journalctl -u pedos-devd` in {lease.key.backend}, "
            "and whether its kernel has loaded xen-blkback",
        )

    async def _until(self, path: str, done: Callable[[Reader], bool], seconds: float) -> bool:
        return await wait_for(self._store(), self._open_store, path, done, seconds)

    async def detach(self, lease: Lease, *, force: bool) -> None:
        """See Carrier."""
        place = _place(lease)
        if place is None:
            return
        if place in self._given:
            self.reclaimer.remember(lease)
        try:
            await self._take_away(lease, place, force=force)
        finally:
            with contextlib.suppress(DriverError):  # the next call meets the same error
                if self._ours(lease) is None:
                    self._given.discard(place)

    async def _take_away(self, lease: Lease, place: Place, *, force: bool) -> None:
        what = f"{lease.key} could not be detached from {lease.vm}"
        if self._has_ended(lease.vm_domid):
            # The toolstack detaches what the domain had; until then it is attached. It does not do
            # so for a domain that crashed and is kept.
            if not await self._goes(place):
                await self._detach_by_force(place, what)
            return
        if self._ours(lease) is None:
            return
        if force and self._is_held_back(lease.vm_domid):
            await self._detach_by_force(place, what)  # no agent could release it
            return
        words = ["block-detach", str(place[0]), place[1]]
        failed: DriverError | None = None
        try:
            await self._xl.run(*words, seconds=DETACH_SECONDS, what=what)
        except DriverError as error:
            failed = error
        if self._ours(lease) is None:
            return  # also if xl failed: the domain may have ended meanwhile
        if failed is None:
            if await self._goes(place):
                return
            failed = DriverError(f"{what}: it is still there")
        if not force and not self._has_released(place):
            raise DriverError(
                str(failed) if failed.code != "failed" else _refused(lease, failed),
                code="busy",
                hint=f"unmount it in {lease.vm} and try again",
            ) from failed
        await self._detach_by_force(place, what)

    def _has_released(self, place: Place) -> bool:
        """Whether the target reports that it has closed the device, so that it is the source that
        hangs. A false answer harms only the VM that gives it."""
        path = f"{DOMAINS}/{place[0]}/device/vbd/{vbd_number(place[1])}/state"
        try:
            return self._store().read(path) == CLOSED
        except OSError as error:
            raise silent(error) from error

    async def _take(self, place: Place) -> None:
        """Takes away a device without a lease."""
        domid, frontend = place
        await self._detach_by_force(place, f"{frontend} could not be detached from domain {domid}")

    async def _goes(self, place: Place) -> bool:
        """Whether the toolstack is done with that device, waiting a moment for it."""

        def gone(store: Reader) -> bool:
            vbd = vbd_of(store, *place)
            return vbd is None or not vbd.is_ours

        return await self._until(libxl_vbd(*place), gone, SETTLE_SECONDS)

    async def _detach_by_force(self, place: Place, what: str) -> None:
        words = ("block-detach", "--force", str(place[0]), place[1])
        await self._xl.run(*words, seconds=DETACH_SECONDS, what=what)
        if not await self._goes(place):
            raise DriverError(f"{what}: it is still there")


def _place(lease: Lease) -> Place | None:
    return None if lease.frontend is None else (lease.vm_domid, lease.frontend)


def _refused(lease: Lease, failed: DriverError) -> str:
    return f"{lease.vm} does not release {lease.key}, which stays attached ({failed})"
