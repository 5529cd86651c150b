"""A disk as discovery finds it."""

from __future__ import annotations

import os

import attrs
from pedos_host.exclusive import IN_USE
from pedos_protocol.names import harmless_text

from pedos_agent.device_classes.block.areas import Areas, overlap
from pedos_agent.inventory.local_device import Inode, LocalDevice
from pedos_agent.system.reading import read_field


@attrs.frozen
class Disk(LocalDevice):
    """`areas` is where it has its data."""

    areas: Areas = ()

    def shares_data(self, other: LocalDevice) -> bool:
        """Whether data written to one may be read from the other."""
        if super().shares_data(other):
            return True
        return isinstance(other, Disk) and overlap(self.areas, other.areas)


def disk_number(inode: Inode) -> str | None:
    """MAJOR:MINOR in hexadecimal digits, as Xen has it; None for what is no device node."""
    if not inode.special:
        return None
    return f"{os.major(inode.special):x}:{os.minor(inode.special):x}"


def with_held_sharers(found: list[LocalDevice]) -> list[LocalDevice]:
    """A device that shares data with a held one is in use, too."""
    held = {item.device.device for item in found if item.device.busy == IN_USE}

    def told(item: LocalDevice) -> LocalDevice:
        if item.device.busy is not None or not (others := held.intersection(item.device.shares)):
            return item
        busy = harmless_text(f"its data is that of {min(others)}, which is {IN_USE}")
        return attrs.evolve(item, device=attrs.evolve(item.device, busy=busy))

    return [told(item) for item in found] if held else found


def disk_marks(folder: str) -> tuple[str, ...]:
    """Distinguishes the disk or partition at this folder of sysfs from a later one with its name
    and number: the kernel's count of disks, which also changes with the medium
    (Documentation/ABI/stable/sysfs-block, diskseq, from Linux 5.15), and where on it a partition
    is. OSError if it cannot be read."""
    if not read_field(f"{folder}/partition"):
        return (read_field(f"{folder}/diskseq"),)
    # The folder may be a link; its parent is that of the folder to which it leads.
    where = (f"{folder}/../diskseq", f"{folder}/start", f"{folder}/size")
    return tuple(map(read_field, where))
