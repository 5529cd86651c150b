"""A person's words for the kinds of interfaces in an identity (see `kinds`).

USB: the class codes of the USB Implementers Forum; PCI: PCI Code and ID Assignment Specification
1.11, appendix D. A kind has the words of the longest prefix that a table has.

A module of its own, because only commands that show a device need it.
"""

from __future__ import annotations

from .kinds import UNKNOWN, kinds_in, letter_of, open_part

TYPE_CHECKING = False  # as in names.py
if TYPE_CHECKING:
    from collections.abc import Mapping

USB: Mapping[str, str] = {
    "01": "audio",
    "0101": "audio controls",
    "0102": "audio: microphone, loudspeaker or both",
    "0103": "MIDI",
    "02": "communications",
    "0202": "modem or serial port",
    "0206": "network",
    "020d": "network",
    "020e": "mobile broadband",
    "03": "HID: types, points, or has buttons of another sort",
    "030101": "HID: keyboard",
    "030102": "HID: mouse",
    "05": "force feedback",
    "06": "camera for photographs",
    "0601": "photographs and files (PTP, MTP)",
    "07": "printer",
    "08": "mass storage",
    "080250": "mass storage: CD or DVD drive",
    "080400": "mass storage: floppy drive",
    "080650": "mass storage",
    "080662": "mass storage (UAS)",
    "09": "hub",
    "0a": "data of a communications interface",
    "0b": "smart card reader or security key",
    "0d": "content protection",
    "0e": "video",
    "0e01": "video controls",
    "0e02": "video: camera",
    "0f": "health",
    "10": "audio and video",
    "11": "billboard: alternate modes of USB-C",
    "12": "USB-C bridge",
    "13": "bulk display",
    "14": "management (MCTP)",
    "3c": "I3C",
    "dc": "diagnostics",
    "e0": "wireless controller",
    "e00101": "Bluetooth",
    "e00103": "network through a phone (RNDIS)",
    "ef": "miscellaneous",
    "ef0401": "network through a phone (RNDIS)",
    "fe": "application-specific",
    "fe01": "firmware update (DFU)",
    "fe02": "infrared",
    "fe03": "test and measurement",
    "ff": "known to its maker only",
    "ff4201": "Android debugging",
    "ff5d01": "game controller",
}
PCI: Mapping[str, str] = {
    "00": "Unclassified device",
    "01": "Mass storage controller",
    "0101": "IDE interface",
    "0106": "SATA controller",
    "0108": "NVMe controller",
    "02": "Network controller",
    "0200": "Ethernet controller",
    "0280": "Wireless network controller",
    "03": "Display controller",
    "0300": "VGA compatible controller",
    "04": "Multimedia controller",
    "0403": "Audio device",
    "05": "Memory controller",
    "06": "Bridge",
    "0600": "Host bridge",
    "0601": "ISA bridge",
    "0604": "PCI bridge",
    "07": "Communication controller",
    "08": "System peripheral",
    "09": "Input device controller",
    "0a": "Docking station",
    "0b": "Processor",
    "0c": "Serial bus controller",
    "0c03": "USB controller",
    "0c05": "SMBus",
    "0d": "Wireless controller",
    "0e": "Intelligent controller",
    "0f": "Satellite communications controller",
    "10": "Encryption controller",
    "11": "Signal processing controller",
    "12": "Processing accelerator",
}

_BY_LETTER = {"u": USB, "p": PCI}
# What the shipped policy asks about (90-default.policy), which a test compares.
_FIRST = ("u03", "ue0", "uff", "p09", f"u{UNKNOWN}", f"p{UNKNOWN}")


def words(kind: str) -> str:
    """`HID: keyboard` for `u030101`; of a class without words, its number."""
    table = _BY_LETTER.get(kind[:1], {})
    code = kind[1:]
    for length in (6, 4, 2):
        if found := table.get(code[:length]):
            return found
    return f"class {code[:2]}"


def interfaces(device_class: str, identity: str) -> list[tuple[str, str]]:
    """The kinds of a device with their words, in the order of its identity; the last one is the
    mark of unknown kinds if not all are known. Empty for a class without kinds."""
    letter = letter_of(device_class)
    if not letter:
        return []
    unknown = open_part(device_class, identity)
    whole = unknown is None or unknown.fill is not None
    found = [(kind, words(kind)) for kind in (kinds_in(identity)[1] if whole else ())]
    if unknown is not None:
        found.append((letter + UNKNOWN, "more that is not known" if found else "not known"))
    return found


def in_short(device_class: str, identity: str) -> str:
    """The words of a device's kinds, each once: first those with which it may type or point, and
    what is not known, so that a text that is cut shows these."""
    told = interfaces(device_class, identity)
    told.sort(key=lambda each: not each[0].startswith(_FIRST))
    return ", ".join(dict.fromkeys([meaning for _, meaning in told]))
