"""Names of makers and models, by the numbers of PCI and USB, from Debian's package hwdata.

The two files have about a megabyte each. They are read when a look finds a device with new numbers,
searched for them, and dropped after it. So a VM without such devices never reads them, and the
others once, in the thread of their first look. Without the files there are no names, and lists show
the numbers.
"""

from __future__ import annotations

import re
from typing import Final

from pedos_agent.system.reading import is_starved, read_bytes

#: Where Debian's packages have them: hwdata, or pci.ids and usb.ids.
FOLDERS: Final = ("/usr/share/hwdata", "/usr/share/misc")
# Several times their size; a longer file is another one.
FILE_BYTES: Final = 8 << 20
# Numbers that are remembered: more than a machine ever sees. Beyond it, all are looked up again.
KEPT_MAX: Final = 1024

_NUMBER: Final = re.compile(r"[0-9a-f]{4}")
# Behind the lines of a vendor's devices, which begin with a tab; there may be comments among them.
_NEXT_VENDOR: Final = re.compile(rb"\n(?![\t#])")

Names = tuple[str, str]


class HardwareNames:
    """Names of vendors and devices. `folders` are searched in their order."""

    def __init__(self, folders: tuple[str, ...] = FOLDERS) -> None:
        self._folders = folders
        self._known: dict[tuple[str, str, str], Names] = {}
        self._texts: dict[str, bytes] = {}

    def of(self, bus: str, vendor: str, device: str) -> Names:
        """The vendor's name and the device's, "" if one is not known. `bus` is pci or usb, the
        numbers are four hexadecimal digits in lower case. OSError if this process lacks something
        for it."""
        key = (bus, vendor, device)
        found = self._known.get(key)
        if found is None:
            found = names_in(self._text(bus), vendor, device)
            if len(self._known) >= KEPT_MAX:
                self._known.clear()
            self._known[key] = found
        return found

    def forget_files(self) -> None:
        """Free the memory of the files; results are remembered."""
        self._texts.clear()

    def _text(self, bus: str) -> bytes:
        text = self._texts.get(bus)
        if text is None:
            text = self._texts[bus] = self._read(bus)
        return text

    def _read(self, bus: str) -> bytes:
        for folder in self._folders:
            try:
                text = read_bytes(f"{folder}/{bus}.ids", FILE_BYTES)
            except OSError as error:
                if is_starved(error):
                    raise
                text = None
            if text:
                return text
        return b""


def names_in(text: bytes, vendor: str, device: str) -> Names:
    """The content of such a file: lines `VVVV  Vendor`, and below each `<tab>DDDD  Device`."""
    if not (_NUMBER.fullmatch(vendor) and _NUMBER.fullmatch(device)):
        return "", ""
    start = b"\n%s  " % vendor.encode()
    at = 0 if text.startswith(start[1:]) else text.find(start) + 1
    if not at and not text.startswith(start[1:]):
        return "", ""
    next_vendor = _NEXT_VENDOR.search(text, at)
    end = next_vendor.start() if next_vendor else len(text)
    model = b"\n\t%s  " % device.encode()
    found = text.find(model, at, end)
    return _line(text, at + len(start) - 1), _line(text, found + len(model)) if found >= 0 else ""


def _line(text: bytes, at: int) -> str:
    end = text.find(b"\n", at)
    return text[at : end if end >= 0 else len(text)].decode("utf-8", "replace").strip()
