"""The kernel's device events (netlink, NETLINK_KOBJECT_UEVENT); only their occurrence counts.

Of their content only the subsystem is read, and only to decide whether a new look is due. So the
sender does not matter.
"""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Awaitable, Callable, Collection
from contextlib import AbstractContextManager
from typing import Final, TypeVar

import trio

from pedos_agent.system.reading import words
from pedos_agent.system.revision import Revision

log = logging.getLogger(__name__)

S = TypeVar("S")

KERNEL: Final = 1  # group: from the kernel, before udev has looked
UDEV: Final = 2  # group: from udev, when its database has the device
# A burst of events (a hub or a stick with many partitions plugged in) is one.
SETTLE_SECONDS: Final = 0.05
# Seconds between two looks while no events can be received: a person who plugs in a disk waits that
# long.
UNHEARD_SECONDS: Final = 2.0
_PROTOCOL: Final = 15  # NETLINK_KOBJECT_UEVENT, linux/netlink.h
_BYTES: Final = 8192
# The errors of a sandbox or a kernel without them, which are permanent.
_NONE_HERE: Final = frozenset(
    (errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT, errno.EPERM, errno.EACCES, errno.ECONNREFUSED)
)
_UDEV_PREFIX: Final = b"libudev\0"  # of udev's messages (systemd, sd-device/device-monitor.c)


def opened(groups: int, *, missing: str) -> socket.socket:
    """A socket with the events of these groups; in a sandbox without them, one that stays silent.

    `missing` is what then goes unnoticed, for the log. OSError for a temporary lack.
    """
    try:
        events = socket.socket(
            socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, _PROTOCOL
        )
        events.bind((0, groups))
        return events
    except OSError as error:
        if error.errno not in _NONE_HERE:
            raise
        log.warning("no kernel device events (%s): %s", error.strerror, missing)
        return socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)


async def keep_hearing(
    sources: Callable[[], AbstractContextManager[S]],
    hear: Callable[[S], Awaitable[None]],
    changes: Collection[Revision],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Have `sources` and `hear` of changes for ever; started() when nothing is missed from then on.

    While the sources cannot be had, because no descriptor is left, anything may have changed: each
    of `changes` is bumped at intervals.
    """
    is_unheard = False
    while True:
        began = trio.current_time()
        try:
            with sources() as opened_ones:
                if is_unheard:
                    _bump(changes)  # what has happened before
                task_status.started()
                task_status = trio.TASK_STATUS_IGNORED
                await hear(opened_ones)
        except OSError as error:
            if not is_unheard or trio.current_time() - began > UNHEARD_SECONDS:  # it worked before
                log.warning(
                    "device events cannot be heard of (%s): looking every %g s",
                    *(words(error), UNHEARD_SECONDS),
                )
            is_unheard = True
        task_status.started()
        task_status = trio.TASK_STATUS_IGNORED
        await trio.sleep(UNHEARD_SECONDS)
        _bump(changes)


def _bump(changes: Collection[Revision]) -> None:
    for each in changes:
        each.bump()


async def heard(
    events: socket.socket, subsystems: Collection[str], *, of_kernel: Collection[str] = ()
) -> None:
    """Wait until something has happened in one of these subsystems (`block`, `usb`).

    For those in `of_kernel` udev's event is not awaited: its database has nothing about them.
    """
    wanted = [f"SUBSYSTEM={name}\0".encode() for name in subsystems]
    wanted_of_kernel = wanted + [f"SUBSYSTEM={name}\0".encode() for name in of_kernel]
    while True:
        await trio.lowlevel.wait_readable(events)
        await trio.sleep(SETTLE_SECONDS)
        if _drain(events, wanted, wanted_of_kernel):
            return


def _drain(
    events: socket.socket, wanted: Collection[bytes], wanted_of_kernel: Collection[bytes]
) -> bool:
    """Take all that are there; say whether one has a wanted field.

    A cut event may have it, and so may lost ones: an overflow (ENOBUFS).
    """
    found = False
    while True:
        try:
            event = events.recv(_BYTES)
        except BlockingIOError:
            return found
        except OSError:
            return True  # the rest stays readable
        else:
            fields = wanted if event.startswith(_UDEV_PREFIX) else wanted_of_kernel
            found = found or len(event) == _BYTES or any(field in event for field in fields)
