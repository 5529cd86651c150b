"""The machine's own PCI devices, with the names in Debian's hwdata."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Final

from pedos_protocol.kinds import with_kinds

from pedos_agent.device_classes.base import DeviceClass
from pedos_agent.device_classes.described import listed
from pedos_agent.device_classes.sysfs import hex_field, names_of
from pedos_agent.inventory.local_device import LocalDevice
from pedos_agent.inventory.looking import seen
from pedos_agent.system.hardware_names import HardwareNames
from pedos_agent.system.reading import read_note

_PCI_DEVICE: Final = re.compile(r"([0-9a-f]{4,8}):([0-9a-f]{2}):([0-9a-f]{2}\.[0-7])")

# PCI base classes, PCI Code and ID Assignment Specification 1.11, appendix D.
_PCI_CLASSES: Final = {
    "00": "Unclassified device",
    "01": "Mass storage controller",
    "02": "Network controller",
    "03": "Display controller",
    "04": "Multimedia controller",
    "05": "Memory controller",
    "06": "Bridge",
    "07": "Communication controller",
    "08": "System peripheral",
    "09": "Input device controller",
    "0a": "Docking station",
    "0b": "Processor",
    "0c": "Serial bus controller",
    "0d": "Wireless controller",
    "0e": "Intelligent controller",
    "0f": "Satellite communications controller",
    "10": "Encryption controller",
    "11": "Signal processing controller",
    "12": "Processing accelerator",
}
_PCI_SUBCLASSES: Final = {
    "0101": "IDE interface",
    "0106": "SATA controller",
    "0108": "NVMe controller",
    "0200": "Ethernet controller",
    "0280": "Wireless network controller",
    "0300": "VGA compatible controller",
    "0403": "Audio device",
    "0600": "Host bridge",
    "0601": "ISA bridge",
    "0604": "PCI bridge",
    "0c03": "USB controller",
    "0c05": "SMBus",
}


class Pci(DeviceClass):
    """PCI devices: they can be listed."""

    name = "pci"
    subsystem = "pci"

    def on_machine(
        self, sys_root: Path, proc_root: Path, names: HardwareNames
    ) -> list[LocalDevice]:
        """See DeviceClass."""
        return _scan_pci(sys_root, names)


def _scan_pci(sys_root: Path, hardware: HardwareNames) -> list[LocalDevice]:
    root = str(sys_root / "bus/pci/devices")
    found = []
    for name in names_of(root):
        address = _PCI_DEVICE.fullmatch(name)
        if address is None:
            continue
        domain, bus, slot = address.groups()
        # Most machines have one PCI domain, 0000, which is left out as in lspci.
        device_id = f"{bus}_{slot}" if domain == "0000" else f"{domain}_{bus}_{slot}"
        look = partial(_pci_device, f"{root}/{name}", device_id, hardware)
        if (item := seen("pci", device_id, look)) is not None:
            found.append(item)
    return found


def _pci_device(folder: str, device_id: str, hardware: HardwareNames) -> LocalDevice | None:
    vendor, device, kind = (hex_field(folder, field) for field in ("vendor", "device", "class"))
    if not vendor or not device:
        return None
    what = _PCI_SUBCLASSES.get(kind[:4]) or _PCI_CLASSES.get(kind[:2]) or "PCI device"
    maker, model = hardware.of("pci", vendor, device)
    label = f"{maker} {model or device}" if maker else read_note(f"{folder}/label")
    text = f"{what}: {label or f'{vendor}:{device}'}"
    identity = with_kinds(f"{vendor}:{device}:", "pci", [f"p{kind}"])
    return listed("pci", device_id, identity, text)
