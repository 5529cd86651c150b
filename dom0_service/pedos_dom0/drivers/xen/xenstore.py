"""What xenstore says of domains and of their block devices. It reads a store and keeps nothing.

It believes only paths that dom0 alone may write: /local/domain/N/name and /libxl. What a domain
says of its own frontends and backends (their states) is untrusted.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Protocol

import attrs
import trio
from pedos_protocol.names import is_vm_name, shown

from pedos_dom0.drivers.base import DOM0_DOMID, DOM0_NAME, DomainInfo, DriverError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

logger = logging.getLogger(__name__)

DOMAINS = "/local/domain"
# xenstore itself fires these when a domain is introduced to it, and when one has shut down or is
# gone.
INTRODUCED = "@introduceDomain"
RELEASED = "@releaseDomain"

# In the source; vm_agent/xen/block says why it is not Xen's own script.
SCRIPT = "/usr/libexec/pedos/block"

# A domain number is below DOMID_FIRST_RESERVED (xen/public/xen.h).
_DOMID_MAX = 0x7FEF
# xen-vbd-interface(7): the first sixteen disks xvdX are major 202, sixteen minors each. From xvdq
# on another form applies, with 256 minors.
_XVD_MAJOR = 202
_XVD_MINORS = 16
_XVD_FIRST = 16
_XVD_EXTENDED = 1 << 28
_XVD_EXTENDED_MINORS = 256


class Reader(Protocol):
    """The part of a connection to xenstore that is needed to look at it."""

    def read(self, path: str) -> str | None: ...

    def list(self, path: str) -> list[str]: ...


class Store(Reader, Protocol):
    """A connection to xenstore whose events only its own task waits for."""

    def watch(self, path: str) -> None: ...

    async def changed(self) -> set[str]: ...

    def close(self) -> None: ...


@attrs.frozen
class SeenDomain:
    """A domain as the toolstack has put it into xenstore."""

    domid: int
    name: str


@attrs.frozen
class Vbd:
    """A block device of a domain, from the toolstack's own notes (/libxl)."""

    devid: int
    backend_domid: int
    backend: str  # its path, which the backend's domain writes below
    params: str  # what the backend was told to open
    script: str  # which prepares it there

    @property
    def is_ours(self) -> bool:
        """Whether it was attached by this service, and not by an administrator."""
        return self.script == SCRIPT


def silent(error: OSError) -> DriverError:
    """The message when xenstore itself fails."""
    return DriverError(f"xenstore does not answer: {error.strerror or error}", code="unavailable")


async def wait_for(
    store: Reader,
    open_store: Callable[[], Store],
    path: str,
    done: Callable[[Reader], bool],
    seconds: float,
) -> bool:
    """Waits until something is done, which is looked at when `path` changes, on a connection of its
    own; False if it is not in time. DriverError if xenstore fails."""
    try:
        if done(store):
            return True
        waiting = open_store()
        try:
            waiting.watch(path)
            with trio.move_on_after(seconds):
                while not done(waiting):
                    await waiting.changed()
            return done(waiting)
        finally:
            waiting.close()
    except OSError as error:
        raise silent(error) from error


def domain_of(store: Reader, domid: int) -> SeenDomain | None:
    """One domain; None if xenstore has none of this number that can be one of our VMs."""
    name = store.read(f"{DOMAINS}/{domid}/name")
    if name is None:
        return None
    if not is_vm_name(name) or name == DOM0_NAME:
        logger.debug("domain %d is none of ours: its name is %s", domid, shown(name))
        return None
    return SeenDomain(domid, name)


def seen_domains(store: Reader) -> dict[int, SeenDomain]:
    """All domains but dom0, by number."""
    numbers = (as_domid(text) for text in store.list(DOMAINS))
    found = (domain_of(store, number) for number in numbers if number)
    return {domain.domid: domain for domain in found if domain is not None}


def as_domid(text: str) -> int | None:
    """The number of a domain, dom0 included; None if the text is none."""
    if not text.isascii() or not text.isdecimal() or len(text) > 5:
        return None
    number = int(text)
    return number if DOM0_DOMID <= number <= _DOMID_MAX else None


def picture(
    seen: Iterable[SeenDomain],
    over: Collection[int],
    configured: Mapping[str, str | None],
    in_transit: Collection[str],
) -> dict[str, DomainInfo]:
    """All VMs as they are now: those that run, and those that are configured and do not.

    `configured` has the UUIDs of the configurations. `over` are domains that have ended and are not
    cleared away yet. `in_transit` are VMs that are being started: halted for the time being, but
    not to be started by another request. Of two domains with one name (a VM that reboots) the newer
    counts.
    """
    running = {
        domain.name: DomainInfo(domain.name, domain.domid, "Running", configured.get(domain.name))
        for domain in sorted(seen, key=lambda domain: domain.domid)
        if domain.domid not in over
    }
    names = sorted({*running, *configured, *in_transit})
    return {
        name: running.get(name)
        or DomainInfo(
            name, None, "Transient" if name in in_transit else "Halted", configured.get(name)
        )
        for name in names
    }


def changes(before: Mapping[str, DomainInfo], after: Mapping[str, DomainInfo]) -> list[DomainInfo]:
    """The differences of two pictures to report; a VM that is not known any more is halted."""
    gone = [DomainInfo(name, None, "Halted") for name in before if name not in after]
    return gone + [info for name, info in after.items() if before.get(name) != info]


def vbd_number(frontend: str) -> int:
    """The number of the frontend xvdX, as xenstore has it."""
    letter = frontend.removeprefix("xvd")
    if len(letter) != 1 or not "a" <= letter <= "z":
        raise ValueError(f"{shown(frontend)} is not one of xvda to xvdz")
    disk = ord(letter) - ord("a")
    if disk < _XVD_FIRST:
        return (_XVD_MAJOR << 8) + _XVD_MINORS * disk
    return _XVD_EXTENDED + _XVD_EXTENDED_MINORS * disk


def libxl_vbd(domid: int, frontend: str) -> str:
    """Where the toolstack records that block device; only dom0 may write there."""
    return f"/libxl/{domid}/device/vbd/{vbd_number(frontend)}"


def vbds_of(store: Reader, domid: int) -> dict[str, Vbd]:
    """The block devices that the domain has under one of our names for them, xvda to xvdz."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    names = {str(vbd_number(f"xvd{letter}")): f"xvd{letter}" for letter in letters}
    listed = (names.get(number) for number in store.list(f"/libxl/{domid}/device/vbd"))
    found = {name: vbd_of(store, domid, name) for name in listed if name is not None}
    return {name: vbd for name, vbd in found.items() if vbd is not None}


def vbd_of(store: Reader, domid: int, frontend: str) -> Vbd | None:
    """The block device that the domain has under this name; None if it has none."""
    backend = store.read(f"{libxl_vbd(domid, frontend)}/backend")
    if backend is None:
        return None
    # /local/domain/BACKEND/backend/vbd/DOMID/NUMBER
    parts = backend.split("/")
    number = as_domid(parts[3]) if len(parts) > 3 and backend.startswith(f"{DOMAINS}/") else None
    params, script = (
        store.read(f"{libxl_vbd(domid, frontend)}/{name}") or "" for name in ("params", "script")
    )
    return Vbd(vbd_number(frontend), -1 if number is None else number, backend, params, script)
