"""Whether something in this VM uses a block device, and how it is held so that nothing does."""

from __future__ import annotations

import errno
import os
import time
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

from pedos_host._open import open_and_close

if TYPE_CHECKING:
    from collections.abc import Callable

    T = TypeVar("T")

IN_USE: Final = "mounted or otherwise in use in this VM"
# A program that only looks (as discovery and udev do) holds a device for a moment, a mount for
# long. That moment may last while a busy machine does not run the program.
HELD_TRIES: Final = 6
HELD_RETRY_SECONDS: Final = 0.02

_FLAGS: Final = os.O_RDONLY | os.O_EXCL | os.O_NONBLOCK | os.O_CLOEXEC


def open_exclusively(path: str) -> int | None:
    """Open a block device, for reading, so that it cannot be mounted; None if it is in use in this
    VM.

    open(2): O_EXCL without O_CREAT fails on a block device that is mounted, or part of a volume or
    a RAID. A partition in use makes its disk busy too. OSError if the device cannot be opened;
    blocks as long as its driver does.
    """
    return _unless_held(partial(os.open, path, _FLAGS))


def is_held(path: str) -> bool:
    """Say whether a block device is in use in this VM, as above. It is held for some microseconds,
    so that looking keeps nobody from mounting it."""

    def is_free() -> bool:
        open_and_close(path, _FLAGS)
        return True

    return not _unless_held(is_free)


def _unless_held(attempt: Callable[[], T]) -> T | None:
    """The result of the attempt; None if the device is in use at each try."""
    for number in range(HELD_TRIES):
        if number:
            time.sleep(HELD_RETRY_SECONDS)
        try:
            return attempt()
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
    return None
