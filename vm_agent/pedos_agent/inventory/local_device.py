"""The result of discovery: a device as reported to dom0, and what exporting it needs."""

from __future__ import annotations

import hashlib
import os
import re
from typing import Final

import attrs
from pedos_protocol.agent_messages import Device
from pedos_protocol.names import DEVICE_ID_MAX, harmless_text, is_device_id

from pedos_agent.system.closing import close_later

DIGEST: Final = 12  # hex digits that distinguish two names whose bad characters became the same
_BAD: Final = re.compile(r"[^A-Za-z0-9._-]")


class Pin:
    """Holds what a name led to, as long as anything refers to this object.

    As an O_PATH descriptor, which has no effect on a device and needs no right to read it. A held
    file keeps its inode number when it is removed, so that no other file gets that one: while a pin
    exists, an equal `Inode` is the same file. The file of the decision is opened through the pin,
    and not by its name, which may lead elsewhere by then.
    """

    def __init__(self, path: str) -> None:
        """OSError if the name leads nowhere, or no descriptor is left."""
        self.fd = os.open(path, os.O_PATH | os.O_CLOEXEC)

    def __del__(self) -> None:
        # Mostly in the event loop, and perhaps the last that holds a removed file.
        if hasattr(self, "fd"):
            close_later(self.fd)

    def status(self) -> os.stat_result:
        """Of what is held."""
        return os.fstat(self.fd)

    @property
    def path(self) -> str:
        """A name that leads to the held file and nowhere else, in this process and its children."""
        return f"/proc/self/fd/{self.fd}"


@attrs.frozen
class Inode:
    """Which file a name led to; a name that leads elsewhere later is another device."""

    device: int
    number: int
    special: int  # st_rdev: which block device a device node stands for

    @classmethod
    def of(cls, status: os.stat_result) -> Inode:
        """Take it from a stat result."""
        return cls(status.st_dev, status.st_ino, status.st_rdev)


@attrs.frozen
class LocalDevice:
    """One device of this VM; a class may add fields of its own. `path` and `inode` are None for
    devices that can only be listed.

    `pin` holds the file, in local mode, where users can replace files at any time. `marks`
    distinguishes it further from another device with its id and inode: the kernel's number of the
    disk in the drive, how often a device was plugged into this port. `boot`, the kernel's id of
    this boot, is set if the marks do so for a restarted agent, too. `unseen` is why this look could
    not identify it; everything but its key is then meaningless.
    """

    device: Device
    path: str | None = None
    inode: Inode | None = None
    marks: tuple[str, ...] = ()
    pin: Pin | None = attrs.field(default=None, eq=False)
    unseen: str | None = None
    boot: str = ""

    @property
    def key(self) -> tuple[str, str]:
        """Class and id, unique in this VM."""
        return self.device.device_class, self.device.device

    def is_same_thing(self, other: LocalDevice) -> bool:
        """Whether both are looks at the same device, and not at another one that has its id by
        now."""
        known = (self.unseen is None, other.unseen is None)
        return known[0] == known[1] and (self.inode, self.marks) == (other.inode, other.marks)

    def released(self) -> LocalDevice:
        """The item without what it holds, and so the same as none that is found later."""
        return attrs.evolve(self, path=None, inode=None, pin=None, marks=("removed",))

    def lasting_instance(self) -> str | None:
        """The instance, for all agents of this boot; None if only an agent that kept watching can
        tell."""
        if not self.boot:
            return None
        told_by = repr((self.boot, self.key, self.inode, self.marks))
        return hashlib.sha256(told_by.encode()).hexdigest()[:32]

    def shares_data(self, other: LocalDevice) -> bool:
        """Whether both are one device by two names, so that only one of them can be lent. A class
        whose devices may have a part in common overrides this."""
        return self.key == other.key or (self.inode is not None and self.inode == other.inode)


def unseen(device_class: str, device_id: str, why: str) -> LocalDevice:
    """A device that exists and cannot be looked at. What was known of it before stays, see
    Inventory; an unknown one is listed like this, and cannot be lent."""
    why = harmless_text(why)
    device = Device(
        device_class=device_class,
        device=device_id,
        identity="",
        description="",
        size=None,
        parent=None,
        read_only=True,
        busy=harmless_text(f"cannot be looked at: {why}"),
        stale=why,
    )
    return LocalDevice(device, unseen=why)


def unseen_class(device_class: str, why: str) -> LocalDevice:
    """Stands for all devices of a class, none of which could be looked at; it has no id."""
    return unseen(device_class, "", why)


def device_id_of(name: str) -> str:
    """Make a device id of a file name: the name itself if valid, else a cleaned, unique one.

    The same name always gives the same id, so that an assignment finds its device again.
    """
    if is_device_id(name):
        return name
    cleaned = _BAD.sub("_", name)
    if not cleaned[:1].isalnum():
        cleaned = "x" + cleaned  # an id starts with a letter or digit
    digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:DIGEST]
    return f"{cleaned[: DEVICE_ID_MAX - DIGEST - 1]}-{digest}"
