"""The stream of a USB device between two kernels, each message of which is checked on the way."""

from __future__ import annotations

import socket
from typing import Final

from pedos_vchan.channel import Channel
from pedos_vchan.pump import Why
from pedos_vchan.usbip import UsbipCheck

from pedos_agent.device_classes.data_channel import carry
from pedos_agent.device_classes.usb.usb_device import HOST
from pedos_agent.device_classes.usb.vhci import MODULE

_OF_THE_KERNEL: Final = (Why.INPUT_ENDED, Why.INPUT_FAILED, Why.OUTPUT_FAILED)


async def carry_checked(
    channel: Channel, ours: socket.socket, devid: int, *, is_source: bool
) -> tuple[Why, str]:
    """Move it until either side ends; returns why that was, and the same for people in the VM
    and dom0."""
    check = UsbipCheck(devid, is_source=is_source)
    # This very agent may look at a disk behind it, and wait in the kernel for what comes here.
    result = await carry(channel, ours, check=check, alone=True)
    if result.why is Why.REFUSED:
        return result.why, f"the data channel was ended, as it is not USB/IP: {check.why}"
    if result.why in _OF_THE_KERNEL:
        return result.why, f"{HOST if is_source else MODULE} has ended the connection"
    if result.why is Why.PEER_CLOSED:
        return result.why, f"the {'target' if is_source else 'source'} has ended the connection"
    return result.why, f"the data channel ended: {result.why}"
