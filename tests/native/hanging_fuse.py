"""A file system that never answers, by the kernel's protocol of FUSE: who looks at a file in it
waits for no signal, not even for SIGKILL, until this is over."""

from __future__ import annotations

import ctypes
import os
import struct
from pathlib import Path

# Of <linux/fuse.h>: struct fuse_in_header, and opcodes.
_IN = struct.Struct("<IIQQIIIHH")
_OUT = struct.Struct("<IiQ")
_INIT, _LOOKUP = 26, 1
_READ_BYTES = 1 << 17
_MNT_DETACH = 2

_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


class HangingFuse:
    """Mounted at `point`."""

    def __init__(self, point: Path) -> None:
        """OSError, as where this user may not mount."""
        self.point = point
        self._fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        options = f"fd={self._fd},rootmode=40000,user_id=0,group_id=0".encode()
        try:
            _checked(_libc.mount(b"hanging", bytes(point), b"fuse", 0, options))
            self._answer_init()
        except OSError:
            os.close(self._fd)
            raise

    def _read(self) -> tuple[int, int, bytes]:
        """Opcode, number, and the rest of the next request."""
        data = os.read(self._fd, _READ_BYTES)
        _, opcode, number, *_ = _IN.unpack_from(data)
        return opcode, number, data[_IN.size :]

    def _answer_init(self) -> None:
        opcode, number, data = self._read()
        assert opcode == _INIT
        major, minor, ahead, _ = struct.unpack_from("<IIII", data)
        # struct fuse_init_out: of the flags none.
        body = struct.pack("<IIIIHHIIHH32x", major, minor, ahead, 0, 12, 9, 4096, 1, 1, 0)[:64]
        os.write(self._fd, _OUT.pack(_OUT.size + len(body), 0, number) + body)

    def wait_until_asked(self) -> None:
        """Returns when somebody has asked for a file, and waits."""
        while self._read()[0] != _LOOKUP:
            pass

    def answer(self) -> None:
        """Those who wait get an error, from now on."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def close(self) -> None:
        """Unmount it. Nobody waits any more."""
        self.answer()
        _libc.umount2(bytes(self.point), _MNT_DETACH)
