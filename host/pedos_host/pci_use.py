"""What this domain does with a PCI device: disks below it that are mounted, interfaces that are up,
USB devices that are lent.

dom0's service asks before it takes a device from dom0, and the agent of a VM before it lets go of
one. Taking a device away under what uses it loses data, and no toolstack says a word.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from typing import Final

from .exclusive import open_exclusively

# A controller has some dozens of disks; with more than this it is refused, because not all of them
# could be held.
DISKS_MAX: Final = 256
_GONE: Final = frozenset((errno.ENOENT, errno.ENOTDIR, errno.ENODEV, errno.ENXIO, errno.ENOMEDIUM))
_IFF_UP: Final = 1  # linux/if.h
#: With multipath, a disk of NVMe stands below no controller: linux, drivers/nvme/host/multipath.c.
_SUBSYSTEM: Final = re.compile(r"(.*/nvme-subsystem/[^/]+)/.*")
_CONTROLLER: Final = re.compile(r"nvme[0-9]+")
#: A disk that another domain has from this one, by any toolstack.
_BACKEND: Final = re.compile(r"vbd-([0-9]+)-[0-9]+")
_USB_DEVICE: Final = re.compile(r"[0-9]+-[0-9]+(\.[0-9]+)*")


class InUse(Exception):  # noqa: N818 - says what is so
    """`str()` is what uses it, as in "its disk sda is mounted or otherwise in use"."""


@contextlib.contextmanager
def held(sys_root: str, dev_root: str, address: str) -> Iterator[None]:
    """Holds the disks of the device at this address (0000:02:00.0), so that nothing begins to use
    them. InUse; OSError if that cannot be told."""
    with contextlib.ExitStack() as files:
        if (why := _used_without_disks(sys_root, address)) is not None:
            raise InUse(why)
        disks = _disks_below(sys_root, address)
        if len(disks) > DISKS_MAX:
            raise InUse(f"it has more than {DISKS_MAX} disks")
        lent = _lent(sys_root)
        for name in disks:
            if domids := _lent_to(sys_root, name, lent):
                raise InUse(f"its disk {name} is lent to domain {', '.join(domids)}")
            try:
                file = open_exclusively(f"{dev_root}/{name}")
            except OSError as error:
                if error.errno in _GONE:
                    continue  # a drive without a disk in it is not in use either
                raise
            if file is None:
                raise InUse(f"its disk {name} is mounted or otherwise in use")
            files.callback(os.close, file)
        yield


def why_used(sys_root: str, dev_root: str, address: str) -> str | None:
    """What uses the device now; None if nothing does. OSError if that cannot be told."""
    try:
        with held(sys_root, dev_root, address):
            return None
    except InUse as used:
        return str(used)


def _used_without_disks(sys_root: str, address: str) -> str | None:
    for name in _names(f"{sys_root}/class/net"):
        folder = f"{sys_root}/class/net/{name}"
        if _is_below(folder, address) and int(_read(f"{folder}/flags") or "0", 16) & _IFF_UP:
            return f"its network interface {name} is up"
    driver = f"{sys_root}/bus/usb/drivers/usbip-host"
    for name in _names(driver):
        if _USB_DEVICE.fullmatch(name) and _is_below(f"{driver}/{name}", address):
            return f"its USB device {name} is lent"
    folder = f"{sys_root}/bus/pci/devices/{address}"
    if _read(f"{folder}/boot_vga") == "1" and _names(f"{folder}/drm"):
        return "the console of this domain is on it"
    if (virtual := _read(f"{folder}/sriov_numvfs")) not in ("", "0"):
        return f"it has {virtual} virtual functions, which would vanish"
    return None


def _disks_below(sys_root: str, address: str) -> list[str]:
    """The names of its disks, without partitions: who holds a disk holds them."""
    folder = f"{sys_root}/class/block"
    return [
        name
        for name in _names(folder)
        if not os.path.exists(f"{folder}/{name}/partition")
        and _is_disk_of(f"{folder}/{name}", address)
    ]


def _is_disk_of(folder: str, address: str) -> bool:
    if _is_below(folder, address):
        return True
    subsystem = _SUBSYSTEM.fullmatch(os.path.realpath(folder))
    if subsystem is None:
        return False
    controllers = filter(_CONTROLLER.fullmatch, _names(subsystem[1]))
    return any(_is_below(f"{subsystem[1]}/{name}", address) for name in controllers)


def _is_below(path: str, address: str) -> bool:
    """Whether what a link of sysfs leads to is a part of the device."""
    return address in os.path.realpath(path).split("/")


def _lent(sys_root: str) -> dict[str, list[str]]:
    """Of each block device that this kernel serves to other domains, these domains. A backend of
    which the kernel does not say what it serves yet serves nothing yet."""
    found: dict[str, list[str]] = {}
    folder = f"{sys_root}/bus/xen-backend/devices"
    for name in _names(folder):
        if match := _BACKEND.fullmatch(name):
            major, _, minor = _read(f"{folder}/{name}/physical_device").partition(":")
            with contextlib.suppress(ValueError):
                found.setdefault(f"{int(major, 16)}:{int(minor, 16)}", []).append(match[1])
    return found


def _lent_to(sys_root: str, disk: str, lent: dict[str, list[str]]) -> list[str]:
    """Also of its partitions: the kernel does not count a backend as a user."""
    folder = f"{sys_root}/class/block/{disk}"
    parts = [f"{folder}/{each}" for each in _names(folder) if each.startswith(disk)]
    return [domid for each in (folder, *parts) for domid in lent.get(_read(f"{each}/dev"), ())]


def _names(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError as error:
        if error.errno in _GONE:
            return []
        raise


def _read(path: str) -> str:
    """A field of sysfs; "" if there is none."""
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read().strip()
    except OSError as error:
        if error.errno in _GONE:
            return ""
        raise
