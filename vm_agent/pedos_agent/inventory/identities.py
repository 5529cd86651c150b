"""What a device says it is, as rules and assignments know it: bounded, and never two as one.

Texts that devices carry (serial numbers, UUIDs) are of any length and any characters. An identity
has few of either, so what had to be cut or replaced is told apart by a digest of the whole.
"""

from __future__ import annotations

import hashlib
import re
from typing import Final

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
