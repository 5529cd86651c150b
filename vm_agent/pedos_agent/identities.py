"""What a device says it is, as rules and assignments know it: bounded, and never two as one.

Texts that devices carry (serial numbers, UUIDs) are of any length and any characters. An identity
has few of either, so what had to be cut or replaced is told apart by a digest of the whole.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Final

from .udev_text import decoded

# Hexadecimal digits of a digest: by chance two texts never have the same 48 bits. A device that
# wants to pass for another has no need of that: it can as well say the other's serial number.
DIGEST: Final = 12
# Characters of each part. An identity of three and two colons is within names.IDENTITY_MAX, and so
# is one of a USB device with kinds.KINDS_MAX kinds.
SERIAL_MAX: Final = 64
UUID_MAX: Final = 40  # LVM's are the longest of the usual ones, with 38

_UNUSUAL: Final = re.compile(r"[^A-Za-z0-9._-]")


def part(text: str, limit: int = SERIAL_MAX) -> str:
    """`text` as one part of an identity: itself if it can be, else its beginning and a digest."""
    cleaned = _UNUSUAL.sub("_", text)
    if cleaned == text and len(text) <= limit:
        return text
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:DIGEST]
    return f"{cleaned[: limit - DIGEST - 1]}-{digest}"


def identity_of(said: Mapping[str, str]) -> str:
    """SERIAL:PARTITION-UUID:FILE-SYSTEM-UUID from udev's properties; "" if it has none of them.

    The file system's is left out where there is another one: it changes when a disk is formatted,
    and the disk is the same.
    """
    serial = _serial(said)
    partition = said.get("ID_PART_ENTRY_UUID", "")
    system = decoded(said.get("ID_FS_UUID_ENC", "")) or said.get("ID_FS_UUID", "")
    if serial or partition:
        system = ""
    if not (serial or partition or system):
        return ""
    return ":".join((part(serial), part(partition, UUID_MAX), part(system, UUID_MAX)))


def _serial(said: Mapping[str, str]) -> str:
    """The serial number, with what tells apart the disks behind it: the slots of a card reader have
    one serial number, and so have the namespaces of an NVMe disk."""
    serial = said.get("ID_SERIAL")
    if not serial:
        # Volumes and RAIDs have none; these are their own, which their copies do not have.
        return said.get("ID_WWN") or said.get("DM_UUID") or said.get("MD_UUID") or ""
    for before, name in (("-", "ID_INSTANCE"), ("_", "ID_NSID")):
        # udev appends them to it itself, but for old versions.
        which = said.get(name)
        if which and not serial.endswith(before + which):
            serial += before + which
    return serial
