"""The machine's own PCI devices, with the names in Debian's hwdata.

A device's id is its port, the way to it through bridges, and its alias is its address
(`pedos_protocol.pci_names`). What a VM was given of dom0's is not its own, and is left out.
"""

from __future__ import annotations

import os
import re
from functools import partial
from pathlib import Path
from typing import Final

import attrs
from pedos_protocol.kinds import with_kinds
from pedos_protocol.pci_names import address_id, is_address, port_id, short_address, way_to

from pedos_agent.device_classes.base import Carrier, DeviceClass, Host
from pedos_agent.device_classes.described import listed
from pedos_agent.device_classes.pci.carrier import PciDevices
from pedos_agent.device_classes.pci.class_names import class_name
from pedos_agent.device_classes.sysfs import boot_of, hex_field, names_of
from pedos_agent.inventory.local_device import LocalDevice
from pedos_agent.inventory.looking import seen
from pedos_agent.system.hardware_names import HardwareNames
from pedos_agent.system.reading import link_target, read_note

#: The bus that Linux's xen-pcifront makes for devices of another domain stands below such a device.
_FRONTEND: Final = re.compile(r"pci-[0-9]+")


class Pci(DeviceClass):
    """PCI devices. VMs get them under Xen alone: those of local mode have no hardware."""

    name = "pci"
    subsystem = "pci"

    def on_machine(
        self, sys_root: Path, proc_root: Path, names: HardwareNames
    ) -> list[LocalDevice]:
        """See DeviceClass."""
        root = str(sys_root / "bus/pci/devices")
        boot = boot_of(proc_root)
        found = []
        for address in filter(is_address, names_of(root)):
            path = link_target(f"{root}/{address}") or address
            if is_imported(path):
                continue
            device_id = port_id(way_to(path))
            look = partial(_pci_device, f"{root}/{address}", device_id, boot, names)
            if (item := seen("pci", device_id, look)) is not None:
                found.append(item)
        return found

    def carrier(self, host: Host) -> Carrier | None:
        """See DeviceClass."""
        return PciDevices(host) if host.settings.xen else None


def is_imported(path: str) -> bool:
    """Whether the device in that folder of sysfs is one that this VM was given."""
    return any(map(_FRONTEND.fullmatch, path.split("/")))


def _pci_device(
    folder: str, device_id: str, boot: str, hardware: HardwareNames
) -> LocalDevice | None:
    vendor, device, kind = (hex_field(folder, field) for field in ("vendor", "device", "class"))
    if not vendor or not device:
        return None
    maker, model = hardware.of("pci", vendor, device)
    label = f"{maker} {model or device}" if maker else read_note(f"{folder}/label")
    text = f"{class_name(kind)}: {label or f'{vendor}:{device}'}"
    identity = with_kinds(f"{vendor}:{device}:", "pci", [f"p{kind}"])
    address = folder.rpartition("/")[2]
    alias = None
    if address_id(address) != device_id:
        alias = address_id(address)
        text = f"{short_address(address)} {text}"
    # sysfs gives no two devices of one boot the same number, and a device keeps it until it is
    # unplugged, whatever drives it.
    found = listed("pci", device_id, identity, text, str(os.stat(folder).st_ino))
    return attrs.evolve(found, device=attrs.evolve(found.device, alias=alias), boot=boot)
