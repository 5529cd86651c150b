"""Which boot of this machine's kernel this is."""

from __future__ import annotations

from pathlib import Path
from typing import Final

BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")  # random(4)


def boot_id() -> str:
    """Another text after each boot. OSError."""
    return BOOT_ID.read_text("ascii").strip()
