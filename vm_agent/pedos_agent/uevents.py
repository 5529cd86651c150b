"""The kernel's device events (netlink, NETLINK_KOBJECT_UEVENT): only that there are some counts.

What they say is not used, only that a new look is due. So it does not matter who sent them.
"""

from __future__ import annotations

import logging
import socket
from typing import Final

log = logging.getLogger(__name__)

KERNEL: Final = 1  # group: from the kernel, before udev has looked
UDEV: Final = 2  # group: from udev, when its database has the device
_PROTOCOL: Final = 15  # NETLINK_KOBJECT_UEVENT, linux/netlink.h
_BYTES: Final = 8192


def opened(groups: int, *, missing: str) -> socket.socket:
    """A socket with the events of these groups; where a sandbox has none, one that stays silent.

    `missing` is what is then not noticed, for the log.
    """
    try:
        events = socket.socket(
            socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, _PROTOCOL
        )
        events.bind((0, groups))
        return events
    except OSError as error:
        log.warning("no kernel device events (%s): %s", error.strerror, missing)
        return socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)


def drain(events: socket.socket) -> None:
    """Takes all that are there; an overflow (ENOBUFS) says the same as an event."""
    while True:
        try:
            events.recv(_BYTES)
        except BlockingIOError:
            return
        except OSError:
            continue
