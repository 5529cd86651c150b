"""One USB device as the kernel has it now: what drives it, and how fast it is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from pedos_protocol.frozen import frozen

from pedos_agent.device_classes.sysfs import USB_DEVICE, hex_field
from pedos_agent.system.reading import is_there, link_target, read_field

#: The driver that lends devices, as the kernel calls it.
HOST: Final = "usbip-host"
_HUB: Final = "09"  # USB 2.0 specification, 11.23.1
#: A folder above the devices that this VM has borrowed.
_IMPORTED: Final = "/vhci_hcd."
# BUSID_SIZE of Linux (drivers/usb/usbip/usbip_common.h), with its end.
_NAME_MAX: Final = 31

# What sysfs says in Mb/s, as USB/IP counts it (Linux, include/uapi/linux/usb/ch9.h).
_SPEEDS: Final = {"1.5": 1, "12": 2, "480": 3, "53.3-480": 3, "5000": 5}
# Faster ones work as that: older versions of vhci-hcd refuse a number for them.
_SUPER_SPEED: Final = 5000  # Mb/s
#: As USB/IP counts.
SUPER: Final = 5


@frozen
class UsbDevice:
    """`driver` is None if no driver has it. `status` is usbip-host's (see `host_driver`), None
    without that driver. `speed` is as USB/IP counts; None if it is not known."""

    name: str
    bus: int
    number: int
    speed: int | None
    driver: str | None
    status: int | None
    is_authorized: bool
    is_hub: bool
    is_imported: bool
    is_configured: bool

    @property
    def devid(self) -> int:
        """Its number in USB/IP."""
        return self.bus << 16 | self.number


def folder_of(sys_root: Path, name: str) -> str:
    """Where sysfs has it."""
    return f"{sys_root}/bus/usb/devices/{name}"


def marks_of(folder: str) -> tuple[str, ...]:
    """What tells the device there from any other of this boot: the kernel's number of it, which
    goes up with each that is plugged into the bus, and from the start again; and that of its folder
    in sysfs, which no other gets. Empty if it was unplugged. OSError."""
    try:
        return read_field(f"{folder}/devnum"), str(os.stat(folder).st_ino)
    except FileNotFoundError:
        return ()


def is_name(name: str) -> bool:
    """Whether this can be a device: nothing else is written to the kernel as a name of one."""
    return len(name) <= _NAME_MAX and USB_DEVICE.fullmatch(name) is not None


def is_hub(folder: str) -> bool:
    """Whether the device there is a hub."""
    return hex_field(folder, "bDeviceClass") == _HUB


def is_imported(folder: str) -> bool:
    """Whether the device there is one that this VM has borrowed."""
    return _IMPORTED in (link_target(folder) or "")


def usb_device(sys_root: Path, name: str) -> UsbDevice | None:
    """The device of that name; None if there is none. OSError if that cannot be told."""
    folder = folder_of(sys_root, name)
    bus, number = read_field(f"{folder}/busnum"), read_field(f"{folder}/devnum")
    if not bus.isdecimal() or not number.isdecimal():
        return None
    driver = link_target(f"{folder}/driver")
    status = read_field(f"{folder}/usbip_status")
    device = UsbDevice(
        name=name,
        bus=int(bus),
        number=int(number),
        speed=_speed(read_field(f"{folder}/speed")),
        driver=None if driver is None else driver.rpartition("/")[2],
        status=int(status) if status.isdecimal() else None,
        is_authorized=read_field(f"{folder}/authorized") != "0",
        is_hub=is_hub(folder),
        is_imported=is_imported(folder),
        is_configured=read_field(f"{folder}/bConfigurationValue") not in ("", "0"),
    )
    return device if is_there(folder) else None  # it may have gone between two fields


def _speed(text: str) -> int | None:
    if text in _SPEEDS:
        return _SPEEDS[text]
    return SUPER if text.isdecimal() and int(text) > _SUPER_SPEED else None
