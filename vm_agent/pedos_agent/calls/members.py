"""Which programs may call services at all: in a VM all, in dom0 root's and those of its desktop."""

from __future__ import annotations

import grp
import os
from collections.abc import Callable
from functools import partial

from pedos_host.packets import PacketSocket
from pedos_protocol.sockets import DESKTOP_GROUP


def anybody(_packets: PacketSocket) -> str | None:
    """In a VM the rules of dom0 decide alone."""
    return None


def in_dom0() -> Callable[[PacketSocket], str | None]:
    """In dom0, whose calls the rules allow more: root's and those of its desktop, whose group is
    looked up now. That may wait, as the system's names may come over a network."""
    try:
        group = grp.getgrnam(DESKTOP_GROUP).gr_gid
    except KeyError:
        group = None
    return partial(_of_desktop, group)


def _of_desktop(group: int | None, packets: PacketSocket) -> str | None:
    """Why this program may not; None if it may."""
    try:
        who = packets.credentials
    except OSError as error:
        return f"the groups of user {packets.uid} cannot be told: {error.strerror}"
    if who.uid in (0, os.geteuid()) or group in who.groups:
        return None
    if group is None:
        return (
            f"only root may call services from dom0: there was no group {DESKTOP_GROUP} when its "
            "agent started"
        )
    return f"only root and members of the group {DESKTOP_GROUP} may call services from dom0"
