"""The domains to which this VM's kernel serves block devices (blkback), by any toolstack."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Final

from pedos_agent.system.reading import is_starved, names_in, read_field

# /sys/bus/xen-backend/devices/vbd-DOMID-NUMBER
_BACKEND: Final = re.compile(r"vbd-([0-9]+)-[0-9]+")


def lent(sys_root: Path, dev_numbers: Mapping[str, str]) -> dict[str, set[int]]:
    """Device number -> the domains to which this VM's blkback serves it, by any toolstack. A
    backend whose device is unknown may serve any of them."""
    found: dict[str, set[int]] = {}
    known = set(dev_numbers.values())
    for domid, device in _backends(sys_root):
        if device is None:
            for number in known:
                found.setdefault(number, set()).add(domid)
            continue
        major, _, minor = device.partition(":")
        try:
            number = f"{int(major, 16)}:{int(minor, 16)}"
        except ValueError:
            continue  # not yet connected to a device
        if number in known:
            found.setdefault(number, set()).add(domid)
    return found


def lent_to(domids: Collection[int]) -> str:
    """Why a device that is served to these domains is in use."""
    return f"lent to domain {', '.join(map(str, sorted(domids)))} by the toolstack"


def connecting(sys_root: Path) -> bool:
    """Whether a backend of this VM's blkback does not know its device yet. The hotplug script sets
    it, for which the kernel has no event."""
    return any(device in (None, "", "0:0") for _, device in _backends(sys_root))


def _backends(sys_root: Path) -> Iterator[tuple[int, str | None]]:
    """Of each backend of blkback the domain that it serves, and its device: MAJOR:MINOR in
    hexadecimal digits, None if unknown."""
    folder = f"{sys_root}/bus/xen-backend/devices"
    for name in names_in(folder):
        if match := _BACKEND.fullmatch(name):
            try:
                yield int(match[1]), read_field(f"{folder}/{name}/physical_device")
            except OSError as error:
                if is_starved(error):
                    raise
                yield int(match[1]), None
