"""What the target's kernel has to know of a device, from the source by way of dom0: a text that
only this class reads. It is the source VM's, so it is parsed here and nowhere else."""

from __future__ import annotations

import re
from typing import Final

from pedos_protocol.errors import CallError
from pedos_protocol.frozen import frozen

_TEXT: Final = re.compile(r"([0-9]{5,9}) ([1-5])")
_BUS_MAX: Final = 0xFFFF  # and of devices on one: 16 bits each


@frozen
class Handover:
    """The number of a device in USB/IP, and its speed as USB/IP counts."""

    devid: int
    speed: int

    def __str__(self) -> str:
        return f"{self.devid} {self.speed}"


def parse_handover(untrusted_text: str | None) -> Handover:
    """CallError if the source did not say, or it cannot be."""
    match = _TEXT.fullmatch(untrusted_text or "")
    if match is None:
        raise CallError("failed", "the source did not say which device it lends: it may be too old")
    devid = int(match[1])
    if not 0 < devid >> 16 <= _BUS_MAX or not devid & 0xFFFF:
        raise CallError("failed", "the source lends a device with an impossible number")
    return Handover(devid, int(match[2]))
