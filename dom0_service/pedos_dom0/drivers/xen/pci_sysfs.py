"""The machine's PCI devices as dom0's kernel has them: one look at sysfs, as immutable data."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Final

from pedos_protocol.frozen import frozen
from pedos_protocol.pci_names import is_address, port_id, way_to

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

#: Xen's driver that keeps a device for VMs, as the kernel calls it.
PCIBACK: Final = "pciback"

# PCI Local Bus Specification 3.0, 6.1 and 6.7: where a device's list of capabilities begins, and
# that it has one. There is room for 48 in the 192 bytes that they may be in; a broken device's list
# may go in a circle.
_STATUS, _HAS_CAPABILITIES, _FIRST = 0x06, 0x10, 0x34
_CAPABILITIES_MAX = 48
# PCI Express Base Specification, 7.5.3: the capability, and the type of port in it.
_EXPRESS, _TYPE_AT, _TYPE_SHIFT, _TYPE_MASK = 0x10, 2, 4, 0xF
#: Types of ports.
ROOT_PORT: Final = 4
TO_PCI: Final = 7
INTEGRATED: Final = 9

_GONE: Final = frozenset((errno.ENOENT, errno.ENOTDIR, errno.ENODEV, errno.ENXIO))
_SPACE_BYTES: Final = 256


@frozen
class Function:
    """A PCI device: one function of a slot.

    `way` has the addresses of the bridges above it, from the root down, and its own. `kind` is its
    class, subclass and protocol, in six hexadecimal digits; `vendor` and `device` have four each.
    `port_type` is None for a device without PCI Express. `driver` is None if no driver has it.
    """

    address: str
    way: tuple[str, ...]
    kind: str
    vendor: str
    device: str
    port_type: int | None
    driver: str | None
    can_reset: bool

    @property
    def id(self) -> str:
        """As lists show it."""
        return port_id(self.way)

    @property
    def identity(self) -> str:
        """As dom0's agent reports it (pedos_protocol.kinds)."""
        return f"{self.vendor}:{self.device}::p{self.kind}"

    @property
    def slot(self) -> str:
        """The address without the function."""
        return self.address.rpartition(".")[0]

    @property
    def is_bridge(self) -> bool:
        return self.kind.startswith("06")


@frozen
class Picture:
    """All devices, by address."""

    functions: Mapping[str, Function]

    def called(self, device_id: str) -> Function | None:
        """The device with that id; None if there is none (any more)."""
        return next((each for each in self.functions.values() if each.id == device_id), None)


def look(sys_root: Path) -> Picture:
    """Looks at all devices. OSError."""
    folder = f"{sys_root}/bus/pci/devices"
    found = {}
    for address in filter(is_address, os.listdir(folder)):
        try:
            function = look_at(sys_root, address)
        except OSError as error:
            if error.errno in _GONE:
                continue  # unplugged meanwhile
            raise
        if function is not None:
            found[address] = function
    return Picture(found)


def address_of(sys_root: Path, device_id: str) -> str | None:
    """The address of the device with that id; None if there is none (any more). OSError."""
    folder = f"{sys_root}/bus/pci/devices"
    for address in filter(is_address, os.listdir(folder)):
        try:
            if port_id(way_to(os.readlink(f"{folder}/{address}"))) == device_id:
                return address
        except FileNotFoundError:
            continue
    return None


def id_of(sys_root: Path, address: str) -> str | None:
    """The id of the device at an address; None if there is none (any more). OSError."""
    try:
        return port_id(way_to(os.readlink(f"{sys_root}/bus/pci/devices/{address}")))
    except FileNotFoundError:
        return None


def look_at(sys_root: Path, address: str) -> Function | None:
    """Looks at one device; None if it does not exist. OSError."""
    folder = f"{sys_root}/bus/pci/devices/{address}"
    try:
        path = os.readlink(folder)
    except FileNotFoundError:
        return None
    return Function(
        address=address,
        way=way_to(path),
        kind=_field(f"{folder}/class"),
        vendor=_field(f"{folder}/vendor"),
        device=_field(f"{folder}/device"),
        port_type=_port_type(_space(f"{folder}/config")),
        driver=driver_of(sys_root, address),
        can_reset=os.path.exists(f"{folder}/reset"),
    )


def driver_of(sys_root: Path, address: str) -> str | None:
    """The driver that has a device; None if none has. OSError."""
    try:
        return os.readlink(f"{sys_root}/bus/pci/devices/{address}/driver").rpartition("/")[2]
    except OSError as error:
        if error.errno in _GONE:
            return None
        raise


def reset(sys_root: Path, address: str) -> None:
    """Has the kernel reset a device, in whichever way works. OSError if none does."""
    file = os.open(f"{sys_root}/bus/pci/devices/{address}/reset", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(file, b"1")
    finally:
        os.close(file)


def probe(sys_root: Path, address: str) -> None:
    """Has the kernel find a driver for a device that has none. OSError."""
    file = os.open(f"{sys_root}/bus/pci/drivers_probe", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(file, address.encode())
    finally:
        os.close(file)


def permissive(sys_root: Path) -> frozenset[str]:
    """The devices whose whole configuration space their VMs may write to. OSError."""
    with open(f"{sys_root}/bus/pci/drivers/{PCIBACK}/permissive", encoding="ascii") as file:
        return frozenset(file.read().split())


def _field(path: str) -> str:
    with open(path, encoding="ascii", errors="replace") as file:
        return file.read().strip().removeprefix("0x")


def _space(path: str) -> bytes:
    """The beginning of a configuration space; without privileges, 64 bytes of it."""
    with open(path, "rb") as file:
        return file.read(_SPACE_BYTES)


def _port_type(space: bytes) -> int | None:
    if len(space) <= _FIRST or not space[_STATUS] & _HAS_CAPABILITIES:
        return None
    at = space[_FIRST] & ~3
    for _ in range(_CAPABILITIES_MAX):
        if not at or at + _TYPE_AT >= len(space):
            return None
        if space[at] == _EXPRESS:
            return space[at + _TYPE_AT] >> _TYPE_SHIFT & _TYPE_MASK
        at = space[at + 1] & ~3
    return None
