"""Which programs may call services at all: in a VM all, in dom0 root's and those of its desktop."""

from __future__ import annotations

import grp
import os

from pedos_host.packets import PacketSocket
from pedos_protocol.sockets import DESKTOP_GROUP


def anybody(_packets: PacketSocket) -> str | None:
    """In a VM the rules of dom0 decide alone."""
    return None


def may_call(packets: PacketSocket) -> str | None:
    """In dom0, whose calls the rules allow more: why this program may not; None if it may."""
    try:
        who = packets.credentials
    except OSError as error:
        return f"the groups of user {packets.uid} cannot be told: {error.strerror}"
    if who.uid in (0, os.geteuid()):
        return None
    try:
        group = grp.getgrnam(DESKTOP_GROUP).gr_gid
    except KeyError:
        return f"only root may call services from dom0: there is no group {DESKTOP_GROUP}"
    if group in who.groups:
        return None
    return f"only root and members of the group {DESKTOP_GROUP} may call services from dom0"
