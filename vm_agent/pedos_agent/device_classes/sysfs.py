"""Reading sysfs, as the classes do that find a machine's own devices in it, and what it says of
devices of one class being parts of another's."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from pedos_protocol.names import natural_key

from pedos_agent.system.reading import names_in, read_field

_HEX: Final = re.compile(r"[0-9a-f]{1,8}")


#: What the kernel calls a USB device: its bus, and the ports on the way to it.
USB_DEVICE: Final = re.compile(r"[0-9]+-[0-9]+(\.[0-9]+)*")


def usb_device_of(path: str) -> str | None:
    """The USB device in whose folder something lies, as it is called among USB devices too; None if
    it is no part of one."""
    return next((each for each in reversed(path.split("/")) if USB_DEVICE.fullmatch(each)), None)


def hex_field(folder: str, name: str) -> str:
    """A number as hexadecimal digits in lower case; "" if there is none. OSError."""
    text = read_field(f"{folder}/{name}").lower().removeprefix("0x")
    return text if _HEX.fullmatch(text) else ""


def boot_of(proc_root: Path) -> str:
    """The kernel's id of this boot, see LocalDevice; "" if it gives none. OSError."""
    return read_field(f"{proc_root}/sys/kernel/random/boot_id")


def names_of(folder: str) -> list[str]:
    """The names in a folder, in natural order. OSError if it cannot be read."""
    return sorted(names_in(folder), key=natural_key)
