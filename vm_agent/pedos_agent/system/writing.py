"""Writes attributes of the kernel, in one call each, as sysfs wants it."""

from __future__ import annotations

import errno
import os


def write_attribute(path: str, text: str) -> None:
    """Write all of `text` to a file of sysfs. OSError, with the path; blocks as long as the kernel
    acts on it."""
    file = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        if os.write(file, text.encode()) != len(text):
            raise OSError(errno.EIO, "the kernel took a part of it", path)
    except OSError as error:
        error.filename = error.filename or path
        raise
    finally:
        os.close(file)
