"""The machine's own USB devices. Serial numbers and product names come from the hardware: they are
a stranger's text. A device that does not give its name has the one in Debian's hwdata."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Final

import attrs
from pedos_protocol.names import DESCRIPTION_MAX, harmless_text

from pedos_agent.device_classes.base import Carrier, DeviceClass, Host
from pedos_agent.device_classes.described import listed
from pedos_agent.device_classes.sysfs import USB_DEVICE, boot_of, names_of
from pedos_agent.device_classes.usb.carrier import UsbDevices
from pedos_agent.device_classes.usb.host_driver import lent_before
from pedos_agent.device_classes.usb.identity import identity_of, numbers_of
from pedos_agent.device_classes.usb.usb_device import is_hub, is_imported, marks_of
from pedos_agent.inventory.local_device import LocalDevice
from pedos_agent.inventory.looking import seen
from pedos_agent.system.hardware_names import HardwareNames
from pedos_agent.system.reading import link_target, read_note

#: Of a device that was lent and left to no driver (`Settings.give_back`).
LEFT: Final = "; a VM had it"


class Usb(DeviceClass):
    """USB devices, without hubs and without those that this VM has borrowed. They are lent under
    Xen alone: the VMs of local mode have no kernels of their own."""

    name = "usb"
    subsystem = "usb"

    def on_machine(
        self, sys_root: Path, proc_root: Path, names: HardwareNames
    ) -> list[LocalDevice]:
        """See DeviceClass."""
        folder = str(sys_root / "bus/usb/devices")
        lent = lent_before(sys_root)
        boot = boot_of(proc_root)
        looks = (
            seen("usb", name, partial(_usb_device, folder, name, names, boot, name in lent))
            for name in names_of(folder)
            if USB_DEVICE.fullmatch(name)
        )
        return [item for item in looks if item is not None]

    def carrier(self, host: Host) -> Carrier | None:
        """See DeviceClass."""
        return UsbDevices(host) if host.settings.xen else None


def _usb_device(
    root: str, name: str, hardware: HardwareNames, boot: str, was_lent: bool
) -> LocalDevice | None:
    folder = f"{root}/{name}"
    if is_hub(folder) or is_imported(folder):
        return None
    numbers, identity, marks = numbers_of(folder), identity_of(folder), marks_of(folder)
    if numbers is None or identity is None or not marks:
        return None  # unplugged while it was being read
    # The device's own name, if it has one.
    maker, model = hardware.of("usb", *numbers)
    maker = read_note(f"{folder}/manufacturer") or maker
    model = read_note(f"{folder}/product") or model
    text = " ".join(filter(None, (maker, model))) or f"USB device {':'.join(numbers)}"
    if was_lent and link_target(f"{folder}/driver") is None:
        # However long the names are that the device gives itself.
        text = harmless_text(text, DESCRIPTION_MAX - len(LEFT)) + LEFT
    return attrs.evolve(listed("usb", name, identity, text, *marks), boot=boot)
