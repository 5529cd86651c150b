"""Devices that can only be listed: what is known of one, and a file that describes one.

In local mode a regular file describes a device: its first line is the description, a second line
`identity=...` the identity.
"""

from __future__ import annotations

import os
import stat
from typing import Final

from pedos_protocol.agent_messages import Device
from pedos_protocol.names import harmless_text, is_identity

from pedos_agent.device_classes.pinned import Pinner, shown_name
from pedos_agent.inventory.local_device import LocalDevice, Pin

DESCRIPTION_BYTES: Final = 4096  # bytes of a description file to read


def listed(
    device_class: str,
    device_id: str,
    identity: str,
    description: str,
    *marks: str,
    pin: Pin | None = None,
) -> LocalDevice:
    """A device of which only its description is known, which may be a stranger's text."""
    device = Device(
        device_class=device_class,
        device=device_id,
        identity=identity,
        description=harmless_text(description),
        size=None,
        parent=None,
        read_only=False,
        busy=None,
    )
    return LocalDevice(device, marks=marks, pin=pin)


def described_device(
    path: str, device_class: str, device_id: str, pin: Pinner
) -> LocalDevice | None:
    """The device that the file at `path` describes; None if it is no regular file. OSError."""
    pinned = pin(path, _description)
    if pinned is None:
        return None
    held, status, text = pinned
    if text is None:
        return None
    first, _, rest = text.partition("\n")
    identity = rest.partition("\n")[0].strip().removeprefix("identity=")
    return listed(
        device_class,
        device_id,
        identity if is_identity(identity) else "",
        first.strip() or shown_name(path),
        f"{status.st_dev}:{status.st_ino}",
        pin=held,
    )


def _description(pin: Pin, status: os.stat_result) -> str | None:
    """The first bytes of a regular file."""
    if not stat.S_ISREG(status.st_mode):
        return None
    fd = os.open(pin.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return os.read(fd, DESCRIPTION_BYTES).decode("utf-8", "replace")
    finally:
        os.close(fd)
