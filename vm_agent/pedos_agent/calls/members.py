"""Which programs may call services at all: in a VM all, in dom0 root's and those of its desktop."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial

from pedos_host.desktop_group import desktop_group
from pedos_host.packets import PacketSocket
from pedos_protocol.sockets import DESKTOP_GROUP


def anybody(_packets: PacketSocket) -> str | None:
    """In a VM the rules of dom0 decide alone."""
    return None


def in_dom0() -> Callable[[PacketSocket], str | None]:
    """In dom0, whose calls the rules allow more: root's and those of its desktop, whose group is
    looked up now, which may wait."""
    group = None
    try:
        group = desktop_group(DESKTOP_GROUP)
        why = f"only root and members of the group {DESKTOP_GROUP} may call services from dom0"
    except KeyError:
        why = (
            f"only root may call services from dom0: there was no group {DESKTOP_GROUP} when "
            "pedos-dom0-agent started"
        )
    except PermissionError as error:
        why = f"only root may call services from dom0: {error.strerror}"
    return partial(_of_desktop, group, why)


def _of_desktop(group: int | None, why: str, packets: PacketSocket) -> str | None:
    """Why this program may not; None if it may."""
    try:
        who = packets.credentials
    except OSError as error:
        return f"the groups of user {packets.uid} cannot be told: {error.strerror}"
    return None if who.uid in (0, os.geteuid()) or group in who.groups else why
