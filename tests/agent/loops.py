"""Loop devices for tests, by the kernel's own calls (linux/loop.h)."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

_SET_FD, _CLR_FD, _SET_STATUS64, _GET_FREE = 0x4C00, 0x4C01, 0x4C04, 0x4C82
_STATUS = struct.Struct("5Q4I64s64s32s2Q")


@contextlib.contextmanager
def looped(file: Path, offset: int = 0, size: int = 0) -> Iterator[str]:
    """The path of a loop device that is made of a file, or of `size` bytes of it from `offset` on.
    Skips the test if there is none."""
    with contextlib.ExitStack() as stack:
        try:
            backing = stack.enter_context(file.open("r+b"))
            path, loop = _free(backing.fileno())
            stack.callback(os.close, loop)
        except OSError as error:
            pytest.skip(f"there is no loop device to be had here: {error}")
        stack.callback(fcntl.ioctl, loop, _CLR_FD)
        status = _STATUS.pack(0, 0, 0, offset, size, 0, 0, 0, 0, b"", b"", b"", 0, 0)
        fcntl.ioctl(loop, _SET_STATUS64, status)
        yield path


def _free(backing: int) -> tuple[str, int]:
    control = os.open("/dev/loop-control", os.O_RDWR)
    try:
        while True:  # another one may take it between the two calls
            path = f"/dev/loop{fcntl.ioctl(control, _GET_FREE)}"
            loop = os.open(path, os.O_RDWR)
            try:
                fcntl.ioctl(loop, _SET_FD, backing)
                return path, loop
            except OSError as error:
                os.close(loop)
                if error.errno != errno.EBUSY:
                    raise
    finally:
        os.close(control)
