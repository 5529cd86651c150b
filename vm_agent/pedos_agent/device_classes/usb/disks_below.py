"""The disks that are parts of a USB device, and their uses in this VM."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Final

from pedos_host.exclusive import IN_USE, open_exclusively
from pedos_protocol.errors import CallError

from pedos_agent.device_classes.sysfs import names_of, usb_device_of
from pedos_agent.device_classes.xen_backends import lent, lent_to
from pedos_agent.system.reading import is_gone, link_target, read_field
from pedos_agent.system.roots import Roots

# A hub has seven ports at most on its own, a card reader a slot for each kind of card; each with
# partitions. More than this are no device that a person lends.
DISKS_MAX: Final = 256


def disks_below(device: str, roots: Roots) -> list[str]:
    """The names of its disks and of their partitions. OSError if that cannot be told."""
    folder = f"{roots.sys}/class/block"
    return [
        name
        for name in names_of(folder)
        if usb_device_of(link_target(f"{folder}/{name}") or "") == device
    ]


@contextlib.contextmanager
def held_below(device: str, roots: Roots) -> Iterator[list[int]]:
    """Hold all of its disks so that nothing else in this VM can begin to use them; gives their
    descriptors. CallError(busy) if one is in use; OSError if that cannot be told.

    A drive without a disk in it cannot be in use either.
    """
    with contextlib.ExitStack() as held:
        files: list[int] = []
        for name in disks_below(device, roots):
            if len(files) == DISKS_MAX:
                raise CallError(
                    "failed", f"{device} has more than {DISKS_MAX} disks and partitions"
                )
            if read_field(f"{roots.sys}/class/block/{name}/partition"):
                continue  # holding its disk holds it
            if reason := _lent(name, roots):
                raise CallError("busy", f"{device} is in use here: its disk {name} is {reason}")
            try:
                file = open_exclusively(f"{roots.dev}/{name}")
            except OSError as error:
                if is_gone(error):
                    continue
                raise
            if file is None:
                raise CallError("busy", f"{device} is in use here: its disk {name} is {IN_USE}")
            held.callback(os.close, file)
            files.append(file)
        yield files


def _lent(disk: str, roots: Roots) -> str | None:
    """Also of a partition of it: the kernel does not count a backend as a user."""
    folder = f"{roots.sys}/class/block"
    names = [disk, *(each for each in names_of(f"{folder}/{disk}") if each.startswith(disk))]
    numbers = {name: read_field(f"{folder}/{name}/dev") for name in names}
    domains = {each for domids in lent(roots.sys, numbers).values() for each in domids}
    return lent_to(domains) if domains else None
