"""What a PCI device is, in words: its class, as the device itself says."""

from __future__ import annotations

from typing import Final

# PCI base classes, PCI Code and ID Assignment Specification 1.11, appendix D.
_CLASSES: Final = {
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
_SUBCLASSES: Final = {
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


def class_name(kind: str) -> str:
    """The name of a class in six hexadecimal digits."""
    return _SUBCLASSES.get(kind[:4]) or _CLASSES.get(kind[:2]) or "PCI device"
