"""The machine's own USB devices. Serial numbers and product names come from the hardware: they are
a stranger's text. A device that does not give its name has the one in Debian's hwdata."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Final

from pedos_protocol.kinds import with_kinds

from pedos_agent.device_classes.base import DeviceClass
from pedos_agent.device_classes.described import listed
from pedos_agent.device_classes.sysfs import USB_DEVICE, hex_field, names_of
from pedos_agent.device_classes.usb.usb_kinds import DESCRIPTORS_BYTES, kinds_of
from pedos_agent.inventory.identities import part
from pedos_agent.inventory.local_device import LocalDevice
from pedos_agent.inventory.looking import seen
from pedos_agent.system.hardware_names import HardwareNames
from pedos_agent.system.reading import read_bytes, read_field, read_note

_USB_HUB: Final = "09"
_INTERFACE: Final = ("bInterfaceClass", "bInterfaceSubClass", "bInterfaceProtocol")


class Usb(DeviceClass):
    """USB devices, hubs left out: they can be listed."""

    name = "usb"
    subsystem = "usb"

    def on_machine(
        self, sys_root: Path, proc_root: Path, names: HardwareNames
    ) -> list[LocalDevice]:
        """See DeviceClass."""
        return _scan_usb(sys_root, names)


def _scan_usb(sys_root: Path, hardware: HardwareNames) -> list[LocalDevice]:
    root = str(sys_root / "bus/usb/devices")
    names = names_of(root)
    looks = (
        seen("usb", name, partial(_usb_device, root, name, names, hardware))
        for name in names
        if USB_DEVICE.fullmatch(name)
    )
    return [item for item in looks if item is not None]


def _usb_device(
    root: str, name: str, names: Iterable[str], hardware: HardwareNames
) -> LocalDevice | None:
    folder = f"{root}/{name}"
    if hex_field(folder, "bDeviceClass") == _USB_HUB:
        return None
    vendor, product = hex_field(folder, "idVendor"), hex_field(folder, "idProduct")
    if not vendor or not product:
        return None  # unplugged while it was being read
    serial = part(_serial(folder))
    # The device's own name, if it has one.
    maker, model = hardware.of("usb", vendor, product)
    maker = read_note(f"{folder}/manufacturer") or maker
    model = read_note(f"{folder}/product") or model
    text = " ".join(filter(None, (maker, model)))
    kinds = _usb_kinds(root, name, names)
    identity = with_kinds(f"{vendor}:{product}:{serial}", "usb", kinds)
    # The kernel increments it with each device that is plugged into the bus.
    number = read_field(f"{folder}/devnum")
    return listed("usb", name, identity, text or f"USB device {vendor}:{product}", number)


def _serial(folder: str) -> str:
    """As it is, with blanks at its ends: two that differ in them are two."""
    serial = read_bytes(f"{folder}/serial") or b""
    return serial.removesuffix(b"\n").decode("utf-8", "surrogateescape")


def _usb_kinds(root: str, name: str, names: Iterable[str]) -> list[str | None]:
    """The kinds of its interfaces; None among them if there may be more."""
    try:
        descriptors = read_bytes(f"{root}/{name}/descriptors", DESCRIPTORS_BYTES)
    except OSError as error:
        if error.errno != errno.EFBIG:
            raise
        return [None]
    if descriptors is not None:
        return list(kinds_of(descriptors))
    # As the kernel has it, for the configuration in use.
    folders = [f"{root}/{other}" for other in names if other.startswith(name + ":")]
    return ["u" + "".join(hex_field(each, field) for field in _INTERFACE) for each in folders]
