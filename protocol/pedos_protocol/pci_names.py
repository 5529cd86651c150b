"""How PCI devices are called: by the way to one (its port), and by its address.

sysfs has a device below all bridges on the way to it: devices/pci0000:00/0000:00:1c.0/0000:02:00.0
The firmware numbers the buses behind bridges anew when a card is added, so the address 02:00.0 may
be another device tomorrow. The way to it, slot by slot from the root, changes only when the device
is moved: `00_1c.0-00.0`. On a root bus the two names are the same, as in `00_1c.0`.

Ids have `_` for `:`, which separates the parts of a rule's argument.
"""

from __future__ import annotations

import re

from .names import DEVICE_ID_MAX

#: A PCI device as the kernel calls it: DOMAIN:BUS:SLOT.FUNCTION.
_ADDRESS = re.compile(r"([0-9a-f]{4,8}):([0-9a-f]{2}):([0-9a-f]{2}\.[0-7])")
#: Most machines have this domain alone, and it is left out, as lspci does.
_USUAL_DOMAIN = "0000"


def is_address(text: str) -> bool:
    """Is `text` what the kernel calls a PCI device: 0000:02:00.0?"""
    return _ADDRESS.fullmatch(text) is not None


def address_id(address: str) -> str:
    """The address as an id: 02_00.0, with the domain if that is not the usual one. ValueError."""
    domain, bus, rest = _parts(address)
    return f"{bus}_{rest}" if domain == _USUAL_DOMAIN else f"{domain}_{bus}_{rest}"


def address_of_id(text: str) -> str:
    """The address that an id stands for, if it is one of an address. ValueError."""
    address = text.replace("_", ":")
    return address if is_address(address) else _checked(f"{_USUAL_DOMAIN}:{address}")


def short_address(address: str) -> str:
    """The address as lspci shows it: 02:00.0. ValueError."""
    return address_id(address).replace("_", ":")


def way_to(path: str) -> tuple[str, ...]:
    """The addresses of the bridges on the way to a device, from the root down, and its own."""
    return tuple(part for part in path.split("/") if is_address(part))


def port_id(way: tuple[str, ...]) -> str:
    """The id of the device at the end of a way. That of a way that is too long for an id (there are
    no such machines) is the address. ValueError."""
    root, *below = way
    port = "-".join([address_id(root), *(_parts(each)[2] for each in below)])
    return port if len(port) <= DEVICE_ID_MAX else address_id(way[-1])


def _checked(address: str) -> str:
    _parts(address)
    return address


def _parts(address: str) -> tuple[str, str, str]:
    found = _ADDRESS.fullmatch(address)
    if found is None:
        raise ValueError(f"{address!r} is no address of a PCI device")
    domain, bus, rest = found.groups()
    return domain, bus, rest
