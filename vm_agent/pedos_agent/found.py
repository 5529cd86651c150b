"""What discovery found: a device as dom0 is told of it, and what exporting it needs."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import time
from typing import Final

import attrs
from pedos_protocol.agent_messages import Device
from pedos_protocol.names import DEVICE_ID_MAX, is_device_id

DIGEST: Final = 6  # hex digits that keep two names apart whose bad characters became the same
HELD: Final = "mounted or otherwise in use in this VM"
# Somebody who only looks (as discovery does, or udev) holds a device for a moment; a mount holds it
# on. That moment may last while a busy machine has no time for who looks.
HELD_TRIES: Final = 6
HELD_RETRY_SECONDS: Final = 0.02
_BAD: Final = re.compile(r"[^A-Za-z0-9._-]")


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
class Found:
    """One device of this VM. `path` and `inode` are None for what can only be listed."""

    device: Device
    path: str | None = None
    inode: Inode | None = None

    @property
    def key(self) -> tuple[str, str]:
        """Class and id, unique in this VM."""
        return self.device.device_class, self.device.device


def device_id_of(name: str) -> str:
    """Make a device id of a file name: the name itself if it is one, else a cleaned, unique one.

    The same name always gives the same id, so that an assignment finds its device again.
    """
    if is_device_id(name):
        return name
    cleaned = _BAD.sub("_", name)
    if not cleaned[:1].isalnum():
        cleaned = "x" + cleaned  # an id starts with a letter or digit
    digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:DIGEST]
    return f"{cleaned[: DEVICE_ID_MAX - DIGEST - 1]}-{digest}"


def open_exclusively(path: str) -> int | None:
    """Open a block device, to read, so that nobody can mount it; None if it is in use in this VM.

    open(2): O_EXCL without O_CREAT fails on a block device that is mounted, or part of a volume or
    a RAID. A partition in use makes its disk one too. OSError when the device cannot be opened;
    blocks as long as its driver does.
    """
    for attempt in range(HELD_TRIES):
        if attempt:
            time.sleep(HELD_RETRY_SECONDS)
        try:
            return os.open(path, os.O_RDONLY | os.O_EXCL | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
    return None


def is_held(path: str) -> bool:
    """Say whether a block device is in use in this VM, as above."""
    held = open_exclusively(path)
    if held is not None:
        os.close(held)
    return held is None
