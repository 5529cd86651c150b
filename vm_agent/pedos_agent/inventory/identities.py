"""The identity of a device, for rules and assignments: bounded, and unique.

Texts that devices carry (serial numbers, UUIDs) have any length and any characters. An identity has
limits for both, so a digest of the whole distinguishes texts that were cut or changed.
"""

from __future__ import annotations

import hashlib
import re
from typing import Final

# Hexadecimal digits of a digest: by chance two texts never have the same 48 bits. A device that
# wants to pass for another does not need that: it can simply claim the other's serial number.
DIGEST: Final = 12
# Characters of each part. An identity of three and two colons is within names.IDENTITY_MAX, and so
# is one of a USB device with kinds.KINDS_MAX kinds.
SERIAL_MAX: Final = 64
UUID_MAX: Final = 40  # LVM's are the longest of the usual ones, with 38

_UNUSUAL: Final = re.compile(r"[^A-Za-z0-9._-]")


def part(text: str, limit: int = SERIAL_MAX) -> str:
    """`text` as one part of an identity: itself if possible, else its beginning and a digest."""
    cleaned = _UNUSUAL.sub("_", text)
    if cleaned == text and len(text) <= limit:
        return text
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:DIGEST]
    return f"{cleaned[: limit - DIGEST - 1]}-{digest}"
