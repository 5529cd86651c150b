"""The stream of a USB device between two kernels, each message of which is checked on the way."""

from __future__ import annotations

import socket

from pedos_vchan.channel import Channel
from pedos_vchan.pump import Why
from pedos_vchan.usbip import UsbipCheck

from pedos_agent.device_classes.data_channel import carry


async def carry_checked(
    channel: Channel, ours: socket.socket, devid: int, *, is_source: bool
) -> tuple[Why, str]:
    """Move it until either side ends; returns why that was, and the same for people."""
    check = UsbipCheck(devid, is_source=is_source)
    result = await carry(channel, ours, check=check)
    if result.why is Why.REFUSED:
        return result.why, f"the data channel was ended, as it is not USB/IP: {check.why}"
    return result.why, f"the data channel ended: {result.why}"
