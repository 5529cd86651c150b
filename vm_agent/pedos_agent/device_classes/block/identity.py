"""The identity of a disk, from udev's properties."""

from __future__ import annotations

from collections.abc import Mapping

from pedos_agent.inventory.identities import UUID_MAX, part
from pedos_agent.system.udev_text import decoded


def identity_of(said: Mapping[str, str]) -> str:
    """SERIAL:PARTITION-UUID:FILE-SYSTEM-UUID from udev's properties; "" if there are none.

    The file system's UUID is left out if there is another one: it changes when a disk is formatted,
    and the disk is the same.
    """
    serial = _serial(said)
    partition = said.get("ID_PART_ENTRY_UUID", "")
    system = decoded(said.get("ID_FS_UUID_ENC", "")) or said.get("ID_FS_UUID", "")
    if serial or partition:
        system = ""
    if not (serial or partition or system):
        return ""
    return ":".join((part(serial), part(partition, UUID_MAX), part(system, UUID_MAX)))


def _serial(said: Mapping[str, str]) -> str:
    """The serial number, with what distinguishes the disks behind it: the slots of a card reader
    have one serial number, and so have the namespaces of an NVMe disk."""
    serial = said.get("ID_SERIAL")
    if not serial:
        # Volumes and RAIDs have no serial number; these are their own, which their copies do not
        # have.
        return said.get("ID_WWN") or said.get("DM_UUID") or said.get("MD_UUID") or ""
    for before, name in (("-", "ID_INSTANCE"), ("_", "ID_NSID")):
        # udev appends them to it itself, but for old versions.
        which = said.get(name)
        if which and not serial.endswith(before + which):
            serial += before + which
    return serial
