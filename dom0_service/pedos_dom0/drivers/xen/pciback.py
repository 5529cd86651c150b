"""What xenstore says of the PCI devices of domains. It reads a store and keeps nothing.

xl's own list of assignable devices cannot tell: after a command that failed, it has devices that a
VM has. So the records of the backend in dom0 count, which dom0 alone may write, and of them those
of domains that exist: a domain that has ended leaves its records behind.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from pedos_protocol.frozen import frozen
from pedos_protocol.pci_names import address_id, is_address

from pedos_dom0.drivers.base import DOM0_DOMID
from pedos_dom0.drivers.xen.xenstore import DOMAINS, as_domid, silent

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pedos_dom0.drivers.xen.xenstore import Reader

_BACKENDS = f"{DOMAINS}/{DOM0_DOMID}/backend/pci"
# XenbusStateConnected of xen/io/xenbus.h: the kernel of the domain has its PCI frontend ready.
_CONNECTED = "4"
# Devices of one domain: slots of the one bus that pciback makes for it, eight functions each
# (drivers/xen/xen-pciback/vpci.c).
_DEVICES_MAX = 256


@frozen
class Given:
    """A PCI device that a domain has. `name_there` is its id among that domain's own; None if it is
    not known yet, or the domain is not paravirtual."""

    address: str
    domid: int
    name_there: str | None


def given(store: Reader) -> list[Given]:
    """All PCI devices that domains have, whoever gave them. OSError."""
    found = []
    for text in store.list(_BACKENDS):
        domid = as_domid(text)
        if domid is not None and domid != DOM0_DOMID:
            found += given_to(store, domid)
    return found


def given_to(store: Reader, domid: int) -> list[Given]:
    """The PCI devices that one domain has; none if it does not exist (any more). OSError."""
    if not exists(store, domid):
        return []
    node = f"{_BACKENDS}/{domid}/0"
    number = store.read(f"{node}/num_devs") or ""
    many = min(int(number), _DEVICES_MAX) if number.isdecimal() else 0
    is_paravirtual = store.read(f"/libxl/{domid}/type") in (None, "pv")
    found = []
    for each in range(many):
        address = store.read(f"{node}/dev-{each}") or ""
        if is_address(address):
            there = store.read(f"{node}/vdev-{each}") if is_paravirtual else None
            found.append(Given(address, domid, _name_there(there)))
    return found


def exists(store: Reader, domid: int) -> bool:
    """Whether there is a domain of this number, if only its remains. OSError."""
    return store.read(f"{DOMAINS}/{domid}/name") is not None


def name_of(store: Reader, domid: int) -> str:
    """What a domain is called, for an error message. OSError."""
    return store.read(f"{DOMAINS}/{domid}/name") or f"domain {domid}"


def takes_more(store: Reader, domid: int) -> bool:
    """Whether a device can be given to a domain that runs: its kernel has connected to the backend,
    so that it had one since it was made. Xen tries it with others too, fails, and then fails until
    they have ended. OSError."""
    return store.read(f"{_BACKENDS}/{domid}/0/state") == _CONNECTED


def _name_there(vdev: str | None) -> str | None:
    """pciback writes DOMAIN:BUS:SLOT.FUNCTION with two digits for the function (xenbus.c)."""
    head, dot, function = (vdev or "").rpartition(".")
    address = f"{head}{dot}{function.removeprefix('0') or '0'}"
    return address_id(address) if is_address(address) else None


@contextmanager
def asking() -> Iterator[None]:
    """Around questions to a store: DriverError instead of OSError."""
    try:
        yield
    except OSError as error:
        raise silent(error) from error
