"""Block devices: disks, partitions, and files that stand for disks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
from pedos_protocol.names import frontend_of

from pedos_dom0.device_classes.base import READ_ONLY, DeviceClass, Options, usage

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

# The kind of device that Xen announces to the target, unless it is a disk.
DEVTYPE, CDROM = "devtype", "cdrom"


class Block(DeviceClass):
    """The rules for block devices alone."""

    named = "disks"

    def parse_options(self, raw: Mapping[str, str]) -> Options:
        options = super().parse_options(raw)
        if options.asked.get(DEVTYPE) != CDROM:
            return options
        if options.read_only is False:
            raise usage(f"a {CDROM} is read-only: leave out read-only=no or devtype={CDROM}")
        asked = {name: value for name, value in options.asked.items() if name != DEVTYPE}
        asked |= {READ_ONLY: "yes", DEVTYPE: CDROM}
        return attrs.evolve(options, asked=asked, read_only=True)

    def borrowed(self, ids: Iterable[str], names: Collection[str]) -> set[str]:
        return {device for device in ids if frontend_of(device) in names} if names else set()

    def lasting_identity(self, identity: str | None) -> str:
        """A file system's UUID, which stands behind two colons if there is nothing else, changes
        when the disk is formatted."""
        return "" if identity is None or identity.startswith("::") else identity
