"""Devices that a domain has without a lease, and how they are taken away.

Xen's toolstack remembers what a domain had, and gives it to the next one of a VM that reboots, or
to the same one after a soft reset; and what a killed service left half done may stay attached. Our
hotplug script tells our devices from all others, so it does not matter how one got there. Once the
toolstack has made a domain, every device of ours that dom0 did not give it is taken away by force:
the VM has no claim to it. While the domain may get such a device, or has it, no other VM gets it:
two VMs would write to it.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import trio
from pedos_host.folder_watch import FolderWatch
from pedos_protocol.frozen import frozen

from pedos_dom0.drivers.base import RETRY_SECONDS, DriverError
from pedos_dom0.drivers.xen.xenstore import silent, vbds_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from pedos_dom0.drivers.xen.xenstore import Reader
    from pedos_dom0.tables.leases import Lease

logger = logging.getLogger(__name__)

# Here libxl keeps each domain's configuration, and writes it as the last step of making one.
USERDATA = Path("/var/lib/xen")
# xl waits 40 s for a disk's script; a domain that is not complete after this has another toolstack.
MADE_SECONDS = 120.0
# The toolstack detaches what a domain has when that ends, and a detach of ours may come too late;
# from then it takes no longer than this to make the next domain.
REMEMBERED_SECONDS = 120.0

#: A domain, and the name of a block device in it.
Place = tuple[int, str]


@frozen
class _Unleased:
    """A device of ours that dom0 did not give."""

    place: Place
    backend_domid: int
    device: str  # as its source names it

    def __str__(self) -> str:
        return f"{self.device} of domain {self.backend_domid}"


class _Settling:
    """A domain that may get devices from the toolstack, or has got some."""

    def __init__(self, name: str, domid: int, had: list[Lease], *, again: bool) -> None:
        self.name = name
        self.domid = domid
        # It comes back with its number, after a soft reset: it was made long ago.
        self.again = again
        # What its VM had, and what it may therefore get.
        self.had = had
        # It has run, or it is gone.
        self.complete = trio.Event()


class Reclaimer:
    """Knows which devices others must not get for the time being, and takes them away.

    `take` detaches by force and returns when it is gone, DriverError if it is not; `is_given` tells
    whether dom0 gave the device at a place; `userdata` is the folder of libxl.
    """

    def __init__(
        self,
        *,
        store: Callable[[], Reader],
        take: Callable[[Place], Awaitable[None]],
        is_given: Callable[[Place], bool],
        userdata: Path,
    ) -> None:
        self._store = store
        self._take = take
        self._is_given = is_given
        self._userdata = userdata
        self._adopted = trio.Event()
        # VM -> attachments that ended with its domain, or shortly before, and when they did.
        self._remembered: dict[str, list[tuple[float, Lease]]] = {}
        self._known: set[int] = set()  # domains that came and have not gone
        self._settling: dict[int, _Settling] = {}
        self._unleased: list[_Unleased] = []

    def adopted(self) -> None:
        """dom0's leases are known. Nothing is taken away before."""
        self._adopted.set()

    def remember(self, lease: Lease) -> None:
        """A leased device is being taken away, perhaps because the VM reboots."""
        now = trio.current_time()
        # Of one name in the domain only the last use counts, and there are few names.
        self._remembered[lease.vm] = [
            (when, other)
            for when, other in self._remembered.get(lease.vm, [])
            if other.frontend != lease.frontend and now - when < REMEMBERED_SECONDS
        ] + [(now, lease)]
        for settling in self._settling.values():
            if settling.name == lease.vm and settling.domid >= lease.vm_domid:
                settling.had.append(lease)  # that one is there already

    def domain_came(self, name: str, domid: int) -> None:
        """A domain is new, or exists when the service begins; call `settle` for it."""
        since = trio.current_time() - REMEMBERED_SECONDS
        had = [lease for when, lease in self._remembered.pop(name, []) if when > since]
        self._settling[domid] = _Settling(name, domid, had, again=domid in self._known)
        self._known.add(domid)

    def complete(self, domid: int) -> None:
        """The domain has run, so the toolstack gives it nothing more by itself."""
        if (settling := self._settling.get(domid)) is not None:
            settling.complete.set()

    def forget(self, domid: int) -> None:
        """There is no such domain any more."""
        self.complete(domid)
        self._settling.pop(domid, None)
        self._known.discard(domid)
        self._unleased = [unleased for unleased in self._unleased if unleased.place[0] != domid]

    def refuse(self, lease: Lease) -> None:
        """DriverError(busy) if another domain may have what this lease would give."""

        def is_in_the_way(domid: int, backend_domid: int, device: str) -> bool:
            return (
                domid != lease.vm_domid
                and backend_domid == lease.backend_domid
                and _overlap(device, lease.key.device)
            )

        for settling in self._settling.values():
            for other in settling.had:
                if is_in_the_way(settling.domid, other.backend_domid, other.key.device):
                    raise DriverError(
                        f"{other.vm} had {other.key} and is just rebooting",
                        code="busy",
                        hint=f"try again when {other.vm} has booted",
                    )
        for unleased in self._unleased:
            domid, frontend = unleased.place
            if is_in_the_way(domid, unleased.backend_domid, unleased.device):
                raise DriverError(
                    f"domain {domid} has {unleased} without a lease, and does not release it",
                    code="busy",
                    hint=f"xl block-detach --force {domid} {frontend}",
                )

    async def settle(self, domid: int) -> None:
        """Takes away what the domain has without a lease; returns when no more can come."""
        if (settling := self._settling.get(domid)) is None:
            return
        try:
            await self._adopted.wait()
            await self._until_made(settling)
            await self._clear(settling)
            if settling.again:
                with trio.move_on_after(MADE_SECONDS):
                    await settling.complete.wait()
                await self._clear(settling)
        finally:
            if self._settling.get(domid) is settling:
                del self._settling[domid]

    async def _until_made(self, settling: _Settling) -> None:
        """If a device is taken away earlier, the toolstack gives up the whole domain."""

        async def look(scope: trio.CancelScope) -> None:
            try:
                with FolderWatch([self._userdata]) as watch:
                    while not self._is_made(settling.domid):
                        await watch.changed()
            except OSError as error:
                logger.error("%s cannot be watched: %s", self._userdata, error)
            else:
                scope.cancel()

        if self._is_made(settling.domid):
            return  # as when the service begins, with many domains
        with trio.move_on_after(MADE_SECONDS):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(look, nursery.cancel_scope)
                await settling.complete.wait()
                nursery.cancel_scope.cancel()

    def _is_made(self, domid: int) -> bool:
        return any(self._userdata.glob(f"userdata-d.{domid}.*.libxl-json"))

    async def _clear(self, settling: _Settling) -> None:
        """Returns when the domain has no device of ours that dom0 did not give it."""
        while True:
            try:
                for unleased in self._find(settling.domid):
                    logger.warning(
                        "%s has %s without a lease, which is taken away", settling.name, unleased
                    )
                    await self._take(unleased.place)
                    self._unleased = [other for other in self._unleased if other != unleased]
            except DriverError as error:
                logger.critical("%s: %s", settling.name, error)
            else:
                return
            await trio.sleep(RETRY_SECONDS)

    def _find(self, domid: int) -> list[_Unleased]:
        try:
            every = vbds_of(self._store(), domid)
        except OSError as error:
            raise silent(error) from error
        found = [
            _Unleased((domid, name), vbd.backend_domid, vbd.params.removeprefix("/dev/"))
            for name, vbd in every.items()
            if vbd.is_ours and not self._is_given((domid, name))
        ]
        self._unleased = [
            unleased for unleased in self._unleased if unleased.place[0] != domid
        ] + found
        return found


def _overlap(one: str, other: str) -> bool:
    """Whether they are the same or one is a part of the other, by the kernel's names."""
    return one == other or _is_part(one, other) or _is_part(other, one)


def _is_part(part: str, disk: str) -> bool:
    """Like sda1 and sda, and nvme0n1p1 and nvme0n1; sdaa and nvme0n11 are others."""
    number = part.removeprefix(disk + "p" if disk[-1:].isdigit() else disk)
    return number != part and number.isdecimal()
