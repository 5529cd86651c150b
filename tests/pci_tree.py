"""A sysfs of PCI devices, made of files, for tests of the agent and of dom0's driver for Xen."""

from __future__ import annotations

import os
from pathlib import Path

# Types of a device with PCI Express, as its capability says (PCI Express Base Specification,
# 7.5.3.2).
ENDPOINT, ROOT_PORT, UPSTREAM, DOWNSTREAM, TO_PCI, INTEGRATED = 0, 4, 5, 6, 7, 9

BRIDGE = "060400"
USB = "0c0330"


class PciTree:
    """`sys` is its root, as of /sys, and `dev` that of /dev."""

    def __init__(self, root: Path) -> None:
        self.sys = root / "sys"
        self.dev = root / "dev"
        self.dev.mkdir(parents=True, exist_ok=True)
        (self.sys / "bus/pci/devices").mkdir(parents=True)

    def add(
        self,
        way: str,
        *,
        kind: str = USB,
        vendor: str = "1b36",
        device: str = "000d",
        port_type: int | None = None,
        driver: str | None = None,
        reset: bool = True,
        below: str = "pci0000:00",
    ) -> Path:
        """Adds the device at the end of a way, as in `00:1c.0/02:00.0`; its folder."""
        *bridges, address = (f"0000:{each}" for each in way.split("/"))
        folder = self.sys.joinpath("devices", below, *bridges, address)
        folder.mkdir(parents=True, exist_ok=True)
        fields = {"vendor": f"0x{vendor}", "device": f"0x{device}", "class": f"0x{kind}"}
        for name, text in fields.items():
            (folder / name).write_text(f"{text}\n")
        (folder / "config").write_bytes(_config(port_type))
        if reset:
            (folder / "reset").touch()
        link = self.sys / "bus/pci/devices" / address
        link.symlink_to(os.path.relpath(folder, link.parent))
        if driver is not None:
            self.bind(address, driver)
        return folder

    def folder(self, address: str) -> Path:
        return (self.sys / "bus/pci/devices" / address).resolve()

    def bind(self, address: str, driver: str | None) -> None:
        link = self.folder(address) / "driver"
        link.unlink(missing_ok=True)
        if driver is not None:
            of_driver = self.sys / "bus/pci/drivers" / driver
            of_driver.mkdir(parents=True, exist_ok=True)
            link.symlink_to(of_driver)

    def disk(self, folder: Path, name: str) -> Path:
        """A disk somewhere below a folder of sysfs."""
        made = folder / "block" / name
        made.mkdir(parents=True)
        link = self.sys / "class/block" / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(made, link.parent))
        (self.dev / name).touch()
        return made

    def interface(self, address: str, name: str, *, up: bool) -> None:
        made = self.folder(address) / "net" / name
        made.mkdir(parents=True)
        (made / "flags").write_text("0x1003\n" if up else "0x1002\n")
        link = self.sys / "class/net" / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(made, link.parent))


def _config(port_type: int | None) -> bytes:
    """A configuration space: a capability that does not matter, and PCI Express, if any."""
    space = bytearray(256)
    space[0x06] = 0x10  # there are capabilities
    space[0x34] = 0x40
    space[0x40:0x42] = bytes((0x05, 0 if port_type is None else 0x60))
    if port_type is not None:
        space[0x60:0x64] = bytes((0x10, 0, 0x02 | port_type << 4, 0))
    return bytes(space)
