"""Whether there is a disc in a CD drive (linux/cdrom.h)."""

from __future__ import annotations

import errno
import fcntl
import os
from typing import Final

_CDROM_DRIVE_STATUS: Final = 0x5326
_SLOT: Final = 0x7FFFFFFF  # CDSL_CURRENT
# CDS_NO_DISC, CDS_TRAY_OPEN, CDS_DRIVE_NOT_READY
_WITHOUT: Final = frozenset((1, 2, 3))


def has_disc(path: str) -> bool:
    """Whether a drive has a disc in it; True for any other device. OSError if unknown; may take as
    long as the drive does."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ENOMEDIUM:
            return False
        raise
    try:
        return fcntl.ioctl(fd, _CDROM_DRIVE_STATUS, _SLOT) not in _WITHOUT
    except OSError as error:
        if error.errno in (errno.ENOTTY, errno.EINVAL, errno.ENOSYS):
            return True
        raise
    finally:
        os.close(fd)
