"""What a PCI device is, in words: its class, as the device itself says."""

from __future__ import annotations

from pedos_protocol.kind_words import PCI


def class_name(kind: str) -> str:
    """The name of a class in six hexadecimal digits."""
    return PCI.get(kind[:4]) or PCI.get(kind[:2]) or "PCI device"
