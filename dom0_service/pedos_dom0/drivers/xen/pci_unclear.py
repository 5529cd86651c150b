"""PCI devices of which nobody knows whether a VM has them, as an xl that gives or takes them was
interrupted, or said nothing and xenstore does not have what it did. The hypervisor alone may know.

Such a device may be given to no VM, and dom0's driver would write into the one that has it, so it
stays with pciback until nothing is left of that VM's domain. The attachment may be over long before
that. What is known here ends with the service.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pedos_protocol.frozen import frozen

from pedos_dom0.drivers.base import NO_DOMAIN, DriverError
from pedos_dom0.drivers.xen import pciback
from pedos_dom0.drivers.xen.xenstore import seen_domains
from pedos_dom0.drivers.xen.xl import Unfinished

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from pedos_dom0.drivers.xen.xenstore import Reader
    from pedos_dom0.tables.leases import Lease

logger = logging.getLogger(__name__)


@frozen
class MayHave:
    """A domain that may have a device; NO_DOMAIN if it is not known whether one was made."""

    device: str  # its id: the address may not be known, or not be there any more
    vm: str
    domid: int

    def refusal(self, name: str) -> DriverError:
        """Why nobody gets the device."""
        where = self.vm if self.domid == NO_DOMAIN else f"{self.vm} (domain {self.domid})"
        return DriverError(
            f"{name} may still be in {where}: an xl that gave or took it was interrupted, or did "
            "not do what it said",
            code="busy",
            hint=f"qvm-shutdown {self.vm}: the device is free when nothing is left of that domain",
        )


class Unclear:
    """All such devices."""

    def __init__(self, store: Callable[[], Reader]) -> None:
        self._store = store
        self._attachments: dict[str, Lease] = {}  # which are not over
        self._left: set[MayHave] = set()  # of attachments that are over

    def note(self, lease: Lease) -> None:
        """From now on it is unclear whether its VM has the device."""
        self._attachments[lease.attachment] = lease

    def __contains__(self, attachment: str) -> bool:
        return attachment in self._attachments

    def settle(self, attachments: Iterable[str]) -> None:
        """It is known of these attachments who has the device."""
        for attachment in attachments:
            self._attachments.pop(attachment, None)

    @contextmanager
    def moving(self, leases: Iterable[Lease]) -> Iterator[None]:
        """Around an xl that gives a VM these devices, or takes them from it: until it has ended by
        itself, it is unclear whether the VM has them. Who runs it may be cancelled, so that is
        noted before. One that fails leaves unclear what was so before it."""
        moved = {lease.attachment: lease for lease in leases}
        fresh = moved.keys() - self._attachments.keys()
        for lease in moved.values():
            self.note(lease)
        try:
            yield
        except Unfinished:
            raise
        except DriverError:
            self.settle(fresh)
            raise
        self.settle(moved)

    def close(self, lease: Lease) -> bool:
        """An attachment is over; whether it is unclear if its VM has the device all the same."""
        if lease.attachment not in self._attachments:
            return False
        del self._attachments[lease.attachment]
        self._left.add(MayHave(lease.key.device, lease.vm, lease.vm_domid))
        return True

    def left(self) -> dict[str, MayHave]:
        """Who may have what, of attachments that are over, by device. The only place where that is
        forgotten: when nothing is left of the domain. DriverError."""
        if self._left:
            with pciback.asking():
                store = self._store()
                self._left = {now for each in self._left for now in _as_of_now(store, each)}
        return {each.device: each for each in sorted(self._left, key=lambda each: each.domid)}

    def may_be_in_a_vm(self, device: str) -> bool:
        """Whether a VM may have it after its attachment; if that cannot be told, it may."""
        try:
            return device in self.left()
        except DriverError as error:
            logger.warning("whether a VM has dom0:%s is not known: %s", device, error)
            return True


def _as_of_now(store: Reader, each: MayHave) -> list[MayHave]:
    """Those domains of which something is left. OSError."""
    if each.domid != NO_DOMAIN:
        return [each] if pciback.exists(store, each.domid) else []
    # Its next domain is another one, so it does not remain a matter of its name.
    domids = [seen.domid for seen in seen_domains(store).values() if seen.name == each.vm]
    return [MayHave(each.device, each.vm, domid) for domid in domids]
