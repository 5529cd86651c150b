"""The file behind a loop device, as the kernel knows it: by inode (linux/loop.h)."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from typing import Final

from pedos_protocol.frozen import frozen

_LOOP_GET_STATUS64: Final = 0x4C05
# struct loop_info64: lo_device, lo_inode, lo_rdevice, and more that sysfs has too.
_HEAD: Final = struct.Struct("QQQ")
_BYTES: Final = 232
# It has no file; it is no loop device (a test's file); no permission to open it.
_NO_ANSWER: Final = frozenset(
    (errno.ENXIO, errno.ENOTTY, errno.ENOENT, errno.ENODEV, errno.EACCES, errno.EPERM)
)


@frozen
class LoopStatus:
    """The file as stat(2) has it: on which device, its inode, and which device it is a node of."""

    device: int
    inode: int
    special: int


def status_of(path: str) -> LoopStatus | None:
    """For the loop device with this node; None if the kernel does not tell. OSError if it cannot be
    looked at."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            answer = fcntl.ioctl(fd, _LOOP_GET_STATUS64, bytes(_BYTES))
        finally:
            os.close(fd)
    except OSError as error:
        if error.errno in _NO_ANSWER:
            return None
        raise
    device, inode, special = _HEAD.unpack_from(answer)
    return LoopStatus(as_stat_has_it(device), inode, as_stat_has_it(special))


def as_stat_has_it(number: int) -> int:
    """A device number of the kernel (linux/kdev_t.h, new_encode_dev) in the form of glibc."""
    minor = number & 0xFF | number >> 12 & ~0xFF
    return os.makedev(number >> 8 & 0xFFF, minor)
