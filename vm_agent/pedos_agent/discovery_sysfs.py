"""The machine's own usb, pci and sound devices, as dom0's agent lists them.

Read from sysfs and /proc/asound, whose roots are parameters so that tests bring their own tree.
Serial numbers and product names come from the hardware: they are a stranger's text.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Final

import trio
from pedos_protocol.agent_messages import Device
from pedos_protocol.names import IDENTITY_MAX, harmless_text, natural_key

from .found import Found
from .uevents import KERNEL, heard, opened

log = logging.getLogger(__name__)

FIELD_BYTES: Final = 256  # of one sysfs attribute; the kernel's own limit is a page
SERIAL_MAX: Final = 48  # leaves room in an identity for eight interfaces and more
_SUBSYSTEMS: Final = ("usb", "pci", "sound")

_USB_DEVICE: Final = re.compile(r"[0-9]+-[0-9]+(\.[0-9]+)*")
_PCI_DEVICE: Final = re.compile(r"([0-9a-f]{4,8}):([0-9a-f]{2}):([0-9a-f]{2}\.[0-7])")
_HEX: Final = re.compile(r"[0-9a-f]{1,8}")
_USB_HUB: Final = "09"

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


def scan(sys_root: Path = Path("/sys"), proc_root: Path = Path("/proc")) -> list[Found]:
    """Look at the machine once; what cannot be read is not listed."""
    return [*_scan_mic(proc_root), *_scan_usb(sys_root), *_scan_pci(sys_root)]


async def watch(
    deliver: Callable[[list[Found]], None],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Deliver what is there, now and after every kernel event; started() after the first time."""
    with contextlib.closing(opened(KERNEL, missing="usb and pci are listed once")) as events:
        first = True
        while True:
            deliver(await trio.to_thread.run_sync(scan))
            if first:
                task_status.started()
                first = False
            await heard(events, _SUBSYSTEMS)


def _field(folder: str, name: str) -> str:
    try:
        with open(os.path.join(folder, name), "rb") as file:
            return file.read(FIELD_BYTES).decode("utf-8", "replace").strip()
    except OSError:
        return ""


def _hex(folder: str, name: str) -> str:
    text = _field(folder, name).lower().removeprefix("0x")
    return text if _HEX.fullmatch(text) else ""


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder), key=natural_key)
    except OSError:
        return []


def _listed(device_class: str, device_id: str, identity: str, description: str) -> Found:
    return Found(
        Device(
            device_class=device_class,
            device=device_id,
            identity=identity,
            description=harmless_text(description),
            size=None,
            parent=None,
            read_only=False,
            busy=None,
        )
    )


def _scan_usb(sys_root: Path) -> list[Found]:
    root = sys_root / "bus/usb/devices"
    names = _names(root)
    found = []
    for name in names:
        folder = str(root / name)
        if not _USB_DEVICE.fullmatch(name) or _hex(folder, "bDeviceClass") == _USB_HUB:
            continue
        vendor, product = _hex(folder, "idVendor"), _hex(folder, "idProduct")
        if not vendor or not product:
            continue  # unplugged while it was being read
        interfaces = [
            "u" + "".join(_hex(str(root / other), f"bInterface{part}") for part in _INTERFACE)
            for other in names
            if other.startswith(name + ":")
        ]
        serial = re.sub(r"[^A-Za-z0-9._-]", "_", _field(folder, "serial"))[:SERIAL_MAX]
        text = " ".join(filter(None, (_field(folder, "manufacturer"), _field(folder, "product"))))
        identity = _bounded_identity(f"{vendor}:{product}:{serial}:", interfaces)
        found.append(_listed("usb", name, identity, text or f"USB device {vendor}:{product}"))
    return found


_INTERFACE: Final = ("Class", "SubClass", "Protocol")


def _bounded_identity(head: str, interfaces: list[str]) -> str:
    """Append interfaces, each once and whole: a cut one would read as another kind of device."""
    for interface in dict.fromkeys(interfaces):
        if len(head) + len(interface) > IDENTITY_MAX:
            break
        head += interface
    return head


def _scan_pci(sys_root: Path) -> list[Found]:
    root = sys_root / "bus/pci/devices"
    found = []
    for name in _names(root):
        address = _PCI_DEVICE.fullmatch(name)
        if address is None:
            continue
        folder = str(root / name)
        vendor, device, kind = (_hex(folder, part) for part in ("vendor", "device", "class"))
        if not vendor or not device:
            continue
        domain, bus, slot = address.groups()
        # Most machines have one PCI domain, 0000, which is left out as in lspci.
        device_id = f"{bus}_{slot}" if domain == "0000" else f"{domain}_{bus}_{slot}"
        what = _PCI_SUBCLASSES.get(kind[:4]) or _PCI_CLASSES.get(kind[:2]) or "PCI device"
        label = _field(folder, "label")
        text = f"{what}: {label or f'{vendor}:{device}'}"
        found.append(_listed("pci", device_id, f"{vendor}:{device}::p{kind}", text))
    return found


def _scan_mic(proc_root: Path) -> list[Found]:
    # One line a PCM: "00-00: ALC3246 Analog : ALC3246 Analog : playback 1 : capture 1"
    try:
        with open(proc_root / "asound/pcm", "rb") as file:
            lines = file.read(1 << 16).decode("utf-8", "replace").split("\n")
    except OSError:
        return []
    for line in lines:
        fields = [field.strip() for field in line.split(":")]
        if any(field.startswith("capture") for field in fields):
            name = fields[1] if len(fields) > 1 else ""
            return [_listed("mic", "mic", "", name or "Microphone")]
    return []
